"""The loss of PMGI: intensity and gradient of every source in fixed proportion."""

from __future__ import annotations

from torch import Tensor, nn

from ffmef.losses.edges import differences
from ffmef.losses.sources import Sources, check_fused


class PMGILoss(nn.Module):
    r"""Squared distance to all sources in intensity and gradient, with constant weights.

    .. math:: L = \sum_i \lambda \overline{(F - I_i)^2} + \mu \overline{|\nabla F - \nabla I_i|^2}

    (Zhang, Xu, Xiao, Guo, Ma: Rethinking the image fusion, AAAI 2020, eq. 5.) Gradients are forward differences.

    Args:
        intensity_weight: :math:`\lambda`.
        gradient_weight: :math:`\mu`.

    Raises:
        ValueError: when called, if the fused picture's shape differs from the sources'.

    Example:
        >>> import torch
        >>> sources = Sources.from_rgb(torch.zeros(1, 2, 3, 8, 8))
        >>> total, terms = PMGILoss()(sources.luminance[:, :1], sources)
        >>> total.item()
        0.0
    """

    def __init__(self, intensity_weight: float = 1.0, gradient_weight: float = 10.0):
        super().__init__()
        self.intensity_weight, self.gradient_weight = intensity_weight, gradient_weight

    def forward(self, fused: Tensor, sources: Sources) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and the unweighted terms of a fused luminance (B, 1, H, W) in [0, 1]."""
        difference = check_fused(fused, sources) - sources.luminance
        # The gradient is linear, so the difference of gradients is the gradient of the difference.
        dx, dy = differences(difference)
        intensity = difference.square().mean((0, 2, 3)).sum()
        gradient = dx.square().mean((0, 2, 3)).sum() + dy.square().mean((0, 2, 3)).sum()
        total = self.intensity_weight * intensity + self.gradient_weight * gradient
        return total, {"intensity": intensity, "gradient": gradient}
