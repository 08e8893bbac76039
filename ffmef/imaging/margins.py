"""Pixels that a picture does not cover, such as the margins of an aligned frame: finds and fills them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REACH = 12  # pixels around a missing one that weights interpolated between cells would still reach
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
