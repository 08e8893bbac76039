"""PyramidFFMEF in one operator, from pictures to a picture or from luminance to luminance, without derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffmef.adjust import NEUTRAL, Adjustments
from ffmef.ops._backends import Kernels, declare
from ffmef.ops.library import define, library, operator

BANDS, CHANNEL_BLOCK, MOST_LEVELS, MOST_OCTAVES = 3, 16, 8, 16
MOST_ON_GPU = 64  # exposures, whose addresses are arguments of the kernels


def _no_kernel(channels: Sequence[int], stem: int, bands: int, octaves: int) -> str | None:
    """Return why the native operators cannot run a model of these sizes, or None."""
    if bands != BANDS:
        return f"bands must be {BANDS}, got {bands}"
    if len(channels) > MOST_LEVELS or any(c % CHANNEL_BLOCK for c in channels):
        return f"channels must be at most {MOST_LEVELS} multiples of {CHANNEL_BLOCK}, got {tuple(channels)}"
    if stem > CHANNEL_BLOCK:
        return f"stem must be at most {CHANNEL_BLOCK}, got {stem}"
    return f"octaves must be at most {MOST_OCTAVES}, got {octaves}" if octaves > MOST_OCTAVES else None


def _no_cuda_kernel(channels: Sequence[int], stem: int, bands: int, octaves: int, count: int = 2) -> str | None:
    """Return why the CUDA kernels cannot run a model of these sizes on so many exposures, or None."""
    if (reason := _no_kernel(channels, stem, bands, octaves)) is not None:
        return reason
    if len(channels) < 2 or channels[0] != CHANNEL_BLOCK or any(c > 2 * CHANNEL_BLOCK for c in channels):
        return f"channels must be {CHANNEL_BLOCK}, then {CHANNEL_BLOCK} or {2 * CHANNEL_BLOCK}, got {tuple(channels)}"
    return f"pictures must be at most {MOST_ON_GPU}, got {count}" if count > MOST_ON_GPU else None


_limits = f"PyramidFFMEF of {BANDS} bands, channels in multiples of {CHANNEL_BLOCK}, a stem of at most {CHANNEL_BLOCK}"
_cuda_limits = (
    f"the same with {CHANNEL_BLOCK}, then {CHANNEL_BLOCK} or {2 * CHANNEL_BLOCK} channels, {MOST_ON_GPU} exposures"
)
for _name in ("pyramid_exposures", "pyramid_luminance"):
    declare(
        _name,
        cpu=Kernels(_name, float32=True, autocast=False, derivatives=False, sizes=_no_kernel, limits=_limits),
        cuda=Kernels(
            _name, float32=True, autocast=False, derivatives=False, sizes=_no_cuda_kernel, limits=_cuda_limits
        ),
    )


def pyramid_exposures(
    pictures: Sequence[Tensor],
    validity: Sequence[Tensor],
    parameters: Sequence[Tensor],
    channels: Sequence[int],
    stem: int,
    octaves: int,
    adjust: Adjustments = NEUTRAL,
) -> Tensor:
    """Fuse RGB pictures as ``PyramidFFMEF.fuse_rgb`` does; the same bits for any order of the pictures.

    Args:
        pictures: N tensors (H, W, 3), uint8, of one size, on the CPU; or on a GPU, where uint16 and float32 in [0, 1]
            work as well.
        validity: N tensors (H, W), uint8, 255 for what may be used; or none.
        parameters: of the model, in the order of its own ``parameters()``, float32.
        channels: of the predictor, multiples of 16.
        stem: of the predictor, at most 16.
        octaves: of the model.
        adjust: what is to be different.

    Returns:
        (H, W, 3), of the pictures' dtype.

    Raises:
        RuntimeError: the sizes do not fit, or there is no native library.

    Example:
        >>> import torch
        >>> from ffmef.models import PyramidFFMEF
        >>> model = PyramidFFMEF()
        >>> grey = torch.full((20, 30, 3), 90, dtype=torch.uint8)
        >>> pyramid_exposures([grey, grey], [], list(model.parameters()), (16, 16, 32, 32), 8, 5)[0, 0]
        tensor([90, 90, 90], dtype=torch.uint8)
    """
    changes = [adjust.brightness, adjust.contrast, adjust.saturation, adjust.prefer]
    return operator("pyramid_exposures")(
        list(pictures), list(validity), list(parameters), list(channels), stem, octaves, changes
    )


def pyramid_luminance(
    luminance: Tensor, parameters: Sequence[Tensor], channels: Sequence[int], stem: int, octaves: int
) -> Tensor:
    """Fuse luminance as ``PyramidFFMEF.forward`` does.

    Args:
        luminance: (B, N, H, W), float32, on the CPU or a GPU.
        parameters: as for :func:`pyramid_exposures`, like what follows.
        channels: of the predictor.
        stem: of the predictor.
        octaves: of the model.

    Returns:
        (B, 1, H, W), float32, unclamped.

    Raises:
        RuntimeError: the sizes do not fit, or there is no native library.

    Example:
        >>> import torch
        >>> from ffmef.models import PyramidFFMEF
        >>> model = PyramidFFMEF()
        >>> grey = torch.full((1, 2, 20, 30), 0.25)
        >>> pyramid_luminance(grey, list(model.parameters()), (16, 16, 32, 32), 8, 5)[0, 0, 0, 0].item()
        0.25
    """
    return operator("pyramid_luminance")(luminance, list(parameters), list(channels), stem, octaves)


define(
    "pyramid_exposures(Tensor[] pictures, Tensor[] validity, Tensor[] parameters, int[] channels, int stem, "
    "int octaves, float[] adjust) -> Tensor"
)
define("pyramid_luminance(Tensor luminance, Tensor[] parameters, int[] channels, int stem, int octaves) -> Tensor")


def _no_gradient(ctx, grad):
    raise RuntimeError("the native pyramid has no gradient; call the model where gradients are enabled")


for _name in ("pyramid_exposures", "pyramid_luminance"):
    torch.library.register_autograd(f"ffmef::{_name}", _no_gradient, lib=library)


@torch.library.register_fake("ffmef::pyramid_exposures", lib=library)
def _(pictures, validity, parameters, channels, stem, octaves, adjust):
    return pictures[0].new_empty(pictures[0].shape)


@torch.library.register_fake("ffmef::pyramid_luminance", lib=library)
def _(luminance, parameters, channels, stem, octaves):
    batch, _, height, width = luminance.shape
    return luminance.new_empty((batch, 1, height, width))
