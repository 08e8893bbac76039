"""Removes ghosts: takes whatever moved between the exposures of a bracket from only one of them.

One exposure, the reference, says what the scene looked like. Every other exposure is compared with it. The brightness
that each level of the reference should have there is learnt from the pair: a rising curve of medians over the picture,
which needs no camera curve and no exposure times. Pixels that disagree by more than noise and edges explain have moved.
Their samples are replaced by what the reference shows, in the other's brightness, and they count less in the fusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ffmef.errors import InputError
from ffmef.imaging.levels import from_levels, learnt_curve, to_levels

WORKING_SIDE = 1024  # movement is looked for in pictures no larger than this
RECORDED = (10, 245)  # levels between which a picture records brightness
DISAGREEMENT = 1.0  # in tolerances, mean over 5 x 5 pixels: seeds of moved parts
SPREAD = 0.6  # likewise: pixels around a seed that belong to it
CLIPPING = (225, 250)  # of the largest channel: where the others begin to be unpredictable, and where they wholly are
CRUSHED = 12  # of the smallest channel: the same towards black
LEAST_STILL = 0.01  # share of a frame; if less stayed still, all of it tells how its levels map to the reference's
TRUST = 5  # of 255: validity of replaced samples in the fusion


class Deghosted(NamedTuple):
    """Frames that show what the reference shows.

    Attributes:
        pictures: the frames, with samples replaced where they disagree; the reference is unchanged.
        validity: (H, W) uint8 for each: 255, and 5 where samples were replaced; None for an unchanged frame.
        moved: (H, W) bool for each: where samples were replaced.
        reference: index of the reference.
    """

    pictures: list[np.ndarray]
    validity: list[np.ndarray | None]
    moved: list[np.ndarray]
    reference: int


def best_exposed(pictures: Sequence[np.ndarray]) -> int:
    """Return the index of the picture with most pixels between black and white; among equals, the nearest to grey.

    The order of the pictures never decides: samples decide between pictures that are still equal.

    Args:
        pictures: (H, W, 3) or (H, W), uint8, uint16 or floating point in [0, 1].

    Example:
        >>> best_exposed([np.full((4, 4), level, np.uint8) for level in (3, 120, 254)])
        1
    """
    grades = []
    for picture in pictures:
        levels = to_levels(picture)
        brightest, darkest = (levels.max(-1), levels.min(-1)) if levels.ndim == 3 else (levels, levels)
        recorded = (brightest < RECORDED[1]) & (darkest > RECORDED[0])
        grades.append((float(recorded.mean()), -round(abs(float(levels.mean(dtype=np.float64)) - 118), 3)))
    best = max(grades)
    equal = [index for index, grade in enumerate(grades) if grade == best]
    return equal[0] if len(equal) == 1 else min(equal, key=lambda index: pictures[index].tobytes())


def deghost(pictures: Sequence[np.ndarray], reference: int | None = None) -> Deghosted:
    """Replace the parts of every frame that disagree with a reference frame.

    Args:
        pictures: two or more of one size and dtype, (H, W, 3) or (H, W), uint8, uint16 or floating point in [0, 1].
        reference: index of the frame whose content is kept; None takes :func:`best_exposed`.

    Raises:
        InputError: there are fewer than two pictures, they differ in kind, or there is no such reference.

    Example:
        >>> still = [np.full((64, 64, 3), level, np.uint8) for level in (40, 120, 200)]
        >>> deghost(still).moved[0].any()
        np.False_
    """
    pictures = list(pictures)
    if len(pictures) < 2:
        raise InputError(f"images must be at least 2 pictures to compare, got {len(pictures)}")
    kinds = {(picture.shape, picture.dtype.str) for picture in pictures}
    if len(kinds) > 1:
        raise InputError(f"images must have one size and dtype, got {len(kinds)} kinds")
    if reference is None:
        reference = best_exposed(pictures)
    if not -len(pictures) <= reference < len(pictures):
        raise InputError(f"deghost must name one of {len(pictures)} frames, got {reference}")
    reference %= len(pictures)
    kept = pictures[reference]
    result = Deghosted([], [], [], reference)
    for index, picture in enumerate(pictures):
        moved = np.zeros(kept.shape[:2], bool) if index == reference else _moved(picture, kept)
        validity = None
        if moved.any():
            picture = _replaced(picture, kept, moved)
            validity = np.where(moved, np.uint8(TRUST), np.uint8(255))
        result.pictures.append(picture)
        result.validity.append(validity)
        result.moved.append(moved)
    return result


def _channels(levels: np.ndarray) -> list[np.ndarray]:
    return [levels] if levels.ndim == 2 else [np.ascontiguousarray(plane) for plane in np.moveaxis(levels, -1, 0)]


def _allowance(levels: np.ndarray) -> np.ndarray:
    """Return the factor of tolerances: 1, up to 3 where a channel is clipped and up to 2 where one is black.

    There a camera's tone curve no longer treats the channels separately, so a level does not predict another frame.
    """
    top, bottom = (levels.max(-1), levels.min(-1)) if levels.ndim == 3 else (levels, levels)
    clipped = ((top - CLIPPING[0]) / (CLIPPING[1] - CLIPPING[0])).clip(0, 1)
    return np.maximum(1 + 2 * clipped, 1 + (1 - bottom / CRUSHED).clip(0, 1))


def _disagreement(seen: np.ndarray, wanted: np.ndarray, allowance: np.ndarray) -> np.ndarray:
    """Return how far ``wanted`` is from what ``seen`` predicts, in tolerances, mean over 5 x 5 pixels."""
    import cv2

    curve, spread = learnt_curve(seen, wanted)
    # White stands for every brightness above the last recorded level, black for every one below the first.
    low, high = curve.copy(), curve.copy()
    low[RECORDED[1] :], high[RECORDED[1] :] = curve[RECORDED[1]], 255
    low[: RECORDED[0] + 1], high[: RECORDED[0] + 1] = 0, curve[RECORDED[0]]
    level = seen.round().astype(np.uint8)
    predicted = cv2.LUT(level, curve)
    kernel = np.ones((3, 3), np.uint8)
    edges = cv2.dilate(predicted, kernel) - cv2.erode(predicted, kernel)
    beyond = np.maximum(cv2.LUT(level, low) - wanted, wanted - cv2.LUT(level, high)).clip(0)
    tolerance = 6 + 3 * cv2.LUT(level, spread) + 0.5 * edges
    return cv2.blur(beyond / (tolerance * allowance), (5, 5))


def _moved(picture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return where a frame shows something other than the reference, (H, W) bool."""
    import cv2

    height, width = picture.shape[:2]
    scale = min(1.0, WORKING_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [cv2.resize(to_levels(p), size, interpolation=cv2.INTER_AREA) for p in (picture, reference)]
    allowance = np.maximum(*map(_allowance, small))
    found = np.zeros(size[::-1], np.float32)
    for mine, theirs in zip(_channels(small[0]), _channels(small[1]), strict=True):
        # Both ways: where one is in shadow, the other tells more.
        one, other = _disagreement(theirs, mine, allowance), _disagreement(mine, theirs, allowance)
        found = np.maximum(found, np.maximum(one, other))
    parts, labels, facts, _ = cv2.connectedComponentsWithStats((found > SPREAD).astype(np.uint8), connectivity=8)
    seeds = np.bincount(labels.ravel(), (found > DISAGREEMENT).ravel(), parts)
    keep = (seeds >= 12) & (facts[:, cv2.CC_STAT_AREA] >= 24)
    keep[0] = False
    mask = keep[labels].astype(np.uint8)
    if not mask.any():
        return np.zeros((height, width), bool)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _disc(9))
    mask = cv2.dilate(mask, _disc(4))
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) > 0


def _disc(radius: int) -> np.ndarray:
    import cv2

    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _replaced(picture: np.ndarray, reference: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return a frame with moved parts from the reference, in the frame's brightness; soft edges of 4 pixels."""
    import cv2

    mine, theirs = to_levels(picture), to_levels(reference)
    soft = cv2.blur(moved.astype(np.float32), (5, 5))
    still = ~moved
    if still.mean() < LEAST_STILL:
        still = np.ones_like(still)
    shown = np.empty_like(mine)
    planes = [shown] if mine.ndim == 2 else [shown[..., channel] for channel in range(mine.shape[2])]
    for plane, own, other in zip(planes, _channels(mine), _channels(theirs), strict=True):
        curve = learnt_curve(other[still], own[still])[0]
        # Interpolated between whole levels, so 16 bit and floating point keep their steps.
        plane[...] = np.interp(other, np.arange(256), curve)
    mix = soft[..., None] if mine.ndim == 3 else soft
    mixed = mine + mix * (shown - mine)
    replaced = from_levels(mixed, picture.dtype)
    untouched = soft == 0
    replaced[untouched] = picture[untouched]
    return replaced
