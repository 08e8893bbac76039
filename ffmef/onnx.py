"""The operators in ONNX: what ``torch.onnx.export(dynamo=True)`` writes for them, in standard operators alone.

Importing this module needs the extra ``export``. Whoever exports a network need not: :mod:`ffmef.ops` tells torch's
exporter of these translations when it is first used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

try:
    from onnxscript import FLOAT
    from onnxscript import opset18 as op
    from onnxscript.function_libs.torch_lib.tensor_typing import TReal
except ImportError as error:
    raise ImportError(f"export to ONNX needs the package {error.name}; install ffmef[export]") from None

__all__ = ["translation_table"]

_END = 2**63 - 1
_HALVES = ("FLOAT16", "BFLOAT16")


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the operators and how each is written in ONNX, for ``custom_translation_table`` of ``torch.onnx.export``.

    torch's exporter finds them automatically once :mod:`ffmef.ops` is imported; the table is for exporters that take
    one, and for changed copies of it. Sizes may be dynamic. Sums are kept in at least float32.

    Example:
        >>> import torch, ffmef.onnx
        >>> torch.ops.ffmef.adaptive_fuse.default in ffmef.onnx.translation_table()
        True
    """
    table: dict[Callable[..., Any], Callable[..., Any]] = {}
    for name, function in _FUNCTIONS.items():
        for form in (name, f"{name}_triton"):
            if hasattr(torch.ops.ffmef, form):
                table[getattr(torch.ops.ffmef, form).default] = function
    return table


def adaptive_fuse(images: TReal, filters: Sequence[TReal], alphas: TReal, padding_mode: str) -> TReal:
    """Write :func:`ffmef.ops.adaptive_fuse` tap by tap: images (B, N, C, H, W), filters (B, N, k*k, h, w)."""
    wide = _wide(images)
    height, width = _side(images, 3), _side(images, 4)
    sources, alphas = op.Cast(images, to=wide), op.Cast(alphas, to=wide)
    total = None
    for index, level in enumerate(filters):
        size = math.isqrt(level.shape[2])
        padded = _pad(sources, size // 2, padding_mode, height, width)
        level = op.Cast(level, to=wide)
        for axis, fine in ((3, height), (4, width)):
            if filters[index].shape[axis] != images.shape[axis]:
                level = _interpolate(level, axis, fine, wide)
        response = None
        for tap in range(size * size):
            product = op.Mul(_cut(level, [2], [tap], [tap + 1]), _window(padded, size, *divmod(tap, size)))
            response = product if response is None else op.Add(response, product)
        # Over the images last: additions of whole tensors are faster than many sums along one axis.
        fused = op.ReduceSum(response, _ints(1), keepdims=0)
        fused = op.Mul(fused, op.Gather(alphas, op.Constant(value_int=index)))
        total = fused if total is None else op.Add(total, fused)
    return op.CastLike(total, images)


def predict_and_fuse(
    hidden: Sequence[TReal],
    weight: Sequence[TReal],
    bias: Sequence[TReal],
    images: TReal,
    alphas: TReal,
    padding_mode: str,
) -> TReal:
    """Write :func:`ffmef.ops.predict_and_fuse` as its convolutions and :func:`adaptive_fuse`."""
    filters = []
    for maps, matrix, shift in zip(hidden, weight, bias, strict=True):
        taps, count = matrix.shape[:2]
        shape = op.Shape(maps)
        flat = op.Reshape(maps, op.Concat(_ints(-1, count), _cut(shape, [0], [3], [5]), axis=0))
        kernel = op.Reshape(matrix, _ints(taps, count, 1, 1))
        made = op.Conv(flat, kernel, shift)
        made = op.Reshape(made, op.Concat(_cut(shape, [0], [0], [2]), _ints(taps), _cut(shape, [0], [3], [5]), axis=0))
        made.shape = type(maps.shape)([*maps.shape[:2], taps, *maps.shape[3:]])
        made.dtype = maps.dtype
        filters.append(made)
    return adaptive_fuse(images, filters, alphas, padding_mode)


def pyramid_fuse(images: TReal, weights: TReal, base: TReal, scale: int) -> TReal:
    """Write :func:`ffmef.ops.pyramid_fuse`: images (B, N, C, H, W), weights (B, L, N, h, w), base (B, N, h, w)."""
    wide, bands = _wide(images), weights.shape[1]
    weights, base = op.Cast(weights, to=wide), op.Cast(base, to=wide)
    levels = [op.Cast(images, to=wide)]
    for _ in range(bands):
        levels.append(_halve(levels[-1]))
    coarse = op.Unsqueeze(base, _ints(2))
    out = _blend(_expand(coarse, scale >> bands, levels[-1]), levels[-1])
    for level in reversed(range(bands)):
        band = op.Sub(levels[level], _expand(levels[level + 1], 2, levels[level]))
        share = op.Unsqueeze(op.Gather(weights, op.Constant(value_int=level), axis=1), _ints(2))
        out = op.Add(_expand(out, 2, levels[level]), _blend(_expand(share, scale >> level, levels[level]), band))
    return op.CastLike(op.Squeeze(out, _ints(1)), images)


_FUNCTIONS = {"adaptive_fuse": adaptive_fuse, "predict_and_fuse": predict_and_fuse, "pyramid_fuse": pyramid_fuse}


def _wide(tensor: Any) -> int:
    """Return ONNX's number of the dtype in which sums are kept."""
    return FLOAT.dtype if tensor.dtype.name in _HALVES else int(tensor.dtype)


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _side(tensor: Any, axis: int) -> Any:
    """Return (1,), the size along an axis."""
    return op.Shape(tensor, start=axis, end=axis + 1)


def _cut(tensor: Any, axes: list[int], starts: list[int], ends: list[int]) -> Any:
    return op.Slice(tensor, _ints(*starts), _ints(*ends), _ints(*axes))


def _window(padded: Any, size: int, row: int, column: int) -> Any:
    """Return the part of padded images that a tap reads; ends count from the end, so that sizes may change."""
    if size == 1:
        return padded
    ends = [_END if place == size - 1 else place + 1 - size for place in (row, column)]
    return _cut(padded, [3, 4], [row, column], ends)


def _pad(images: Any, radius: int, padding_mode: str, height: Any, width: Any) -> Any:
    if not radius:
        return images
    amounts = _ints(0, 0, 0, radius, radius, 0, 0, 0, radius, radius)
    if padding_mode == "zeros":
        return op.Pad(images, amounts)
    if padding_mode == "replicate":
        return op.Pad(images, amounts, mode="edge")
    # ONNX's own modes refuse to go round or to bounce more than once.
    for axis, size in ((3, height), (4, width)):
        images = op.Gather(images, _padded_index(size, radius, padding_mode), axis=axis)
    return images


def _padded_index(size: Any, radius: int, padding_mode: str) -> Any:
    number = op.Squeeze(size)
    position = op.Range(op.Constant(value_int=-radius), op.Add(number, _int(radius)), _int(1))
    if padding_mode == "circular":
        return op.Mod(position, number)
    period = op.Max(op.Mul(op.Sub(number, _int(1)), _int(2)), _int(1))
    folded = op.Mod(position, period)
    return op.Min(folded, op.Sub(period, folded))


def _int(value: int) -> Any:
    return op.Constant(value_int=value)


def _interpolate(level: Any, axis: int, fine: Any, wide: int) -> Any:
    """Interpolate along one axis to a finer grid that spans the same; exact places, as in ``ops.reference``."""
    zero, one, fine = _int(0), _int(1), op.Squeeze(fine)
    size = op.Squeeze(op.Shape(level, start=axis, end=axis + 1))
    twice = op.Mul(fine, _int(2))
    steps = op.Add(op.Mul(op.Range(zero, fine, one), _int(2)), one)
    place = op.Max(op.Sub(op.Mul(steps, size), fine), zero)  # in units of 1 / twice
    last = op.Sub(size, one)
    first = op.Min(op.Div(place, twice), last)
    rest = op.Where(op.Less(first, last), op.Sub(place, op.Mul(twice, first)), zero)
    second = op.Min(op.Add(first, one), last)
    share = op.Div(op.Cast(rest, to=wide), op.Cast(twice, to=wide))
    if axis == 3:
        share = op.Unsqueeze(share, _ints(1))
    low, high = op.Gather(level, first, axis=axis), op.Gather(level, second, axis=axis)
    return op.Add(low, op.Mul(op.Sub(high, low), share))


def _planes(tensor: Any) -> Any:
    """(B, N, C, H, W) -> (B * N * C, 1, H, W)."""
    return op.Reshape(tensor, op.Concat(_ints(-1, 1), op.Shape(tensor, start=3, end=5), axis=0))


def _unplanes(planes: Any, like: Any) -> Any:
    return op.Reshape(planes, op.Concat(op.Shape(like, start=0, end=3), op.Shape(planes, start=2, end=4), axis=0))


def _halve(images: Any) -> Any:
    """Return means of 2 x 2 pixels, an odd border repeated."""
    odd = op.Mod(op.Shape(images, start=3, end=5), _ints(2))
    planes = op.Pad(_planes(images), op.Concat(_ints(0, 0, 0, 0, 0, 0), odd, axis=0), mode="edge")
    return _unplanes(op.AveragePool(planes, kernel_shape=[2, 2], strides=[2, 2]), images)


def _expand(coarse: Any, factor: int, like: Any) -> Any:
    """Interpolate to ``factor`` times the size and cut to the size of ``like``."""
    if factor > 1:
        scales = op.Constant(value_floats=[1.0, 1.0, float(factor), float(factor)])
        planes = op.Resize(_planes(coarse), None, scales, mode="linear", coordinate_transformation_mode="half_pixel")
        coarse = _unplanes(planes, coarse)
    return op.Slice(coarse, _ints(0, 0), op.Shape(like, start=3, end=5), _ints(3, 4))


def _blend(shares: Any, images: Any) -> Any:
    """Sum over the images, (B, N, C, H, W) -> (B, 1, C, H, W)."""
    return op.ReduceSum(op.Mul(shares, images), _ints(1), keepdims=1)


def register() -> None:
    """Let torch's exporter, once imported, find the translations without a table."""
    from onnxscript.function_libs.torch_lib.registration import torch_op

    for name, function in _FUNCTIONS.items():
        torch_op((f"ffmef::{name}", f"ffmef::{name}_triton"), trace_only=True)(function)
