"""The coarse predictor of FirstPyramidFFMEF on the CPU, without derivatives: what a finished model needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffmef import _loader
from ffmef.ops.library import define, library, operator

CHANNEL_BLOCK = 16


def available(half: Tensor, channels: Sequence[int], stem: int) -> bool:
    """Return whether :func:`pyramid_predict` can run a predictor of these sizes on this input."""
    return (
        _loader.cpu_missing is None
        and half.device.type == "cpu"
        and half.dtype == torch.float32
        and all(c % CHANNEL_BLOCK == 0 for c in channels)
        and len(channels) <= 8
        and stem <= CHANNEL_BLOCK
    )


def pyramid_predict(
    half: Tensor, parameters: Sequence[Tensor], channels: Sequence[int], stem: int, bands: int
) -> tuple[Tensor, Tensor]:
    """Return the weights of the bands and of the base as ``FirstPyramidFFMEF.predict_weights`` does, without
    derivatives.

    Args:
        half: (N, H, W), float32 luminance in [0, 1] at half size, on the CPU.
        parameters: of ``FirstPyramidFFMEF.predictor``, in the order of its own ``parameters()``, float32.
        channels: of the predictor, multiples of 16.
        stem: of the predictor, at most 16.
        bands: L.

    Returns:
        (L, N, ceil(H / 4), ceil(W / 4)) and (N, ceil(H / 4), ceil(W / 4)), float32.

    Raises:
        RuntimeError: the sizes do not fit, or there is no native library.

    Example:
        >>> import torch
        >>> from ffmef.models.pyramid_first import FirstPyramidFFMEF
        >>> model = FirstPyramidFFMEF()
        >>> weights, base = pyramid_predict(torch.rand(2, 20, 30), list(model.predictor.parameters()), (16, 16, 32,
        32), 8, 3)
        >>> weights.shape, base.shape
        (torch.Size([3, 2, 5, 8]), torch.Size([2, 5, 8]))
    """
    return operator("pyramid_predict")(half, list(parameters), list(channels), stem, bands)


define("pyramid_predict(Tensor half, Tensor[] parameters, int[] channels, int stem, int bands) -> (Tensor, Tensor)")


@torch.library.register_fake("ffmef::pyramid_predict", lib=library)
def _(half, parameters, channels, stem, bands):
    count, height, width = half.shape
    cells = ((height + 3) // 4, (width + 3) // 4)
    return half.new_empty((bands, count, *cells)), half.new_empty((count, *cells))
