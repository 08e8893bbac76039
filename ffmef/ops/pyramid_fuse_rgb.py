"""pyramid_fuse from and to 8-bit RGB pictures, colour included: what a finished model needs, without derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffmef import _loader
from ffmef.imaging import colour
from ffmef.ops import reference
from ffmef.ops.library import define, implement, library, operator
from ffmef.ops.selection import warn_of_reference


def half_luminance(pictures: Sequence[Tensor]) -> Tensor:
    r"""Return the luminance of pictures at half size.

    ``Y = (0.256789 R + 0.504129 G + 0.097906 B + 16) / 255``, the mean of 2 x 2 pixels; an odd border is repeated.

    Args:
        pictures: N tensors (H, W, 3), uint8, of one size.

    Returns:
        (N, ceil(H / 2), ceil(W / 2)), float32.

    Raises:
        ValueError: no picture, or one of another shape, size or dtype; the message names it.

    Example:
        >>> import torch
        >>> half_luminance([torch.full((2, 4, 3), 255, dtype=torch.uint8)]).mul(255).round()
        tensor([[[235., 235.]]])
    """
    return operator("half_luminance")(_checked(pictures))


def pyramid_fuse_rgb(
    pictures: Sequence[Tensor], half: Tensor, weights: Tensor, base: Tensor, *, scale: int = 8
) -> Tensor:
    r"""Fuse 8-bit RGB pictures: :func:`ffmef.ops.pyramid_fuse` of their luminance, with the merged chroma.

    The fused luminance is clamped to [0, 1]; chroma is merged by ``C = sum_i C_i |C_i - 128| / sum_i |C_i - 128|``
    (FFMEF, CVPR workshops 2023, eq. 1; BT.601 studio swing); the result is clipped and rounded. All of it is one pass
    over rows: beyond the result nothing larger than a quarter of a picture is stored.

    Args:
        pictures: N tensors (H, W, 3), uint8, of one size, on the CPU.
        half: their luminance at half size as :func:`half_luminance` gives it.
        weights: (L, N, ceil(H / scale), ceil(W / scale)), float32, L >= 1.
        base: (N, ceil(H / scale), ceil(W / scale)), float32.
        scale: pixels along a side of a cell, a power of two from :math:`2^L` to 64.

    Returns:
        (H, W, 3), uint8.

    Raises:
        ValueError: a picture of another shape, size or dtype; the message names it.
        RuntimeError: ``half``, ``weights``, ``base`` or ``scale`` do not fit.

    Example:
        >>> import torch
        >>> pictures = [torch.full((8, 8, 3), grey, dtype=torch.uint8) for grey in (40, 80)]
        >>> weights = torch.full((3, 2, 1, 1), 0.5)
        >>> pyramid_fuse_rgb(pictures, half_luminance(pictures), weights, weights[0])[0, 0]
        tensor([60, 60, 60], dtype=torch.uint8)
    """
    return operator("pyramid_fuse_rgb")(_checked(pictures), half, weights, base, scale)


def _checked(pictures: Sequence[Tensor]) -> list[Tensor]:
    pictures = list(pictures)
    if not pictures:
        raise ValueError("pictures must hold at least one picture, got none")
    for index, picture in enumerate(pictures):
        if not isinstance(picture, Tensor):
            raise TypeError(f"pictures[{index}] must be a tensor, got {type(picture).__name__}")
        if picture.dtype != torch.uint8 or picture.dim() != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(
                f"pictures[{index}] must be (H, W, 3) uint8, got {tuple(picture.shape)} {str(picture.dtype)[6:]}"
            )
        if picture.shape != pictures[0].shape:
            raise ValueError(
                f"pictures[{index}] must be {tuple(pictures[0].shape)} like pictures[0], got {tuple(picture.shape)}"
            )
    return pictures


# --- the same in plain torch, where the native library is missing --------------------------------------------------


def _reference_half_luminance(pictures: list[Tensor]) -> Tensor:
    return reference.halve(colour.luminance(torch.stack([p.movedim(-1, 0) for p in pictures])) / 255)


def _reference_pyramid_fuse_rgb(
    pictures: list[Tensor], half: Tensor, weights: Tensor, base: Tensor, scale: int
) -> Tensor:
    ycbcr = colour.rgb_to_ycbcr(torch.stack([p.movedim(-1, 0) for p in pictures]))
    fused = reference.pyramid_fuse(ycbcr[None, :, :1] / 255, weights[None], base[None], scale)[0].clamp(0, 1) * 255
    rgb = colour.ycbcr_to_rgb(torch.cat([fused, colour.merge_chroma(list(ycbcr[:, 1:]))]))
    return rgb.clamp(0, 255).add(0.5).to(torch.uint8).movedim(0, -1).contiguous()


def _slow(function):
    def run(*args):
        warn_of_reference()
        return function(*args)

    return run


define("half_luminance(Tensor[] pictures) -> Tensor")
define("pyramid_fuse_rgb(Tensor[] pictures, Tensor half, Tensor weights, Tensor base, int scale) -> Tensor")
if _loader.cpu_missing is not None:
    implement("half_luminance", _slow(_reference_half_luminance), "CPU")
    implement("pyramid_fuse_rgb", _slow(_reference_pyramid_fuse_rgb), "CPU")
implement("half_luminance", _reference_half_luminance, "CUDA")
implement("pyramid_fuse_rgb", _reference_pyramid_fuse_rgb, "CUDA")


@torch.library.register_fake("ffmef::half_luminance", lib=library)
def _(pictures):
    height, width, _ = pictures[0].shape
    return pictures[0].new_empty((len(pictures), (height + 1) // 2, (width + 1) // 2), dtype=torch.float32)


@torch.library.register_fake("ffmef::pyramid_fuse_rgb", lib=library)
def _(pictures, half, weights, base, scale):
    return pictures[0].new_empty(pictures[0].shape)
