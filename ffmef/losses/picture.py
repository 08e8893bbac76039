"""The loss on the finished picture, after colour merging and clipping: a weighted sum of named terms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ffmef.losses.sources import Sources, check_fused
from ffmef.losses.terms import TERMS, View

DEFAULT_WEIGHTS = {
    "structure": 4.0,
    "edge_structure": 3.0,
    "edge_strength": 4.0,
    "fidelity": 3.0,
    "flatness": 0.2,
    "contrast_loss": 1.0,
    "information_loss": 0.7,
    "dullness": 0.5,
    "clipping": 2.0,
}


class PictureLoss(nn.Module):
    r"""Weighted sum of :data:`ffmef.losses.terms.TERMS` on the RGB picture that the viewer sees.

    .. math:: P = \mathrm{RGB}(\operatorname{clamp}(F), C_b, C_r), \qquad L = \sum_t w_t\, L_t(\operatorname{clamp}(P))

    The merged chroma (FFMEF paper, eq. 1) does not follow the fused luminance, and R, G and B are clipped afterwards; a
    loss on luminance alone does not see the effect on the picture.

    Args:
        weights: the weight of each term, by name; None means :data:`DEFAULT_WEIGHTS`.
        grey: terms of edges and tones see the grey picture instead of R, G and B separately, at a third of the cost.
        brackets: weights that differ for more than two sources, by name; None means none.

    Raises:
        ValueError: a term is unknown, a weight is not finite, or no term has one.

    Example:
        >>> import torch
        >>> sources = Sources.from_rgb(torch.rand(1, 2, 3, 64, 64))
        >>> total, terms = PictureLoss({"structure": 1.0, "clipping": 2.0})(sources.luminance[:, :1], sources)
        >>> sorted(terms)
        ['clipping', 'structure']
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        *,
        grey: bool = False,
        brackets: Mapping[str, float] | None = None,
    ):
        super().__init__()
        self.grey = grey
        weights = dict(DEFAULT_WEIGHTS if weights is None else weights)
        self.weights, self.brackets = _checked(weights), _checked(weights | dict(brackets or {}))

    def forward(self, fused: Tensor, sources: Sources) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and the unweighted terms of a fused luminance (B, 1, H, W), not clipped."""
        fused = check_fused(fused, sources)
        unclipped = sources.picture(fused.clamp(0, 1))
        view = View(sources.rgb, unclipped.clamp(0, 1), unclipped, fused, grey=self.grey)
        weights = self.weights if sources.rgb.shape[1] == 2 else self.brackets
        terms = {name: TERMS[name](view) for name in weights}
        total = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        return total, terms


def _checked(weights: Mapping[str, float]) -> dict[str, float]:
    unknown = sorted(set(weights) - set(TERMS))
    if unknown:
        raise ValueError(f"weights must name terms of {sorted(TERMS)}, got {unknown[0]!r}")
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"weights must be finite, got {weight} for {name!r}")
    used = {name: float(weight) for name, weight in weights.items() if weight}
    if not used:
        raise ValueError(f"weights must give at least one term a weight, got {weights}")
    return used
