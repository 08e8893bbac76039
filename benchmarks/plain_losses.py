"""The training losses with plain torch operators: a convolution for every derivative, a copy of every patch.

Nothing of the sources is kept between calls and every kernel tensor is made anew, as in the paper's release.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ffmef.losses import Sources


def gif(fused: Tensor, sources: Sources) -> Tensor:
    """The paper's equations 6 to 11 on a fused luminance (B, 1, H, W) in [0, 1]."""
    images = sources.luminance.split(1, dim=1)
    gradients = [scharr(image) for image in images]
    masks = [(F.max_pool2d(gradient, 3, stride=1, padding=1) >= 0.5).to(fused.dtype) for gradient in gradients]
    smooth = 1 - torch.stack(masks).amax(0)
    saturation = (sources.chroma - 0.5).abs().sum(2)
    weights = torch.softmax(torch.softmax(saturation, dim=1), dim=1).split(1, dim=1)
    steep_term = sum((mask * (fused - image).abs()).mean() for mask, image in zip(masks, images, strict=True))
    target = sum(weight * image for weight, image in zip(weights, images, strict=True))
    smooth_term = (smooth * (fused - target).abs()).mean()
    global_term = (scharr(fused) - torch.stack(gradients).amax(0)).abs().mean()
    return 1.25 * steep_term + smooth_term + 2 * global_term


def scharr(image: Tensor) -> Tensor:
    """Half the sum of the absolute derivatives of the 0..255 image, each clipped at 255, divided by 255."""
    kernel = torch.tensor([[-3.0, 0, 3], [-10, 0, 10], [-3, 0, 3]], dtype=image.dtype, device=image.device)
    padded = F.pad(image * 255, (1, 1, 1, 1), mode="replicate")
    dx, dy = F.conv2d(padded, kernel[None, None]).abs(), F.conv2d(padded, kernel.T[None, None]).abs()
    return (0.5 * dx.clamp(max=255) + 0.5 * dy.clamp(max=255)) / 255


def mef_ssim(fused: Tensor, sources: Sources) -> Tensor:
    """One minus MEF-SSIM at three scales (Ma et al. 2015), from explicit 11 x 11 patches of every image."""
    images, fused = sources.luminance * 255, fused * 255
    exponents = torch.tensor([0.0448, 0.2856, 0.3001])
    score = 1.0
    for level, exponent in enumerate(exponents / exponents.sum()):
        if level:
            images, fused = halve(images), halve(fused)
        score = score * structure(images, fused).clamp(min=0) ** exponent
    return 1 - score.mean()


def halve(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return F.avg_pool2d(F.pad(images, (0, width % 2, 0, height % 2), mode="replicate"), 2)


def structure(images: Tensor, fused: Tensor) -> Tensor:
    """Return the mean similarity of the fused patches with the desired patches of one scale, (B,)."""
    patches = torch.stack([F.unfold(image, 11) for image in images.split(1, dim=1)], dim=1)  # B, N, 121, windows
    patches = patches - patches.mean(2, keepdim=True)
    norms = patches.norm(dim=2, keepdim=True)
    consistency = patches.sum(1, keepdim=True).norm(dim=2, keepdim=True) / norms.sum(1, keepdim=True).clamp(min=1e-12)
    power = torch.tan(consistency.clamp(0, 0.99) * (math.pi / 2)).clamp(max=10)
    energies = norms + 0.001
    weights = (energies / 11) ** power + 2.0**-52
    desired = (weights / weights.sum(1, keepdim=True) * patches / energies).sum(1)
    length = desired.norm(dim=1, keepdim=True)
    desired = desired * torch.where(length > 0, energies.amax(1) / length, 0)
    window = torch.exp(-((torch.arange(11.0, device=fused.device) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(window, window).flatten()
    window = (window / window.sum()).to(fused.dtype)[None, :, None]
    own = F.unfold(fused, 11)
    own_mean, desired_mean = (own * window).sum(1), (desired * window).sum(1)
    own_variance = (own * own * window).sum(1) - own_mean**2
    desired_variance = (desired * desired * window).sum(1) - desired_mean**2
    covariance = (own * desired * window).sum(1) - own_mean * desired_mean
    constant = (0.03 * 255) ** 2
    return ((2 * covariance + constant) / (own_variance + desired_variance + constant)).mean(1)
