"""The fusion of equation 4 written with plain torch operators: what our kernels are measured against.

Each function takes ``images`` (B, N, C, H, W), a list of ``filters`` (B, N, k*k, H, W) and ``alphas`` (L,), pads with
zeros and returns (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F


def unfold(images: Tensor, filters: Sequence[Tensor], alphas: Tensor) -> Tensor:
    """Copy every neighbourhood of every image, multiply by the filters, sum, weight the levels.

    One image and one level at a time with full-size products in between, as the paper's release formulates it.
    """
    batch, count, channels, height, width = images.shape
    fused = 0
    for level, weights in enumerate(filters):
        size = isqrt(weights.shape[2])
        total = 0
        for n in range(count):
            columns = F.unfold(images[:, n], size, padding=size // 2)
            columns = columns.view(batch, channels, size * size, height, width)
            total = total + (columns * weights[:, n, None]).sum(2)
        fused = fused + alphas[level] * total
    return fused


def shift_and_add(images: Tensor, filters: Sequence[Tensor], alphas: Tensor) -> Tensor:
    """Add one shifted product per tap: no copy of the neighbourhoods, but one pass over the output per tap."""
    batch, count, channels, height, width = images.shape
    widest = max(isqrt(weights.shape[2]) for weights in filters) // 2
    padded = F.pad(images, (widest,) * 4)
    fused = 0
    for level, weights in enumerate(filters):
        size = isqrt(weights.shape[2])
        first = widest - size // 2
        total = images.new_zeros(batch, channels, height, width)
        for n in range(count):
            for tap in range(size * size):
                top, left = first + tap // size, first + tap % size
                shifted = padded[:, n, :, top : top + height, left : left + width]
                total = torch.addcmul(total, weights[:, n, tap, None], shifted)
        fused = fused + alphas[level] * total
    return fused


def read_filters(images: Tensor, filters: Sequence[Tensor], alphas: Tensor) -> Tensor:
    """Read every filter once and nothing else: the time that no formulation with stored filters can beat."""
    return torch.stack([weights.sum() for weights in filters])
