"""The loss against a known picture, for scenes that are made rather than photographed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ffmef.losses.sources import Sources, check_floating


class TruthLoss(nn.Module):
    r"""Mean over the batch of the mean squared error in decibels, relative to one squared grey level of 255.

    .. math:: L = \frac{10}{B} \sum_b \log_{10}\bigl(255^2 \operatorname{mean}((F_b - T_b)^2) + f\bigr)

    Apart from the floor f it is -PSNR + 48.13 dB: an easy scene counts as much as one that nobody can fuse well.

    Args:
        floor: f, in squared grey levels; improving on smaller errors earns almost nothing.

    Raises:
        ValueError: ``floor`` is not positive.

    Example:
        >>> import torch
        >>> sources = Sources.from_rgb(torch.zeros(1, 2, 3, 8, 8), truth=torch.zeros(1, 3, 8, 8))
        >>> total, terms = TruthLoss(floor=1e-3)(torch.full((1, 3, 8, 8), 10 / 255), sources)
        >>> round(total.item(), 2), sorted(terms)
        (20.0, ['decibels'])
    """

    def __init__(self, floor: float = 0.02):
        super().__init__()
        if not 0 < floor < math.inf:
            raise ValueError(f"floor must be positive and finite, got {floor}")
        self.floor = float(floor)

    def forward(self, fused: Tensor, sources: Sources) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its only term for a fused picture (B, 3, H, W) or luminance (B, 1, H, W), not clipped."""
        check_floating(fused)
        if sources.truth is None:
            raise ValueError("sources must hold the truth for this loss, got None")
        truth = sources.truth if fused.shape[1:2] == (3,) else sources.true_luminance
        if fused.shape != truth.shape:
            raise ValueError(f"fused must be {tuple(truth.shape)} like the truth, got {tuple(fused.shape)}")
        errors = (fused.to(torch.promote_types(fused.dtype, torch.float32)) - truth).square().mean((1, 2, 3)) * 255**2
        decibels = 10 * torch.log10(errors + self.floor).mean()
        return decibels, {"decibels": decibels}
