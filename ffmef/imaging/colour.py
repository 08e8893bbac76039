"""BT.601 studio-swing colour, and the rule that merges the chroma of several pictures.

Everything here is plain arithmetic on NumPy arrays or torch tensors, in floating point on the 0..255 scale, with no
rounding between steps. The channel axis is the last one of an array (H, W, 3) and the third from last of a tensor
(..., 3, H, W), as each library stores pictures; ``axis`` names another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")


def luminance(rgb: Array, *, axis: int | None = None) -> Array:
    """Return the studio-swing luminance of an RGB picture.

    ``Y = 0.256789 R + 0.504129 G + 0.097906 B + 16``

    Args:
        rgb: array (H, W, 3) or tensor (..., 3, H, W), values 0..255; integers are converted to float32.
        axis: the channel axis; None means -1 for an array and -3 for a tensor.

    Returns:
        The same shape without the channel axis, 16 for black and 235 for white.

    Raises:
        ValueError: the channel axis does not have 3 entries.

    >>> luminance(np.array([0, 255], np.uint8)[:, None, None] * np.ones(3, np.uint8)).round(2).ravel().tolist()
    [16.0, 235.0]
    """
    return _weighted(*_planes(rgb, axis, "rgb"))


def rgb_to_ycbcr(rgb: Array, *, axis: int | None = None) -> Array:
    """Convert RGB to luminance and chroma (BT.601, studio swing).

    ``Y  =  0.256789 R + 0.504129 G + 0.097906 B + 16``
    ``Cb = -0.148223 R - 0.290992 G + 0.439215 B + 128``
    ``Cr =  0.439215 R - 0.367789 G - 0.071426 B + 128``

    Args:
        rgb: array (H, W, 3) or tensor (..., 3, H, W), values 0..255; integers are converted to float32.
        axis: the channel axis; None means -1 for an array and -3 for a tensor.

    Returns:
        Y, Cb and Cr on the same axis, not rounded.

    Raises:
        ValueError: the channel axis does not have 3 entries.

    >>> rgb_to_ycbcr(np.array([[[255.0, 0.0, 0.0]]])).round(2).tolist()
    [[[81.48, 90.2, 240.0]]]
    """
    axis = _channel_axis(rgb, axis)
    red, green, blue = _planes(rgb, axis, "rgb")
    y = _weighted(red, green, blue)
    cb = -0.148223 * red - 0.290992 * green + 0.439215 * blue + 128
    cr = 0.439215 * red - 0.367789 * green - 0.071426 * blue + 128
    return _stack([y, cb, cr], axis)


def ycbcr_to_rgb(ycbcr: Array, *, axis: int | None = None) -> Array:
    """Convert luminance and chroma back to RGB, neither clipped nor rounded.

    ``R = 1.164383 (Y - 16) + 1.596027 (Cr - 128)``
    ``G = 1.164383 (Y - 16) - 0.391762 (Cb - 128) - 0.812969 (Cr - 128)``
    ``B = 1.164383 (Y - 16) + 2.017230 (Cb - 128)``

    Args:
        ycbcr: array (H, W, 3) or tensor (..., 3, H, W) as :func:`rgb_to_ycbcr` returns it.
        axis: the channel axis; None means -1 for an array and -3 for a tensor.

    Returns:
        R, G and B on the same axis. Colours outside RGB give values outside 0..255.

    Raises:
        ValueError: the channel axis does not have 3 entries.

    >>> ycbcr_to_rgb(np.array([[[235.0, 128.0, 128.0]]])).round(2).tolist()
    [[[255.0, 255.0, 255.0]]]
    """
    axis = _channel_axis(ycbcr, axis)
    y, cb, cr = _planes(ycbcr, axis, "ycbcr")
    grey = 1.164383 * (y - 16)
    cb = cb - 128
    cr = cr - 128
    return _stack([grey + 1.596027 * cr, grey - 0.391762 * cb - 0.812969 * cr, grey + 2.017230 * cb], axis)


def grey_to_luminance(grey: Array) -> Array:
    """Return the studio-swing luminance of a grey picture, equal to that of RGB with R = G = B = grey.

    ``Y = (0.256789 + 0.504129 + 0.097906) grey + 16``

    Args:
        grey: array or tensor of any shape, values 0..255; integers are converted to float32.

    Returns:
        The same shape, 16 for black and 235 for white.

    >>> grey_to_luminance(np.array([0, 255], np.uint8)).round(2).tolist()
    [16.0, 235.0]
    """
    return (0.256789 + 0.504129 + 0.097906) * _floating(grey) + 16


def luminance_to_grey(y: Array) -> Array:
    """Return the grey picture of a studio-swing luminance, neither clipped nor rounded: ``1.164383 (Y - 16)``.

    >>> luminance_to_grey(np.array([16.0, 235.0])).round(2).tolist()
    [0.0, 255.0]
    """
    return 1.164383 * (y - 16)


def merge_chroma(chroma: Sequence[Array]) -> Array:
    """Merge the chroma of several pictures; more colourful ones weigh more (FFMEF paper, eq. 1, for N pictures).

    ``C = sum_i C_i |C_i - 128| / sum_i |C_i - 128|``, and 128 where the denominator is 0.

    Args:
        chroma: one or more floating-point arrays or tensors of one shape, values 0..255 with 128 for no colour. Cb and
            Cr may be stacked: the formula is applied to each element.

    Returns:
        The merged chroma, same shape.

    Raises:
        ValueError: the sequence is empty.

    >>> merge_chroma([np.array([128.0, 138.0]), np.array([128.0, 158.0])]).tolist()
    [128.0, 153.0]
    """
    if not len(chroma):
        raise ValueError("chroma must hold at least 1 picture, got 0")
    # Around 128: C = 128 + sum d |d| / sum |d|. The same value, without the cancellation of two large sums.
    total: Any = 0  # arrays or tensors, from the first picture on
    weights: Any = 0
    for plane in chroma:
        deviation = plane - 128
        weight = abs(deviation)
        total = total + deviation * weight
        weights = weights + weight
    # If weights is 0, so is total; dividing by 1 leaves 128.
    return 128 + total / (weights + (weights == 0))


# Samples as pictures hold them


def scaled(samples: Array) -> Array:
    """Return samples as floating point on 0..255, the scale of the equations above.

    Args:
        samples: array or tensor (H, W) or (H, W, 3): uint8, uint16, or floating point in [0, 1].

    Returns:
        (H, W) or (3, H, W), contiguous, because arithmetic on whole planes is twice as fast as on every third sample;
        float64 for float64 (and wider, of NumPy), otherwise float32.

    >>> scaled(np.array([[257, 65535]], np.uint16)).tolist()
    [[1.0, 255.0]]
    """
    if isinstance(samples, np.ndarray):
        planes = samples.transpose(2, 0, 1) if samples.ndim == 3 else samples
        floating = samples.dtype.kind == "f"
        planes = planes.astype(np.result_type(samples.dtype, np.float32) if floating else np.float32, "C")
        sixteen = samples.dtype == np.uint16
    else:
        import torch

        planes = samples.permute(2, 0, 1) if samples.dim() == 3 else samples
        floating, sixteen = samples.is_floating_point(), samples.dtype == torch.uint16
        planes = planes.to(torch.promote_types(samples.dtype, torch.float32) if floating else torch.float32, copy=True)
        planes = planes.contiguous()
    if sixteen:
        planes /= 257
    elif floating:
        planes *= 255
    return planes


def unscaled(planes: Array, dtype) -> Array:
    """Return values on 0..255, of any shape, as samples of a dtype: clamped, and rounded for integers.

    >>> unscaled(np.array([-3.0, 1.5, 300.0]), np.dtype(np.uint16)).tolist()
    [0, 386, 65535]
    """
    if isinstance(planes, np.ndarray):
        if dtype.kind == "f":
            return np.clip(planes / 255, 0, 1).astype(dtype)
        return np.rint(np.clip(planes, 0, 255) * np.float32(257 if dtype == np.uint16 else 1)).astype(dtype)
    import torch

    if dtype.is_floating_point:
        return (planes / 255).clamp(0, 1).to(dtype)
    whole = (planes.clamp(0, 255) * (257 if dtype == torch.uint16 else 1)).round()
    return whole.to(torch.int32).to(dtype)


def sample_luminance(samples: Array) -> Array:
    """Return the luminance on 0..1, Y / 255, of samples as :func:`scaled` takes them: (H, W), float32 or wider.

    >>> sample_luminance(np.array([[0.0, 1.0]])).round(3).tolist()
    [[0.063, 0.922]]
    """
    planes = scaled(samples)
    return (luminance(planes, axis=0) if len(planes.shape) == 3 else grey_to_luminance(planes)) / 255


def recoloured(fused: Array, sources: Sequence[Array], dtype) -> Array:
    """Join fused luminance with the merged chroma of coloured sources, and return samples.

    Args:
        fused: (H, W) on 0..1.
        sources: samples (H, W, 3); empty for a grey picture.
        dtype: of the result, NumPy's or torch's.

    Returns:
        (H, W, 3), or (H, W) without sources.

    >>> recoloured(np.array([[235 / 255]]), [], np.dtype(np.uint8)).tolist()
    [[255]]
    """
    y: Any = fused * 255
    if not len(sources):
        return unscaled(luminance_to_grey(y), dtype)
    chroma = [rgb_to_ycbcr(scaled(source), axis=0)[1:] for source in sources]
    merged = chroma[0] if len(chroma) == 1 else merge_chroma(chroma)
    rgb: Any = unscaled(ycbcr_to_rgb(_joined([y[None], merged]), axis=0), dtype)
    return cast(Any, rgb.transpose(1, 2, 0) if isinstance(rgb, np.ndarray) else rgb.permute(1, 2, 0).contiguous())


def _weighted(red, green, blue):
    return 0.256789 * red + 0.504129 * green + 0.097906 * blue + 16


def _channel_axis(picture, axis: int | None) -> int:
    if axis is not None:
        return axis
    return -1 if isinstance(picture, np.ndarray) else -3


def _planes(picture, axis: int | None, name: str):
    axis = _channel_axis(picture, axis)
    if not -picture.ndim <= axis < picture.ndim or picture.shape[axis] != 3:
        raise ValueError(f"{name} must have 3 channels on axis {axis}, got shape {tuple(picture.shape)}")
    index: list[slice | int] = [slice(None)] * picture.ndim
    planes = []
    for channel in range(3):
        index[axis] = channel
        planes.append(_floating(picture[tuple(index)]))
    return planes


def _floating(plane):
    if isinstance(plane, np.ndarray):
        return plane if plane.dtype.kind == "f" else plane.astype(np.float32)
    return plane if plane.is_floating_point() else plane.float()


def _stack(planes, axis: int):
    if isinstance(planes[0], np.ndarray):
        return np.stack(planes, axis)
    import torch

    return torch.stack(planes, axis)


def _joined(planes):
    if isinstance(planes[0], np.ndarray):
        return np.concatenate(planes)
    import torch

    return torch.cat(planes)
