"""The fast guided filter of MEFNet and MEFLUT: coefficients at low resolution, applied at full resolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def box_sum(x: Tensor, radius: int) -> Tensor:
    """Sum over a (2 radius + 1) square window cut at the borders, by differences of cumulative sums."""
    for axis in (-2, -1):
        size = x.shape[axis]
        if size <= 2 * radius:
            raise ValueError(f"box_sum needs sides over {2 * radius}, got {size}")
        total = x.cumsum(axis)
        head = total.narrow(axis, radius, radius + 1)
        body = total.narrow(axis, 2 * radius + 1, size - 2 * radius - 1) - total.narrow(axis, 0, size - 2 * radius - 1)
        tail = total.narrow(axis, size - 1, 1) - total.narrow(axis, size - 2 * radius - 1, radius)
        x = torch.cat([head, body, tail], dim=axis)
    return x


def fast_guided_filter(guide: Tensor, weight: Tensor, full_guide: Tensor, radius: int, eps: float) -> Tensor:
    """Fit ``weight = a guide + b`` in windows at low resolution and return ``a full_guide + b``."""
    count = box_sum(torch.ones_like(guide[:1]), radius)
    mean_guide = box_sum(guide, radius) / count
    mean_weight = box_sum(weight, radius) / count
    covariance = box_sum(guide * weight, radius) / count - mean_guide * mean_weight
    variance = box_sum(guide * guide, radius) / count - mean_guide * mean_guide
    a = covariance / (variance + eps)
    b = mean_weight - a * mean_guide
    size = full_guide.shape[-2:]
    a, b = (F.interpolate(c, size, mode="bilinear", align_corners=False) for c in (a, b))
    return a * full_guide + b


def blend(images: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the exposures (the batch), with |weights| normalised to sum to 1; clipped to [0, 1]."""
    weights = weights.abs() + 1e-8
    weights = weights / weights.sum(0, keepdim=True)
    return (weights * images).sum(0, keepdim=True).clamp_(0, 1)


def shrink(images: Tensor, short_side: int) -> Tensor:
    """Resize so that the shorter side is ``short_side``, antialiased bilinear, aspect kept."""
    height, width = images.shape[-2:]
    scale = short_side / min(height, width)
    size = (short_side, int(width * scale)) if height <= width else (int(height * scale), short_side)
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
