"""Image gradients by shifted differences: no kernel tensors, no single-channel convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scharr(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the horizontal and vertical Scharr derivative (3, 10, 3), borders replicated.

    Args:
        pictures: (..., H, W), any floating dtype.

    Returns:
        Two tensors like ``pictures``; a step of height 1 gives 16.

    Example:
        >>> import torch
        >>> scharr(torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4))[0][1]
        tensor([ 0., 16., 16.,  0.])
    """
    return _separable(pictures, 3.0, 10.0)


def sobel(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the horizontal and vertical Sobel derivative (1, 2, 1), borders replicated; a unit step gives 4."""
    return _separable(pictures, 1.0, 2.0)


def prewitt(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the horizontal and vertical Prewitt derivative (1, 1, 1), borders replicated; a unit step gives 3."""
    return _separable(pictures, 1.0, 1.0)


def differences(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the forward differences (..., H, W-1) and (..., H-1, W), without a border rule."""
    return pictures[..., :, 1:] - pictures[..., :, :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def magnitude(dx: Tensor, dy: Tensor, floor: float = 1e-8) -> Tensor:
    """Return ``sqrt(dx^2 + dy^2 + floor)``; the floor keeps the slope finite where both are 0."""
    return torch.sqrt(dx * dx + dy * dy + floor)


def gif_gradient(luminance: Tensor) -> Tensor:
    """Return the gradient of the GIF loss: half the sum of the absolute Scharr derivatives, each clipped at 1.

    ``0.5 min(|g_x|, 1) + 0.5 min(|g_y|, 1)`` for a picture in [0, 1] is the paper's gradient of the 0..255 picture,
    clipped at 255 and divided by 255.

    Args:
        luminance: (..., H, W) in [0, 1].

    Returns:
        The same shape, in [0, 1].
    """
    dx, dy = scharr(luminance)
    return 0.5 * (dx.abs().clamp(max=1) + dy.abs().clamp(max=1))


def _separable(pictures: Tensor, side: float, middle: float) -> tuple[Tensor, Tensor]:
    shape = pictures.shape
    padded = F.pad(pictures.reshape(-1, 1, *shape[-2:]), (1, 1, 1, 1), mode="replicate")
    across = padded[..., :, 2:] - padded[..., :, :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    dx = side * (across[..., :-2, :] + across[..., 2:, :]) + middle * across[..., 1:-1, :]
    dy = side * (down[..., :, :-2] + down[..., :, 2:]) + middle * down[..., :, 1:-1]
    return dx.reshape(shape), dy.reshape(shape)
