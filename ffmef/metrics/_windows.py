"""Separable windows, their statistics, and first derivatives of one channel."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

STRIP_PIXELS = 1 << 16
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


def strips(height: int, width: int, margin: int, inside: bool) -> Iterator[tuple[slice, tuple[slice, slice]]]:
    """Cut a picture into strips of rows, which bound the memory and stay in cache.

    Yields the rows to read, ``margin`` more than the strip on both sides where the picture has them, and what to keep
    of them. If ``inside`` only places at least ``margin`` away from the picture's border are kept.
    """
    frame = margin if inside else 0
    rows = max(8 * margin, STRIP_PIXELS // width)
    rows -= rows % 2  # so that every second row is the same with and without strips
    for top in range(frame, height - frame, rows):
        bottom = min(top + rows, height - frame)
        start, stop = max(top - margin, 0), min(bottom + margin, height)
        yield slice(start, stop), (slice(top - start, bottom - start), slice(frame, width - frame))


class Moments:
    """Means, variances and covariances of named maps in the windows around the places to keep."""

    def __init__(self, maps: dict[str, np.ndarray], taps: np.ndarray, kept: tuple[slice, slice]):
        self._maps, self._taps, self._kept = maps, taps, kept
        self.mean = {name: same(values, taps)[kept] for name, values in maps.items()}
        self.variance = {name: self.covariance(name, name) for name in maps}

    def covariance(self, first: str, second: str) -> np.ndarray:
        value = same(self._maps[first] * self._maps[second], self._taps)[self._kept]
        value -= self.mean[first] * self.mean[second]
        return value

    def similarity(self, first: str, second: str, c1: float, c2: float, covariance: np.ndarray | None = None):
        """SSIM of two maps in each window."""
        if covariance is None:
            covariance = self.covariance(first, second)
        mean, other = self.mean[first], self.mean[second]
        value = (2 * mean * other + c1) * (2 * covariance + c2)
        value /= (mean * mean + other * other + c1) * (self.variance[first] + self.variance[second] + c2)
        return value


def moments(maps: dict[str, np.ndarray], taps: np.ndarray, *, inside: bool = True) -> Iterator[Moments]:
    """Yield the float64 statistics of a picture's windows, strip by strip.

    Of the windows that lie inside the picture, or around every pixel with zeros outside.
    """
    height, width = next(iter(maps.values())).shape
    for rows, kept in strips(height, width, len(taps) // 2, inside):
        yield Moments({name: values[rows].astype(np.float64) for name, values in maps.items()}, taps, kept)


def halved(values: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Return every second weighted sum, from the first, over the windows that lie inside the picture."""
    return np.concatenate(
        [
            same(values[rows].astype(np.float64), taps)[kept][::2, ::2]
            for rows, kept in strips(*values.shape, len(taps) // 2, inside=True)
        ]
    )


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
