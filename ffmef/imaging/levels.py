"""Levels 0..255 of pictures of any depth, and which levels of two exposures of a scene correspond."""

from __future__ import annotations

import numpy as np

NEIGHBOURS = 8  # levels on either side, whose pixels count for the spread of one


def to_levels(picture: np.ndarray) -> np.ndarray:
    """Return samples on 0..255, float32.

    Example:
        >>> to_levels(np.array([0, 257, 65535], np.uint16)).tolist()
        [0.0, 1.0, 255.0]
    """
    scale = 255.0 if picture.dtype.kind == "f" else 1 / 257 if picture.dtype == np.uint16 else 1.0
    return picture.astype(np.float32) * np.float32(scale)


def from_levels(levels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return levels on 0..255 as samples of a dtype; what lies beyond is limited.

    Example:
        >>> from_levels(np.array([-1.0, 1.5, 300.0]), np.dtype(np.uint16)).tolist()
        [0, 386, 65535]
    """
    if dtype.kind == "f":
        return (levels / 255).clip(0, 1).astype(dtype)
    return np.rint(levels.clip(0, 255) * (257 if dtype == np.uint16 else 1)).astype(dtype)


def learnt_curve(seen: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each level 0..255 of ``seen``, the level of ``wanted`` that it predicts and the spread around it.

    Of all curves that rise with the level, as brightness does, this one has the least sum of distances over all pixels:
    medians that whatever moved can bend only where it outnumbers what stayed still. Rare levels lie between their
    neighbours. The spread is 1.4826 times the median distance from the curve, or from the levels' own medians if that
    is less: the standard deviation if the spread is Gaussian noise, over the level and its neighbours.

    Example:
        >>> curve, spread = learnt_curve(np.arange(0, 120.0), np.arange(0, 240.0, 2))
        >>> curve[[10, 50, 100]].tolist(), spread[50]
        ([20.0, 100.0, 200.0], np.float32(0.0))
    """
    joint = np.histogram2d(seen.ravel(), wanted.ravel(), bins=256, range=((-0.5, 255.5), (-0.5, 255.5)))[0]
    # Levels share their neighbours' counts: rare ones then have a median, too.
    joint = joint + 0.5 * (np.roll(joint, 1, 0) + np.roll(joint, -1, 0)) * _inner()
    counts = joint.sum(1)
    seen_levels = np.flatnonzero(counts >= max(4.0, 2e-5 * counts.sum()))
    if not seen_levels.size:  # a picture of a few pixels
        seen_levels = np.flatnonzero(counts)
    every = np.arange(256)
    joint = joint[seen_levels]
    middle = _rising_medians(joint)
    # Around the levels' own medians, if that is less: else what moved everywhere would widen what is taken as noise.
    own = (joint.cumsum(1) < joint.sum(1, keepdims=True) / 2).sum(1)
    spread = np.minimum(_spread(joint, middle, seen_levels), _spread(joint, own, seen_levels))
    return (
        np.interp(every, seen_levels, middle).astype(np.float32),
        np.interp(every, seen_levels, spread).astype(np.float32),
    )


def _spread(joint: np.ndarray, middle: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return 1.4826 times the median distance of what is counted from ``middle``, over each level and those around."""
    rows, columns = np.nonzero(joint)
    distances = np.zeros_like(joint)
    np.add.at(distances, (rows, np.abs(columns - middle[rows])), joint[rows, columns])
    sums = np.concatenate([np.zeros((1, 256)), distances.cumsum(0)])
    first = np.searchsorted(levels, levels - NEIGHBOURS)
    last = np.searchsorted(levels, levels + NEIGHBOURS, side="right")
    around = (sums[last] - sums[first]).cumsum(1)
    return 1.4826 * (around < around[:, -1:] / 2).sum(1)


def _rising_medians(joint: np.ndarray) -> np.ndarray:
    """Return one column per row of counts, never falling, with the least sum of distances to what is counted."""
    columns = np.arange(joint.shape[1])
    costs = joint @ np.abs(columns[:, None] - columns).astype(joint.dtype)
    least, sources = np.zeros(len(columns)), np.empty(joint.shape, np.int64)
    for row, cost in enumerate(costs):
        # The best way to end at this column or before, and the column where it ends.
        best = np.minimum.accumulate(least)
        sources[row] = np.maximum.accumulate(np.where(least == best, columns, 0))
        least = best + cost
    path = np.empty(len(joint), np.int64)
    column = int(least.argmin())
    for row in reversed(range(len(joint))):
        path[row] = column
        column = sources[row, column]
    return path


def _inner() -> np.ndarray:
    inner = np.ones((256, 1))
    inner[[0, 255]] = 0  # black and white collect what lies beyond; their neighbours do not
    return inner
