"""The gradient-driven unsupervised loss of FFMEF."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffmef.losses.edges import gif_gradient
from ffmef.losses.sources import Sources, check_fused


class GIFLoss(nn.Module):
    r"""Steep, smooth and global terms of the gradient-driven image fidelity loss (FFMEF paper, eq. 6 to 11).

    .. math:: L = \lambda_1 \sum_i \overline{m_i |F - I_i|} + \overline{m_s |F - \sum_i S_i I_i|}
              + \lambda_2 \overline{|\nabla F - \max_i \nabla I_i|}

    :math:`m_i` marks the pixels with a gradient of at least ``threshold`` in their 3 x 3 neighbourhood of source i,
    :math:`m_s` those that no source marks. :math:`S` is the softmax over the sources of the softmax of their
    saturation :math:`|C_b - 0.5| + |C_r - 0.5|`, with chroma in [0, 1]. :math:`\nabla` is
    :func:`ffmef.losses.edges.gif_gradient`. Overlines are means over all pixels of the batch.

    Args:
        steep_weight: :math:`\lambda_1`.
        global_weight: :math:`\lambda_2`; 0 drops the global term (Fig. 7).
        threshold: of the gradient, in [0, 1].
        masks: ``"threshold"``; or ``"gradient"``, the raw gradients as weights instead of the steep and smooth
            terms (Fig. 7): :math:`\sum_i \overline{\nabla I_i |F - I_i|}`.
        saturation: True weights the smooth target by saturation, False takes the plain average (Fig. 7).
        variant: ``"paper"``; or ``"release"``, whose softmax of two sources overwrites the first weight before the
            second is formed, so that they do not sum to 1.

    Raises:
        ValueError: a switch is unknown; when called, if ``variant="release"`` gets other than two sources.

    Example:
        >>> import torch
        >>> sources = Sources.from_rgb(torch.rand(1, 2, 3, 16, 16))
        >>> total, terms = GIFLoss()(sources.luminance[:, :1], sources)
        >>> sorted(terms)
        ['global', 'smooth', 'steep']
    """

    def __init__(
        self,
        steep_weight: float = 1.25,
        global_weight: float = 2.0,
        threshold: float = 0.5,
        *,
        masks: str = "threshold",
        saturation: bool = True,
        variant: str = "paper",
    ):
        super().__init__()
        if masks not in ("threshold", "gradient"):
            raise ValueError(f"masks must be 'threshold' or 'gradient', got {masks!r}")
        if variant not in ("paper", "release"):
            raise ValueError(f"variant must be 'paper' or 'release', got {variant!r}")
        for name, value in (("steep_weight", steep_weight), ("global_weight", global_weight), ("threshold", threshold)):
            if math.isnan(value):
                raise ValueError(f"{name} must be a number, got {value}")
        self.steep_weight, self.global_weight, self.threshold = steep_weight, global_weight, threshold
        self.masks, self.saturation, self.variant = masks, saturation, variant

    @torch.no_grad()
    def source_maps(self, sources: Sources, gradients: Tensor | None = None) -> Tensor:
        """Return what the loss needs besides the sources' luminance; compute it once per scene.

        Args:
            sources: the scene.
            gradients: (B, N, H, W), replace our own source gradients.

        Returns:
            (B, N + 2, H, W): a weight map for each source, the smooth target (free of NaN; -1 where a source is steep),
            and the largest source gradient. Flipping the scene flips the maps.
        """
        luminance = sources.luminance
        gradients = gif_gradient(luminance) if gradients is None else gradients
        if gradients.shape != luminance.shape:
            raise ValueError(f"gradients must be {tuple(luminance.shape)}, got {tuple(gradients.shape)}")
        strongest = gradients.amax(1, keepdim=True)
        if self.masks == "gradient":
            return torch.cat([gradients, torch.full_like(strongest, -1), strongest], 1)
        steep = F.max_pool2d(gradients, 3, 1, 1) >= self.threshold
        if self.saturation:
            target = (self._saturation_weights(sources.chroma) * luminance).sum(1, keepdim=True)
        else:
            target = luminance.mean(1, keepdim=True)
        target = torch.where(steep.any(1, keepdim=True), -1, target)
        return torch.cat([steep.to(luminance.dtype), target, strongest], 1)

    def _saturation_weights(self, chroma: Tensor) -> Tensor:
        saturation = (chroma - 0.5).abs().sum(2)
        if self.variant == "paper":
            return saturation.softmax(1).softmax(1)
        if saturation.shape[1] != 2:
            raise ValueError(f"variant 'release' needs 2 sources, got {saturation.shape[1]}")
        return _overwritten_softmax(_overwritten_softmax(saturation))

    def forward(self, fused: Tensor, sources: Sources, maps: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and the unweighted terms of a fused luminance (B, 1, H, W) in [0, 1].

        Args:
            fused: the network's output; half precision is computed in float32.
            sources: the scene.
            maps: :meth:`source_maps` of the scene, if already computed.
        """
        fused = check_fused(fused, sources)
        maps = self.source_maps(sources) if maps is None else maps
        count = sources.luminance.shape[1]
        weights, target, strongest = maps[:, :count], maps[:, count : count + 1], maps[:, count + 1 :]
        steep = (weights * (fused - sources.luminance).abs()).mean((0, 2, 3)).sum()
        smooth = ((target >= 0) * (fused - target).abs()).mean()
        terms = {"steep": steep, "smooth": smooth}
        total = self.steep_weight * steep + smooth
        if self.global_weight:
            terms["global"] = (gif_gradient(fused) - strongest).abs().mean()
            total = total + self.global_weight * terms["global"]
        return total, terms


def _overwritten_softmax(values: Tensor) -> Tensor:
    first, second = values[:, :1].exp(), values[:, 1:].exp()
    first = first / (first + second)
    return torch.cat([first, second / (first.exp() + second)], 1)
