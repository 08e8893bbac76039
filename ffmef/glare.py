"""Makes room for infrared detail where the visible picture is white.

Infrared detail that a network adds to a white part of the visible picture is clipped: a person in front of a headlamp
cannot be brighter than the lamp. So white and near-white parts are lowered there, and the detail is added, before the
network sees the visible luminance. No sample changes if nothing is white or infrared shows nothing there.
"""

from __future__ import annotations

import numpy as np

WHITE = 0.80, 0.90  # luminance Y / 255 where a pixel begins and where it fully counts as white; pure white is 0.92
KNEE = 0.45  # of the tone curve: darker tones do not change
TOP = 0.75  # the tone curve's value at 1
DETAIL = 0.03  # deviation of the infrared luminance behind white that counts as fully worth showing
SHARE = 0.1  # of the surrounding pixels that must be white
WINDOW = 0.08  # deviation of the windows, as a share of the shorter side
_SMALL = 256  # pixels, the longest side at which wide windows are computed
_EDGE = 2.0  # pixels, deviation by which the borders of white parts are smoothed


def make_room(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
    r"""Return the visible luminance with white parts lowered as far as the infrared picture shows detail there.

    .. math:: V' = V + s\,\bigl(c(V) - V\bigr) + s\, \bar g\,(I - m), \qquad
        c(V) = \min\bigl(V,\; k + (V - k) \tfrac{t - k}{1 - k}\bigr)

    g is how white a pixel is and :math:`\bar g` is g smoothed; m and :math:`\sigma` are mean and deviation of the
    infrared luminance I over the white pixels of a window, and s the smoothed
    :math:`\min(\sigma / 0.03, 1) \min(\text{share of white} / 0.1, 1)`; k = 0.45 and t = 0.75.

    Args:
        visible: V, (H, W), float32 in [0, 1], Y / 255.
        infrared: I, likewise.

    Raises:
        ValueError: the pictures differ in size and the visible one has white parts; the error is NumPy's.

    Example:
        >>> lamp, person = np.full((64, 64), 0.92, np.float32), np.full((64, 64), 0.2, np.float32)
        >>> person[20:40, 30:36] = 0.6
        >>> seen = make_room(lamp, person)
        >>> bool(seen[30, 33] > seen[30, 27] + 0.2), bool((make_room(lamp, 0 * person) == lamp).all())
        (True, True)
    """
    import cv2

    white = _whiteness(visible)
    if not white.any():
        return visible
    scale = min(1.0, _SMALL / max(visible.shape))
    size = tuple(max(1, round(side * scale)) for side in visible.shape[::-1])
    small_white, small = (cv2.resize(maps, size, interpolation=cv2.INTER_AREA) for maps in (white, infrared))

    def window(maps: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(maps, (0, 0), max(0.5, WINDOW * min(size))).reshape(maps.shape)

    share = window(small_white)
    inside = np.maximum(share, np.float32(1e-6))
    mean = window(small * small_white) / inside
    spread = np.sqrt(window(np.square(small - mean) * small_white) / inside)
    strength = window(np.minimum(spread / DETAIL, 1) * np.minimum(share / SHARE, 1))
    shape = visible.shape[::-1]
    mean, strength = (
        cv2.resize(maps, shape, interpolation=cv2.INTER_LINEAR).reshape(visible.shape) for maps in (mean, strength)
    )
    lowered = np.minimum(visible, KNEE + (visible - KNEE) * np.float32((TOP - KNEE) / (1 - KNEE)))
    smooth = cv2.GaussianBlur(white, (0, 0), _EDGE).reshape(visible.shape)
    seen = visible + strength * (lowered - visible) + strength * smooth * (infrared - mean)
    return np.clip(seen, 0, 1).astype(np.float32)


def _whiteness(visible: np.ndarray) -> np.ndarray:
    first, last = WHITE
    return np.clip((visible - np.float32(first)) / np.float32(last - first), 0, 1)
