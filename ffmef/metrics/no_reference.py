"""Metrics of the fused picture alone, from packages that ship their models."""

from __future__ import annotations

import functools

import numpy as np

from ffmef.metrics._channels import Pictures


@functools.lru_cache(maxsize=1)
def _brisque_model():
    try:
        from brisque import BRISQUE
    except ImportError as error:
        raise ImportError(f"BRISQUE needs {error.name}: pip install 'ffmef[no-reference]'") from None

    class Model(BRISQUE):
        def scale_features(self, features):
            # Some features are arrays of one element, which recent NumPy does not take for numbers.
            return super().scale_features(np.array([np.asarray(x).item() for x in features]))

    return Model(url=False)


def brisque_of_pictures(pictures: Pictures) -> float:
    fused = pictures.fused
    if min(fused.shape[:2]) < 16:
        return float("nan")
    return float(_brisque_model().score(fused if fused.ndim == 3 else np.repeat(fused[..., None], 3, 2)))


def brisque(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    """Naturalness of the fused picture by the statistics of its contrasts, BRISQUE.

    Support vector regression from 36 parameters of generalised Gaussians fitted to locally normalised luminance and its
    products with neighbours, at two scales; computed by the package ``brisque``, which ships the model. Lower is
    better; about 0 to 100. NaN for sides under 16 pixels. Source: Mittal, Moorthy, Bovik, IEEE TIP 2012. The model was
    trained on compressed, blurred and noisy pictures, not on fused ones.

    Args:
        a: a source, uint8 (H, W, 3) or (H, W), NumPy or torch; only its size is looked at.
        b: the other source, of the same size.
        fused: the fused picture, of the same size.

    Raises:
        ImportError: without the package (``pip install 'ffmef[no-reference]'``).
        ValueError: for pictures that are not whole grey levels 0..255 or whose sizes or colours do not fit.
    """
    return brisque_of_pictures(Pictures(a, b, fused))
