"""Separable windows and first derivatives of one channel."""

from __future__ import annotations

import functools

import numpy as np

SOBEL = (1.0, 2.0, 1.0)
PREWITT = (1.0, 1.0, 1.0)
_DIFFERENCE = np.array([-1.0, 0.0, 1.0])


@functools.lru_cache(maxsize=32)
def gaussian(size: int, sigma: float) -> np.ndarray:
    """Return the ``size`` samples of a Gaussian of ``sigma`` pixels, made to sum to 1."""
    offsets = np.arange(size) - (size - 1) / 2
    taps = np.exp(-(offsets**2) / (2 * sigma**2))
    return taps / taps.sum()


def same(values: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Weighted sum over the window around every pixel, zeros outside the picture."""
    import cv2

    return cv2.sepFilter2D(values, cv2.CV_64F, taps, taps, borderType=cv2.BORDER_CONSTANT)


def valid(values: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Weighted sum over every window that lies inside the picture."""
    border = len(taps) // 2
    height, width = values.shape
    return same(values, taps)[border : height - border, border : width - border]


def derivatives(values: np.ndarray, smoothing: tuple[float, ...], border: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact derivatives of a uint8 channel to the right and upward, 3 x 3, as int32.

    ``border`` is "zeros" or "replicate".
    """
    import cv2

    border_type = {"zeros": cv2.BORDER_CONSTANT, "replicate": cv2.BORDER_REPLICATE}[border]
    smooth = np.array(smoothing)
    return tuple(
        cv2.sepFilter2D(values, cv2.CV_16S, x_taps, y_taps, borderType=border_type).astype(np.int32)
        for x_taps, y_taps in ((_DIFFERENCE, smooth), (smooth, -_DIFFERENCE))
    )


def magnitude(values: np.ndarray, smoothing: tuple[float, ...], border: str) -> np.ndarray:
    """Return the float64 length of the gradient that :func:`derivatives` gives."""
    dx, dy = derivatives(values, smoothing, border)
    return np.sqrt(dx * dx + dy * dy)
