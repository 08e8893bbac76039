"""The operators in plain torch: slow, obvious, differentiable to any order; the oracle for every other backend."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F


def padded_index(size: int, radius: int, padding_mode: str, device: torch.device) -> Tensor:
    """Return the position that each of ``size + 2 * radius`` padded positions reads, -1 for a zero."""
    position = torch.arange(-radius, size + radius, device=device)
    if padding_mode == "zeros":
        return torch.where((position < 0) | (position >= size), -1, position)
    if padding_mode == "replicate":
        return position.clamp(0, size - 1)
    if padding_mode == "circular":
        return position.remainder(size)
    period = max(2 * (size - 1), 1)
    folded = position.remainder(period)
    return torch.minimum(folded, period - folded) if size > 1 else torch.zeros_like(position)


def pad(images: Tensor, radius: int, padding_mode: str) -> Tensor:
    """Return (..., H, W) with ``radius`` more rows and columns on every side."""
    if images.numel() == 0:  # nothing to index; the sum, 0, keeps the result differentiable
        height, width = images.shape[-2:]
        return images.new_zeros(*images.shape[:-2], height + 2 * radius, width + 2 * radius) + images.sum()
    for dim in (-2, -1):
        index = padded_index(images.shape[dim], radius, padding_mode, images.device)
        shape = [-1, 1] if dim == -2 else [-1]
        inside = (index >= 0).view(shape)
        images = images.index_select(dim, index.clamp(min=0)).where(inside, 0)
    return images


def pad_adjoint(grad: Tensor, radius: int, padding_mode: str) -> Tensor:
    """Return the adjoint of :func:`pad`: (..., H + 2 * radius, W + 2 * radius) summed onto the pixels padding read."""
    for dim in (-2, -1):
        size = grad.shape[dim] - 2 * radius
        index = padded_index(size, radius, padding_mode, grad.device)
        shape = list(grad.shape)
        shape[dim] = size + 1  # the last place collects what fell on zero padding
        folded = grad.new_zeros(shape).index_add_(grad.dim() + dim, torch.where(index < 0, size, index), grad)
        grad = folded.narrow(dim, 0, size)
    return grad


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums of ``dtype`` are kept."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def promoted_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the widest dtype among the tensors."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _side(filters: Tensor) -> int:
    return round(int(filters.shape[2]) ** 0.5)


def cells_of_pixels(size: int, fine_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two cells of a coarse axis that each pixel of a fine one lies between, and the second's share.

    The coarse axis spans the fine one; beyond the outermost cell centres both cells are the outermost.
    """
    place = (2 * torch.arange(fine_size, device=device) + 1) * size - fine_size  # in units of 1 / (2 fine_size)
    first = place.clamp(min=0).div(2 * fine_size, rounding_mode="floor").clamp(max=size - 1)
    rest = (place - 2 * fine_size * first).clamp(min=0).where(first < size - 1, 0)
    return first, first + (rest > 0), rest.to(torch.float64) / (2 * fine_size)


def to_full_resolution(coarse: Tensor, height: int, width: int) -> Tensor:
    """Return (..., h, w) interpolated bilinearly to (..., height, width), as F.interpolate with align_corners=False."""
    for dim, size in ((-2, height), (-1, width)):
        if coarse.shape[dim] == size:
            continue
        first, second, share = cells_of_pixels(coarse.shape[dim], size, coarse.device)
        share = share.to(coarse.dtype).view([-1, 1] if dim == -2 else [-1])
        coarse = coarse.index_select(dim, first) * (1 - share) + coarse.index_select(dim, second) * share
    return coarse


def _to_full_resolution_adjoint(fine: Tensor, height: int, width: int) -> Tensor:
    for dim, size in ((-2, height), (-1, width)):
        if fine.shape[dim] == size:
            continue
        first, second, share = cells_of_pixels(size, fine.shape[dim], fine.device)
        share = share.to(fine.dtype).view([-1, 1] if dim == -2 else [-1])
        shape = list(fine.shape)
        shape[dim] = size
        coarse = fine.new_zeros(shape)
        coarse.index_add_(fine.dim() + dim, first, fine * (1 - share))
        fine = coarse.index_add_(fine.dim() + dim, second, fine * share)
    return fine


def adaptive_fuse(images: Tensor, filters: list[Tensor], alphas: Tensor, padding_mode: str) -> Tensor:
    """Return sum_l alpha_l sum_n sum_taps f_l[tap] * image_n shifted by the tap: (B, N, C, H, W) -> (B, C, H, W)."""
    dtype = promoted_dtype(images, *filters)
    wide = accumulator(dtype)
    height, width = images.shape[-2:]
    images = images.to(wide)  # once, so that automatic differentiation sums its gradients in the wide dtype too
    total = images.new_zeros(images.shape[:1] + images.shape[2:])
    for level, alpha in zip(filters, alphas.to(wide).unbind(), strict=True):
        size = _side(level)
        padded = pad(images, size // 2, padding_mode)
        response = torch.zeros_like(total)
        for tap, taps in enumerate(level.to(wide).unbind(2)):
            dy, dx = divmod(tap, size)
            shifted = padded[..., dy : dy + height, dx : dx + width]
            response = response + (to_full_resolution(taps, height, width).unsqueeze(2) * shifted).sum(1)
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
            fine = to_full_resolution(level[:, :, tap].to(wide), height, width)
            taps.append(alpha * _to_full_resolution_adjoint(response, *level.shape[-2:]))
            alpha_grad = alpha_grad + (response * fine).sum()
            padded_grad[window] += alpha * g * fine.unsqueeze(2)
        filter_grads.append(torch.stack(taps, 2).to(level.dtype) if needed else level.new_empty(0))
        alpha_grads.append(alpha_grad)
        image_grad = image_grad + pad_adjoint(padded_grad, radius, padding_mode)
    alpha_grad = (
        torch.stack(alpha_grads)
        if need_alphas and alpha_grads
        else alphas.new_zeros(len(filters) if need_alphas else 0)
    )
    return (
        image_grad.to(images.dtype) if need_images else images.new_empty(0),
        filter_grads,
        alpha_grad.to(alphas.dtype),
    )


def predict_and_fuse(
    hidden: list[Tensor], weight: list[Tensor], bias: list[Tensor], images: Tensor, alphas: Tensor, padding_mode: str
) -> Tensor:
    """Return adaptive_fuse with filters that 1x1 convolutions predict from hidden maps (B, N, M, H, W)."""
    wide = accumulator(images.dtype)
    total = torch.zeros_like(images[:, 0], dtype=wide)
    for h, w, b, alpha in zip(hidden, weight, bias, alphas.to(wide).unbind(), strict=True):
        side = round(int(w.shape[0]) ** 0.5)
        padded = pad(images.to(wide), side // 2, padding_mode)
        kernels = torch.cat([w, b[:, None]], 1).to(wide).t().reshape(-1, 1, side, side)
        responses = F.conv2d(padded.flatten(0, 2).unsqueeze(1), kernels).unflatten(0, padded.shape[:3])
        ones = h.new_ones((*h.shape[:2], 1, *h.shape[3:]), dtype=wide)
        total = total + alpha * (torch.cat([h.to(wide), ones], 2).unsqueeze(2) * responses).sum((1, 3))
    return total.to(images.dtype)


def halve(images: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels: (..., H, W) -> (..., ceil(H / 2), ceil(W / 2)), an odd border repeated."""
    height, width = images.shape[-2:]
    if images.numel() == 0:  # torch's pooling and interpolation refuse empty tensors
        return images[..., ::2, ::2]
    flat = images.reshape(1, -1, height, width)
    return F.avg_pool2d(F.pad(flat, (0, width % 2, 0, height % 2), mode="replicate"), 2).unflatten(
        1, images.shape[:-2]
    )[0]


def expand(coarse: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Return (..., h, w) interpolated bilinearly between cell centres to (..., height, width), ``factor`` times finer.

    Beyond the outermost centres the border's value holds.
    """
    if factor == 1:
        return coarse[..., :height, :width]
    if coarse.numel() == 0:
        return coarse[..., :1, :1].expand(*coarse.shape[:-2], height, width)
    flat = coarse.reshape(1, -1, *coarse.shape[-2:])
    fine = F.interpolate(flat, scale_factor=float(factor), mode="bilinear", align_corners=False)
    return fine[..., :height, :width].unflatten(1, coarse.shape[:-2])[0]


def pyramid_sizes(height: int, width: int, bands: int) -> list[tuple[int, int]]:
    """Return height and width of every level of the pyramid, the base last."""
    return [(-(-height >> level), -(-width >> level)) for level in range(bands + 1)]


def pyramid_fuse(images: Tensor, weights: Tensor, base: Tensor, scale: int) -> Tensor:
    """Return the collapsed fused pyramid: (B, N, C, H, W) -> (B, C, H, W)."""
    wide = accumulator(images.dtype)
    weights, base = weights.to(wide), base.to(wide)
    bands = weights.shape[1]
    levels = [images.to(wide)]
    for _ in range(bands):
        levels.append(halve(levels[-1]))
    out = (expand(base, scale >> bands, *levels[-1].shape[-2:]).unsqueeze(2) * levels[-1]).sum(1)
    for level in reversed(range(bands)):
        size = levels[level].shape[-2:]
        band = levels[level] - expand(levels[level + 1], 2, *size)
        fine = expand(weights[:, level], scale >> level, *size).unsqueeze(2)
        out = expand(out, 2, *size) + (fine * band).sum(1)
    return out.to(images.dtype)


def _halve_adjoint(grad: Tensor, height: int, width: int) -> Tensor:
    fine = grad.repeat_interleave(2, -2).repeat_interleave(2, -1) / 4
    if height % 2:
        fine[..., height - 1, :] += fine[..., height, :]
    if width % 2:
        fine[..., width - 1] += fine[..., width]
    return fine[..., :height, :width]


def _expand_adjoint(grad: Tensor, factor: int, height: int, width: int) -> Tensor:
    if factor == 1:
        return F.pad(grad, (0, width - grad.shape[-1], 0, height - grad.shape[-2]))
    if grad.numel() == 0:
        return grad.new_zeros(*grad.shape[:-2], height, width)
    full = F.pad(grad, (0, factor * width - grad.shape[-1], 0, factor * height - grad.shape[-2]))
    flat = full.reshape(1, -1, *full.shape[-2:])
    size = [factor * height, factor * width]
    coarse = torch.ops.aten.upsample_bilinear2d_backward(
        flat, size, [1, flat.shape[1], height, width], False, float(factor), float(factor)
    )
    return coarse.unflatten(1, grad.shape[:-2])[0]


def pyramid_fuse_backward(
    grad: Tensor,
    images: Tensor,
    weights: Tensor,
    base: Tensor,
    scale: int,
    need_images: bool,
    need_weights: bool,
    need_base: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of images, weights and base; those that are not needed are empty."""
    wide = accumulator(images.dtype)
    bands = weights.shape[1]
    cells = base.shape[-2:]
    levels = [images.to(wide)]
    for _ in range(bands):
        levels.append(halve(levels[-1]))
    g = grad.to(wide)
    weight_grads, band_grads = [], []
    for level in range(bands):
        size = levels[level].shape[-2:]
        band = levels[level] - expand(levels[level + 1], 2, *size)
        weight_grads.append(_expand_adjoint((g.unsqueeze(1) * band).sum(2), scale >> level, *cells))
        band_grads.append(g.unsqueeze(1) * expand(weights[:, level].to(wide), scale >> level, *size).unsqueeze(2))
        g = _expand_adjoint(g, 2, *levels[level + 1].shape[-2:])
    base_grad = _expand_adjoint((g.unsqueeze(1) * levels[-1]).sum(2), scale >> bands, *cells)
    image_grad = g.unsqueeze(1) * expand(base.to(wide), scale >> bands, *g.shape[-2:]).unsqueeze(2)
    for level in reversed(range(bands)):
        coarse = image_grad - _expand_adjoint(band_grads[level], 2, *levels[level + 1].shape[-2:])
        image_grad = band_grads[level] + _halve_adjoint(coarse, *levels[level].shape[-2:])
    return (
        image_grad.to(images.dtype) if need_images else images.new_empty(0),
        torch.stack(weight_grads, 1).to(weights.dtype)
        if need_weights and bands
        else weights.new_zeros(weights.shape)
        if need_weights
        else weights.new_empty(0),
        base_grad.to(base.dtype) if need_base else base.new_empty(0),
    )
