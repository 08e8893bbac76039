"""MEF-SSIM of the luminance as a loss, for comparison with GIF (FFMEF paper, Fig. 8)."""

from __future__ import annotations

from torch import Tensor, nn

from ffmef.losses.sources import Sources, check_fused
from ffmef.losses.structural import mef_ssim


class MEFSSIMLoss(nn.Module):
    """``1 - MEF-SSIM`` of the luminance (Ma, Zeng, Wang: IEEE TIP 2015); see :func:`ffmef.losses.mef_ssim`.

    Args:
        scales: number of scales, 1 to 3; the coarsest needs sides of 11 pixels.

    Raises:
        ValueError: when called, if the fused picture's shape differs from the sources', a picture is too small for the
            scales, or ``scales`` is out of range.

    Example:
        >>> import torch
        >>> sources = Sources.from_rgb(torch.rand(1, 1, 3, 64, 64).expand(1, 2, 3, 64, 64))
        >>> total, terms = MEFSSIMLoss()(sources.luminance[:, :1], sources)
        >>> round(total.item(), 4)
        0.0
    """

    def __init__(self, scales: int = 3):
        super().__init__()
        self.scales = scales

    def forward(self, fused: Tensor, sources: Sources) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a fused luminance (B, 1, H, W) in [0, 1], and the same value as its only term."""
        fused = check_fused(fused, sources)
        value = 1 - mef_ssim(sources.luminance.unsqueeze(2) * 255, fused * 255, scales=self.scales).mean()
        return value, {"structure": value}
