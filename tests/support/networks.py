"""Random FFMEF networks and luminance, and how the whole-network operator is compared with float64 layers."""

from __future__ import annotations

import torch

from ffmef.models import FFMEF

TOLERANCE = 1e-4


def random_model(channels: int = 4, kernel_sizes: tuple[int, ...] = (1, 3, 5), seed: int = 0) -> FFMEF:
    """Return a network in which no two parameters are alike, so that any mistaken order shows."""
    torch.manual_seed(seed)
    model = FFMEF(channels, kernel_sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        # Scales outputs to the size for which the absolute tolerance is meant.
        model.fuse.alphas.mul_(1 / model(random_luminance(64, 64)).abs().max())
    return model


def random_luminance(height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 2, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (0.8 * smooth + 0.2 * torch.rand(batch, 2, height, width, generator=generator)).contiguous()


def eager64(model: FFMEF, luminance: torch.Tensor) -> torch.Tensor:
    model.backend = "eager"
    with torch.inference_mode():
        out = model.double()(luminance.double())
    model.float()
    return out


def fused(model: FFMEF, luminance: torch.Tensor) -> torch.Tensor:
    model.backend = "fused"
    with torch.inference_mode():
        return model(luminance)


def worst(out: torch.Tensor, expected: torch.Tensor) -> float:
    assert out.shape == expected.shape
    assert out.dtype == torch.float32
    return float((out - expected).abs().max())
