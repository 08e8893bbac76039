"""The operators in plain torch: slow, obvious, differentiable to any order; the oracle of every other backend."""

from __future__ import annotations

import torch
from torch import Tensor


def padded_index(size: int, radius: int, padding_mode: str, device: torch.device) -> Tensor:
    """Return for each of ``size + 2 * radius`` padded positions the position that it reads, -1 for a zero."""
    position = torch.arange(-radius, size + radius, device=device)
    if padding_mode == "zeros":
        return torch.where((position < 0) | (position >= size), -1, position)
    if padding_mode == "replicate":
        return position.clamp(0, size - 1)
    period = max(2 * (size - 1), 1)
    folded = position.remainder(period)
    return torch.minimum(folded, period - folded) if size > 1 else torch.zeros_like(position)


def pad(images: Tensor, radius: int, padding_mode: str) -> Tensor:
    """Return (..., H, W) with ``radius`` more rows and columns on every side."""
    for dim in (-2, -1):
        index = padded_index(images.shape[dim], radius, padding_mode, images.device)
        shape = [-1, 1] if dim == -2 else [-1]
        inside = (index >= 0).view(shape)
        images = images.index_select(dim, index.clamp(min=0)).where(inside, 0)
    return images


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums of ``dtype`` are kept."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _side(filters: Tensor) -> int:
    return round(int(filters.shape[2]) ** 0.5)


def adaptive_fuse(images: Tensor, filters: list[Tensor], alphas: Tensor, padding_mode: str) -> Tensor:
    """Return sum_l alpha_l sum_n sum_taps f_l[tap] * image_n shifted by the tap: (B, N, C, H, W) -> (B, C, H, W)."""
    dtype = images.dtype
    wide = accumulator(dtype)
    height, width = images.shape[-2:]
    total = images.new_zeros(images.shape[:1] + images.shape[2:], dtype=wide)
    for level, alpha in zip(filters, alphas.to(wide).unbind(), strict=True):
        size = _side(level)
        padded = pad(images.to(wide), size // 2, padding_mode)
        response = torch.zeros_like(total)
        for tap in range(size * size):
            dy, dx = divmod(tap, size)
            shifted = padded[..., dy : dy + height, dx : dx + width]
            response = response + (level[:, :, None, tap].to(wide) * shifted).sum(1)
        total = total + alpha * response
    return total.to(dtype)


def adaptive_fuse_backward(
    grad: Tensor,
    images: Tensor,
    filters: list[Tensor],
    alphas: Tensor,
    padding_mode: str,
    need_images: bool,
    need_filters: list[int],
    need_alphas: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the gradients of images, filters and alphas; those that are not needed are empty.

    Written out tap by tap, because automatic differentiation does not exist below the dispatcher's autograd key.
    """
    wide = accumulator(images.dtype)
    batch, count, channels, height, width = images.shape
    g = grad.to(wide)[:, None]
    image_grad = images.new_zeros(images.shape, dtype=wide)
    filter_grads, alpha_grads = [], []
    for level, alpha, needed in zip(filters, alphas.to(wide).unbind(), need_filters, strict=True):
        size = _side(level)
        radius = size // 2
        padded = pad(images.to(wide), radius, padding_mode)
        taps, alpha_grad = [], grad.new_zeros((), dtype=wide)
        padded_grad = torch.zeros_like(padded)
        for tap in range(size * size):
            dy, dx = divmod(tap, size)
            window = (..., slice(dy, dy + height), slice(dx, dx + width))
            response = (g * padded[window]).sum(2)
            taps.append(alpha * response)
            alpha_grad = alpha_grad + (response * level[:, :, tap]).sum()
            padded_grad[window] += alpha * g * level[:, :, None, tap].to(wide)
        filter_grads.append(torch.stack(taps, 2).to(level.dtype) if needed else level.new_empty(0))
        alpha_grads.append(alpha_grad)
        for dim in (-2, -1):
            index = padded_index(images.shape[dim], radius, padding_mode, images.device)
            shape = list(padded_grad.shape)
            shape[dim] = images.shape[dim] + 1  # the last place collects what fell on zero padding
            folded = padded_grad.new_zeros(shape).index_add_(
                padded_grad.dim() + dim, torch.where(index < 0, images.shape[dim], index), padded_grad
            )
            padded_grad = folded.narrow(dim, 0, images.shape[dim])
        image_grad = image_grad + padded_grad
    alpha_grad = torch.stack(alpha_grads) if need_alphas and alpha_grads else alphas.new_zeros(len(filters) if need_alphas else 0)
    return (
        image_grad.to(images.dtype) if need_images else images.new_empty(0),
        filter_grads,
        alpha_grad.to(alphas.dtype),
    )
