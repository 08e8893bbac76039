"""Separable windows, their statistics, and first derivatives of one channel."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ffmef import windows

STRIP_PIXELS = 1 << 16
SOBEL = (1, 2, 1)
PREWITT = (1, 1, 1)


@functools.lru_cache(maxsize=32)
def gaussian(size: int, sigma: float) -> np.ndarray:
    """Return the ``size`` samples of a Gaussian of ``sigma`` pixels, made to sum to 1."""
    return np.array(windows.gaussian(size, sigma))


def strips(height: int, width: int, margin: int, inside: bool) -> Iterator[tuple[slice, tuple[slice, slice]]]:
    """Cut a picture into strips of rows, which bound the memory and stay in cache.

    Yields the rows to read, ``margin`` more than the strip on both sides where the picture has them, and which part to
    keep. With ``inside``, only places at least ``margin`` away from the picture's border are kept.
    """
    frame = margin if inside else 0
    rows = max(8 * margin, STRIP_PIXELS // width)
    rows -= rows % 2  # even, so that every second row is the same with and without strips
    for top in range(frame, height - frame, rows):
        bottom = min(top + rows, height - frame)
        start, stop = max(top - margin, 0), min(bottom + margin, height)
        yield slice(start, stop), (slice(top - start, bottom - start), slice(frame, width - frame))


def _weighted(maps: np.ndarray, taps: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return means of float64 maps (M, H, W) in the windows inside them, then covariances of pairs of maps.

    Native code computes them where the library is built.
    """
    import torch

    from ffmef.ops.statistics import is_native

    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if is_native("window_moments"):
        arrays = torch.from_numpy(maps), torch.from_numpy(taps)
        return torch.ops.ffmef.window_moments(*arrays, first, second).numpy()
    return _weighted_cv2(maps, taps, pairs)


def _weighted_cv2(maps: np.ndarray, taps: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    import cv2

    margin = len(taps) // 2
    inside = slice(margin, maps.shape[1] - margin), slice(margin, maps.shape[2] - margin)
    values = [cv2.sepFilter2D(x, cv2.CV_64F, taps, taps)[inside] for x in maps]
    for a, b in pairs:
        product = cv2.sepFilter2D(maps[a] * maps[b], cv2.CV_64F, taps, taps)[inside]
        values.append(product - values[a] * values[b])
    return np.stack(values)


def _strip(
    maps: Sequence[np.ndarray] | np.ndarray, rows: slice, kept: tuple[slice, slice], margin: int, inside: bool
) -> np.ndarray:
    """Return rows of the maps as float64 (M, h, w); unless ``inside``, with the zeros beyond the border."""
    if inside:
        return np.stack([values[rows].astype(np.float64) for values in maps])
    top, bottom = margin - kept[0].start, margin - (rows.stop - rows.start - kept[0].stop)
    padded = np.zeros((len(maps), top + rows.stop - rows.start + bottom, maps[0].shape[1] + 2 * margin))
    for own, values in zip(padded, maps, strict=True):
        own[top : top + rows.stop - rows.start, margin : own.shape[1] - margin] = values[rows]
    return padded


def means(
    maps: Sequence[np.ndarray] | np.ndarray, rows: slice, kept: tuple[slice, slice], taps: np.ndarray
) -> np.ndarray:
    """Return the weighted sums of the maps around the places that a strip keeps, zeros outside the picture."""
    return _weighted(_strip(maps, rows, kept, len(taps) // 2, False), taps, ())


class Moments:
    """Means, variances and covariances of named maps in the windows of one strip.

    Covariances are those of every map with "f", and with ``of_sources`` those of every two sources.
    """

    def __init__(self, names: Sequence[str], strip: np.ndarray, taps: np.ndarray, of_sources: bool):
        pairs = [(name, name) for name in names] + [(name, "f") for name in names if name != "f"]
        if of_sources:
            pairs += itertools.combinations([name for name in names if name != "f"], 2)
        values = _weighted(strip, taps, [(names.index(x), names.index(y)) for x, y in pairs])
        self.mean = dict(zip(names, values, strict=False))
        self._covariance = dict(zip(pairs, values[len(names) :], strict=True))
        self.variance = {name: self._covariance[name, name] for name in names}

    def covariance(self, first: str, second: str) -> np.ndarray:
        return self._covariance[first, second]

    def similarity(self, first: str, second: str, c1: float, c2: float, covariance: np.ndarray | None = None):
        """Return the SSIM of two maps in each window."""
        if covariance is None:
            covariance = self.covariance(first, second)
        mean, other = self.mean[first], self.mean[second]
        value = (2 * mean * other + c1) * (2 * covariance + c2)
        value /= (mean * mean + other * other + c1) * (self.variance[first] + self.variance[second] + c2)
        return value


def moments(
    maps: dict[str, np.ndarray], taps: np.ndarray, *, inside: bool = True, of_sources: bool = False
) -> Iterator[Moments]:
    """Yield the float64 statistics of a picture's windows, strip by strip.

    The windows lie inside the picture, or surround every pixel with zeros outside.
    """
    names, values, margin = list(maps), list(maps.values()), len(taps) // 2
    height, width = values[0].shape
    for rows, kept in strips(height, width, margin, inside):
        yield Moments(names, _strip(values, rows, kept, margin, inside), taps, of_sources)


def halved(maps: dict[str, np.ndarray], taps: np.ndarray) -> dict[str, np.ndarray]:
    """Return every second weighted sum, starting with the first, over the windows inside the picture."""
    margin, values = len(taps) // 2, list(maps.values())
    height, width = values[0].shape
    parts = [
        _weighted(_strip(values, rows, kept, margin, True), taps, ())[:, ::2, ::2]
        for rows, kept in strips(height, width, margin, inside=True)
    ]
    return dict(zip(maps, np.concatenate(parts, axis=1), strict=True))


def derivatives(values: np.ndarray, smoothing: tuple[int, int, int], border: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact derivatives of a uint8 channel to the right and upward, 3 x 3, as int32.

    ``border`` is "zeros", "replicate" or "mirror" (about the centre of the outermost pixels).
    """
    mode: Any = {"zeros": "constant", "replicate": "edge", "mirror": "reflect"}[border]
    padded = np.pad(values.astype(np.int16), 1, mode=mode)
    before, here, after = smoothing
    rows = before * padded[:-2] + here * padded[1:-1] + after * padded[2:]
    columns = before * padded[:, :-2] + here * padded[:, 1:-1] + after * padded[:, 2:]
    dx, dy = rows[:, 2:] - rows[:, :-2], columns[:-2] - columns[2:]
    return dx.astype(np.int32), dy.astype(np.int32)


def magnitude(values: np.ndarray, smoothing: tuple[int, int, int], border: str) -> np.ndarray:
    """Return the float64 length of the gradient that :func:`derivatives` gives."""
    dx, dy = derivatives(values, smoothing, border)
    return np.sqrt(dx * dx + dy * dy)
