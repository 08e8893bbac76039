"""Edge maps for FMI, and how much two 3 x 3 windows of such maps say about each other."""

from __future__ import annotations

import numpy as np

from ffmef.metrics import _windows

CODES = 512  # of the nine binary pixels of a window
_known = np.full((CODES, CODES), np.nan)  # scores computed so far; pictures share most of theirs


def edge_map(levels: np.ndarray) -> np.ndarray:
    """Return the thinned Sobel edges (uint8 0 or 1) of a channel.

    An edge is stronger than four times the mean squared gradient and at least as strong as its neighbours on either
    side.
    The rule for ties is the toolkit's: the earlier neighbour may be equal, the later one must be weaker.
    """
    dx, dy = _windows.derivatives(levels, _windows.SOBEL, "replicate")
    strength = dx * dx + dy * dy
    horizontal, vertical = np.abs(dx), np.abs(dy)
    across_x = horizontal >= vertical
    across_x[:, 1:] &= strength[:, :-1] <= strength[:, 1:]
    across_x[:, :-1] &= strength[:, :-1] > strength[:, 1:]
    across_y = vertical >= horizontal
    across_y[1:] &= strength[:-1] <= strength[1:]
    across_y[:-1] &= strength[:-1] > strength[1:]
    mean = strength.sum(dtype=np.int64) / strength.size
    return ((strength > 4 * mean) & (across_x | across_y)).view(np.uint8)


def window_codes(edges: np.ndarray) -> np.ndarray:
    """Return the nine pixels of every 3 x 3 window inside the map as bits, column by column from the lowest."""
    columns = (edges[:-2] | edges[1:-1] << 1 | edges[2:] << 2).astype(np.uint16)
    return columns[:, :-2] | columns[:, 1:-1] << 3 | columns[:, 2:] << 6


def scores(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the scores of pairs of window codes."""
    missing = np.isnan(_known[first, second])
    if missing.any():
        pairs = first[missing], second[missing]
        _known[pairs] = _score(*pairs)
    return _known[first, second]


def _entropy(mass: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    size = np.abs(mass)  # a mixture of bounds may be negative; the toolkit keeps the real part of its logarithm
    return -(mass * np.log2(size, out=np.zeros_like(size), where=size > 0)).sum(axes)


def _score(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Normalised mutual information of two windows, from a joint distribution between Frechet's bounds."""
    bits = np.arange(9)

    def distribution(codes: np.ndarray) -> np.ndarray:
        pixels = (codes[:, None] >> bits & 1).astype(np.float64)
        pixels[codes == 0] = 1
        return pixels / pixels.sum(1, keepdims=True)

    def deviation(mass: np.ndarray) -> np.ndarray:
        mean = (mass * bits).sum(1, keepdims=True)
        return np.sqrt((mass * (bits - mean) ** 2).sum(1))

    a, f = distribution(first), distribution(second)
    centred_a, centred_f = a - 1 / 9, f - 1 / 9
    covariance = (centred_a * centred_f).sum(1)
    covariance[np.abs(covariance) < 1e-14] = 0  # masses are at the finest multiples of 1/72: anything below is rounding
    spread = np.sqrt((centred_a**2).sum(1) * (centred_f**2).sum(1))
    correlation = np.divide(covariance, spread, out=np.zeros_like(spread), where=covariance != 0)

    cumulative_a, cumulative_f = a.cumsum(1)[:, :, None], f.cumsum(1)[:, None, :]
    upper = np.minimum(cumulative_a, cumulative_f)
    lower = np.maximum(cumulative_a + cumulative_f - 1, 0)
    bound = np.where((correlation >= 0)[:, None, None], upper, lower)
    extreme = (bound - cumulative_a * cumulative_f).sum((1, 2))
    deviations = deviation(a) * deviation(f)
    usable = (deviations > 0) & (correlation != 0)
    share = np.divide(correlation * deviations, extreme, out=np.zeros_like(extreme), where=usable)

    mass = np.diff(np.diff(bound, axis=1, prepend=0), axis=2, prepend=0)
    share = share[:, None, None]
    joint = share * mass + (1 - share) * a[:, :, None] * f[:, None, :]
    total = _entropy(a, (1,)) + _entropy(f, (1,))
    information = total - _entropy(joint, (1, 2))
    score = np.divide(2 * information, total, out=np.zeros_like(total), where=total > 0)
    score[first == second] = 1
    return score
