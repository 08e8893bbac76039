"""Luminance of pictures, and the fused picture's colour, on any device: :mod:`ffmef.imaging.colour` band by band.

A kernel of the CUDA library does each in one pass, with the same bits; ``FFMEF_COLOUR_KERNELS=0`` leaves it out.
Without it, and on other devices, torch operations follow each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ffmef import _loader
from ffmef.imaging import colour

MOST_SOURCES = 64  # of the kernel
BAND = 1 << 22  # pixels at a time: what is made in between takes some ten planes of floating point


def sample_luminance(pictures: Sequence[Tensor]) -> Tensor:
    """Return the luminance Y / 255 of pictures (H, W) or (H, W, 3), as (N, H, W), float32.

    Args:
        pictures: of one size, dtype and device: uint8, uint16, or floating point in [0, 1].

    Example:
        >>> sample_luminance([torch.tensor([[0, 255]], dtype=torch.uint8)]).round(decimals=3)
        tensor([[[0.0630, 0.9220]]])
    """
    first = pictures[0]
    if _has_kernel("sample_luminance_cuda", first):
        return torch.ops.ffmef.sample_luminance_cuda(list(pictures))
    planes = torch.empty((len(pictures), *first.shape[:2]), dtype=torch.float32, device=first.device)
    for plane, picture in zip(planes, pictures, strict=True):
        for rows in _bands(first):
            plane[rows] = colour.sample_luminance(picture[rows])
    return planes


def recoloured(fused: Tensor, sources: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Join fused luminance (H, W) on 0..1 with the merged chroma of pictures: :func:`ffmef.imaging.colour.recoloured`.

    Args:
        fused: float32.
        sources: pictures (H, W, 3) of its size; empty for a grey result.
        dtype: of the result.

    Returns:
        Samples, (H, W, 3), or (H, W) without sources.

    Example:
        >>> recoloured(torch.tensor([[235 / 255]]), [], torch.uint8)
        tensor([[255]], dtype=torch.uint8)
    """
    one_dtype = all(source.dtype == dtype for source in sources)
    if 0 < len(sources) <= MOST_SOURCES and one_dtype and _has_kernel("recoloured_cuda", fused):
        return torch.ops.ffmef.recoloured_cuda(fused, list(sources))
    shape = (*fused.shape, 3) if len(sources) else fused.shape
    out = torch.empty(shape, dtype=dtype, device=fused.device)
    for rows in _bands(fused):
        out[rows] = colour.recoloured(fused[rows], [source[rows] for source in sources], dtype)
    return out


def _bands(picture: Tensor) -> Iterator[slice]:
    height, width = picture.shape[:2]
    rows = max(1, BAND // width)
    return (slice(row, row + rows) for row in range(0, height, rows))


def _has_kernel(name: str, tensor: Tensor) -> bool:
    if tensor.device.type != "cuda" or os.environ.get("FFMEF_COLOUR_KERNELS") == "0":
        return False
    return _loader.cuda_missing is None and hasattr(torch.ops.ffmef, name)  # older libraries lack it
