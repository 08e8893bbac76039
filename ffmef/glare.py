"""Makes room for infrared detail where the visible picture is white.

Infrared detail that a network adds to a white part of the visible picture is clipped: a person in front of a headlamp
cannot be brighter than the lamp. So white and near-white parts are lowered there, and the detail is added, before the
network sees the visible luminance. No sample changes if nothing is white or infrared shows nothing there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

WHITE = 0.80, 0.90  # luminance Y / 255 where a pixel begins and where it fully counts as white; pure white is 0.92
KNEE = 0.45  # of the tone curve: darker tones do not change
TOP = 0.75  # the tone curve's value at 1
DETAIL = 0.03  # deviation of the infrared luminance behind white that counts as fully worth showing
SHARE = 0.1  # of the surrounding pixels that must be white
WINDOW = 0.08  # deviation of the windows, as a share of the shorter side
_SMALL = 256  # pixels, the longest side at which wide windows are computed
_EDGE = 2.0  # pixels, deviation by which the borders of white parts are smoothed


def make_room(visible: Array, infrared: Array) -> Array:
    r"""Return the visible luminance with white parts lowered as far as the infrared picture shows detail there.

    .. math:: V' = V + s\,\bigl(c(V) - V\bigr) + s\, \bar g\,(I - m), \qquad
        c(V) = \min\bigl(V,\; k + (V - k) \tfrac{t - k}{1 - k}\bigr)

    g is how white a pixel is and :math:`\bar g` is g smoothed; m and :math:`\sigma` are mean and deviation of the
    infrared luminance I over the white pixels of a window, and s the smoothed
    :math:`\min(\sigma / 0.03, 1) \min(\text{share of white} / 0.1, 1)`; k = 0.45 and t = 0.75.

    Args:
        visible: V, (H, W), float32 in [0, 1], Y / 255; an array, or a tensor on any device.
        infrared: I, likewise.

    Raises:
        ValueError: the pictures differ in size and the visible one has white parts; the error is NumPy's. For tensors,
            RuntimeError.

    Example:
        >>> lamp, person = np.full((64, 64), 0.92, np.float32), np.full((64, 64), 0.2, np.float32)
        >>> person[20:40, 30:36] = 0.6
        >>> seen = make_room(lamp, person)
        >>> bool(seen[30, 33] > seen[30, 27] + 0.2), bool((make_room(lamp, 0 * person) == lamp).all())
        (True, True)
    """
    white = ((visible - WHITE[0]) / (WHITE[1] - WHITE[0])).clip(0, 1)
    if isinstance(white, np.ndarray) and not white.any():  # on a GPU it would take longer to ask
        return visible
    filters = _of_arrays() if isinstance(white, np.ndarray) else _of_tensors()
    scale = min(1.0, _SMALL / max(visible.shape))
    size = tuple(max(1, round(side * scale)) for side in visible.shape)
    small_white, small = (filters.shrunk(maps, size) for maps in (white, infrared))

    def window(maps):
        return filters.blurred(maps, max(0.5, WINDOW * min(size)))

    share = window(small_white)
    inside = share.clip(min=1e-6)
    mean = window(small * small_white) / inside
    apart = small - mean
    spread = (window(apart * apart * small_white) / inside) ** 0.5
    strength = window((spread / DETAIL).clip(max=1) * (share / SHARE).clip(max=1))
    mean, strength = (filters.spread(maps, visible.shape) for maps in (mean, strength))
    lowered = filters.least(visible, KNEE + (visible - KNEE) * ((TOP - KNEE) / (1 - KNEE)))
    smooth = filters.blurred(white, _EDGE)
    seen = visible + strength * (lowered - visible) + strength * smooth * (infrared - mean)
    return seen.clip(0, 1)


class _Filters(NamedTuple):
    """What arrays and tensors do not share: filters of maps (H, W), as OpenCV defines them."""

    shrunk: Callable[[Any, tuple], Any]
    spread: Callable[[Any, tuple], Any]
    blurred: Callable[[Any, float], Any]
    least: Callable[[Any, Any], Any]


def _of_arrays() -> _Filters:
    import cv2

    def resized(maps, shape, how):
        return cv2.resize(maps, tuple(shape[::-1]), interpolation=how).reshape(shape)

    return _Filters(
        shrunk=lambda maps, shape: resized(maps, shape, cv2.INTER_AREA),
        spread=lambda maps, shape: resized(maps, shape, cv2.INTER_LINEAR),
        blurred=lambda maps, deviation: cv2.GaussianBlur(maps, (0, 0), deviation).reshape(maps.shape),
        least=np.minimum,
    )


def _of_tensors() -> _Filters:
    import torch

    from ffmef.models.focus import between, blur, gaussian, shrink

    def of_planes(function):
        return lambda maps, how: function(maps[None, None], how)[0, 0]

    return _Filters(
        shrunk=of_planes(shrink),
        spread=of_planes(between),
        blurred=of_planes(lambda maps, deviation: blur(maps, gaussian(deviation))),
        least=torch.minimum,
    )
