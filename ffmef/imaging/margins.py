"""Pixels that a picture does not cover, such as the margins of an aligned frame: finds and fills them.

The other exposures of a bracket show what is missing. Learnt from the pixels that two exposures share, a curve says how
bright it would be in the one that lacks it. So brightness goes on across the edge as if the frame did.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ffmef.imaging.levels import from_levels, learnt_curve, to_levels

REACH = 12  # pixels around a missing one that weights interpolated between cells would still reach
LEAST_SHARED = 0.01  # share of the picture that two frames must both cover, so that one tells about the other
_SAMPLES = 300_000  # pixels from which a curve is learnt
_BESIDE = 3  # of 255: samples near a margin count only where there is nothing better


def usable_parts(
    alphas: Sequence[np.ndarray | None], opaque: float
) -> tuple[np.ndarray | None, list[np.ndarray | None]]:
    """Return the alpha of the fused picture and where each frame can be used.

    The result is as opaque as the most opaque frame. A frame can be used where none is more opaque.

    Args:
        alphas: (H, W) per frame, of one dtype; None for an opaque frame.
        opaque: alpha of an opaque pixel.

    Returns:
        Alpha, or None if opaque everywhere, and a mask (H, W) per frame, or None if it can be used everywhere.

    Example:
        >>> alpha, (first, second) = usable_parts([np.array([[0, 255]], np.uint8), None], 255)
        >>> alpha, first.tolist(), second
        (None, [[False, True]], None)
    """
    given = [alpha for alpha in alphas if alpha is not None]
    if not given:
        return None, [None] * len(alphas)
    most = np.maximum.reduce(given)
    if len(given) < len(alphas):
        most = np.full_like(most, opaque)
    masks = []
    for alpha in alphas:
        mask = None if alpha is None else (alpha == most) & (most > 0)
        masks.append(None if mask is None or mask.all() else mask)
    return (None if (most == opaque).all() else most), masks


def validity_of(mask: np.ndarray) -> np.ndarray:
    """Return how far each pixel may be used, (H, W), uint8: 0 for missing pixels, little near them, else 255.

    Example:
        >>> validity_of(np.arange(40).reshape(1, 40) > 5)[0, ::6].tolist()
        [0, 3, 3, 255, 255, 255, 255]
    """
    import cv2

    kernel = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    return np.where(inner > 0, 255, np.where(mask, _BESIDE, 0)).astype(np.uint8)


def continued(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a picture whose missing pixels smoothly continue those around them; all others are unchanged.

    Missing pixels are interpolated from means of ever larger squares of the others, so there is no edge.

    Args:
        image: (H, W) or (H, W, 3), any dtype.
        mask: (H, W), False for missing pixels.

    Example:
        >>> continued(np.array([[10, 10, 99]], np.uint8), np.array([[True, True, False]])).tolist()
        [[10, 10, 10]]
    """
    import cv2

    if not mask.any():
        return image
    weights: list[np.ndarray] = [mask.astype(np.float32)]
    values: list[np.ndarray] = [np.where(mask if image.ndim == 2 else mask[..., None], image, 0).astype(np.float32)]
    while max(weights[-1].shape) > 1:
        height, width = weights[-1].shape
        size = ((width + 1) // 2, (height + 1) // 2)
        weights.append(cv2.resize(weights[-1], size, interpolation=cv2.INTER_AREA))
        values.append(cv2.resize(values[-1], size, interpolation=cv2.INTER_AREA))
    filled: np.ndarray = np.zeros(())
    for weight, value in zip(reversed(weights), reversed(values), strict=True):
        weight = weight if image.ndim == 2 else weight[..., None]
        own = value / np.maximum(weight, 1e-6)
        if filled.ndim:  # all but the coarsest, the mean of the whole picture
            coarser: np.ndarray = cv2.resize(filled, own.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            own = np.where(weight > 0, own, coarser.reshape(own.shape))
        filled = own
    if image.dtype.kind != "f":
        filled = np.rint(filled)
    return np.where(mask if image.ndim == 2 else mask[..., None], image, filled.astype(image.dtype))


def completed(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray | None]
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Return exposures whose missing pixels show what the others do, in their own brightness, and their validity.

    A missing pixel is taken from the exposure of nearest brightness that has it, through the rising curve by which
    pixels that both cover correspond (:func:`ffmef.imaging.levels.learnt_curve`), for each channel. What the curve
    misses beside the missing pixels is continued smoothly and added. Such pixels count fully. What no exposure with
    enough shared pixels has is continued (:func:`continued`) and does not count.

    Args:
        images: one size and dtype, (H, W, 3) or (H, W), uint8, uint16 or floating point in [0, 1].
        masks: (H, W) per image, False for missing pixels; None if none is missing.

    Returns:
        The images, and (H, W) uint8 for each, or None where all of it counts. The order of the images never decides.

    Example:
        >>> dark = np.tile(np.arange(40, 104, dtype=np.uint8), (64, 1))
        >>> cut, mask = dark.copy(), np.ones((64, 64), bool)
        >>> cut[20:30, 20:30], mask[20:30, 20:30] = 0, False
        >>> (filled, bright), validity = completed([cut, dark + dark], [mask, None])
        >>> np.array_equal(filled, dark), validity
        (True, [None, None])
    """
    everywhere = np.ones(images[0].shape[:2], bool)
    covered = [everywhere if mask is None else mask for mask in masks]
    # Every so many rows and columns: enough to learn from, and a picture of any size takes the same time.
    step = max(1, int(np.sqrt(everywhere.size / _SAMPLES)))
    samples = [image[::step, ::step] for image in images]
    shares = [part[::step, ::step] for part in covered]
    filled: list[np.ndarray] = []
    validity: list[np.ndarray | None] = []
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if mask is None or not mask.any():
            filled.append(image)
            validity.append(None if mask is None else validity_of(mask))
            continue
        image, left = image.copy(), ~mask
        for source in _sources(index, samples, shares):
            here = left & covered[source]
            if here.any():
                shared = shares[index] & shares[source]
                image[here] = _shown(samples[index], samples[source], shared, images[source], here, step)
                left &= ~here
        filled.append(_without_gaps(image, left, step))
        validity.append(validity_of(~left) if left.any() else None)
    return filled, validity


def _without_gaps(image: np.ndarray, gaps: np.ndarray, step: int) -> np.ndarray:
    """Return the image, continued into gaps from every ``step``-th row and column."""
    if not gaps.any():
        return image
    known = ~gaps[::step, ::step]
    if step == 1 or not known.any():
        return continued(image, ~gaps)
    rows, columns = np.nonzero(gaps)
    values = _between(continued(image[::step, ::step], known), rows, columns, step)
    image[gaps] = values if image.dtype.kind == "f" else np.rint(values)
    return image


def _sources(index: int, samples: list[np.ndarray], shares: list[np.ndarray]) -> list[int]:
    """Return the frames that share enough pixels with one, the nearest in brightness first."""
    found = []
    for other, share in enumerate(shares):
        shared = share & shares[index]
        if other == index or shared.mean() < LEAST_SHARED:
            continue
        mine, theirs = (to_levels(samples[i][shared]).mean(dtype=np.float64) for i in (index, other))
        found.append((abs(theirs - mine), theirs, samples[other].tobytes(), share.tobytes(), other))
    return [other for *_, other in sorted(found)]


def _shown(
    own: np.ndarray, seen: np.ndarray, shared: np.ndarray, source: np.ndarray, here: np.ndarray, step: int
) -> np.ndarray:
    """Return the samples of one frame where another, ``source``, shows them.

    Args:
        own: every ``step``-th sample of the frame.
        seen: the same of the source.
        shared: where both are covered.
        source: the source.
        here: which of its pixels to show.
    """
    colour = own.ndim == 3
    wanted, known = _planes(own, colour), _planes(seen, colour)
    rows, columns = np.nonzero(here)
    shown = []
    for mine, theirs, missing in zip(wanted, known, _planes(source[here][:, None], colour), strict=True):
        curve = _proportional(learnt_curve(theirs[shared], mine[shared])[0], theirs[shared])
        missed = (mine - np.interp(theirs, np.arange(256), curve)).astype(np.float32)
        missed = _between(continued(missed, shared), rows, columns, step)
        shown.append(np.interp(missing[:, 0], np.arange(256), curve) + missed)
    return from_levels(np.stack(shown, -1) if colour else shown[0], own.dtype)


def _proportional(curve: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return a curve that is proportional to the level below the lowest seen and above the highest."""
    levels = np.arange(256)
    low, high = round(float(seen.min())), round(float(seen.max()))
    below, above = curve[low] * levels / max(low, 1), curve[high] * levels / max(high, 1)
    return np.where(levels < low, below, np.where(levels > high, above, curve)).clip(0, 255)


def _planes(picture: np.ndarray, colour: bool) -> list[np.ndarray]:
    """Return levels of a picture: three planes for a frame in colour, grey otherwise."""
    levels = to_levels(picture)
    if not colour:
        return [levels if levels.ndim == 2 else levels @ np.array([0.299, 0.587, 0.114], np.float32)]
    return [levels] * 3 if levels.ndim == 2 else list(np.moveaxis(levels, -1, 0))


def _between(plane: np.ndarray, rows: np.ndarray, columns: np.ndarray, step: int) -> np.ndarray:
    """Return values at pixels, interpolated from those of every ``step``-th row and column, (H, W) or (H, W, 3)."""
    if step == 1:
        return plane[rows, columns]
    top, left = rows // step, columns // step
    below, right = np.minimum(top + 1, plane.shape[0] - 1), np.minimum(left + 1, plane.shape[1] - 1)
    down, across = (rows % step / step).astype(np.float32), (columns % step / step).astype(np.float32)
    if plane.ndim == 3:
        down, across = down[:, None], across[:, None]
    upper = plane[top, left] * (1 - across) + plane[top, right] * across
    lower = plane[below, left] * (1 - across) + plane[below, right] * across
    return upper * (1 - down) + lower * down
