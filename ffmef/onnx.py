"""The operators in ONNX: what ``torch.onnx.export(dynamo=True)`` writes for them, in standard operators only.

Importing this module needs the extra ``export``. Exporting a network does not require the import: :mod:`ffmef.ops`
tells torch's exporter about these translations when it is first used.
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
        # The images come last: adding whole tensors is faster than many sums along one axis.
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
    levels = _levels(op.Cast(images, to=wide), bands)
    coarse = op.Unsqueeze(base, _ints(2))
    out = _blend(_expand(coarse, scale >> bands, levels[-1]), levels[-1])
    return op.CastLike(op.Squeeze(_collapse(out, levels, weights, scale), _ints(1)), images)


def _levels(images: Any, bands: int) -> list[Any]:
    levels = [images]
    for _ in range(bands):
        levels.append(_halve(levels[-1]))
    return levels


def _collapse(out: Any, levels: list[Any], weights: Any, scale: int) -> Any:
    """Add the weighted bands above it to the lowest level, (B, 1, C, h, w)."""
    for level in reversed(range(len(levels) - 1)):
        band = op.Sub(levels[level], _expand(levels[level + 1], 2, levels[level]))
        share = op.Unsqueeze(op.Gather(weights, _int(level), axis=1), _ints(2))
        out = op.Add(_expand(out, 2, levels[level]), _blend(_expand(share, scale >> level, levels[level]), band))
    return out


def pyramid_luminance(
    luminance: TReal, parameters: Sequence[TReal], channels: Sequence[int], stem: int, octaves: int
) -> TReal:
    """Write :class:`ffmef.models.PyramidFFMEF`: luminance (B, N, H, W), the parameters in the module's order."""
    from ffmef.models import pyramid as model

    wide = _wide(luminance)
    prior, *rest = (op.Cast(p, to=wide) for p in parameters)
    bands = parameters[0].shape[0] - 3
    images = op.Unsqueeze(op.Cast(luminance, to=wide), _ints(2))
    levels = _levels(images, 3)
    half = _to_multiple(levels[1], model.SCALE // 2)
    high, low = (
        _cells(op.Clip(op.Div(shifted, _float(width, wide)), _float(0, wide), _float(1, wide)))
        for shifted, width in (
            (op.Sub(_float(0.915, wide), half), 0.06),
            (op.Sub(half, _float(0.065, wide)), 0.05),
        )
    )
    apart = _cells(op.Sub(op.ReduceMax(half, _ints(1)), op.ReduceMin(half, _ints(1))))  # (B, 1, 1, h, w)
    one = _float(1, wide)
    everywhere = op.Expand(apart, op.Shape(high))
    statistics = op.Concat(op.Sub(one, high), op.Sub(one, low), everywhere, axis=2)
    planes = _Predictor(iter(rest), len(channels), images).run(half, statistics)
    planes = op.Transpose(planes, perm=[0, 2, 1, 3, 4])  # (B, planes, N, h, w)
    logits, gains = op.Split(planes, axis=1, num_outputs=2)
    recorded = op.Mul(high, op.Add(_float(0.1, wide), op.Mul(_float(0.9, wide), low)))
    recorded = op.Transpose(op.Log(op.Add(recorded, _float(model.FLOOR, wide))), perm=[0, 2, 1, 3, 4])
    logits = op.Add(logits, op.Mul(op.Reshape(prior, _ints(1, -1, 1, 1, 1)), recorded))
    shares = op.Softmax(logits, axis=2)
    gains = op.Mul(gains, op.Div(apart, op.Add(apart, _float(model.GATE, wide))))
    more = op.Constant(value_floats=[model.MORE_BANDS] * bands + [model.MORE_BASE] * 2 + [0.0])
    count = op.Cast(op.Shape(images, start=1, end=2), to=wide)
    more = op.Mul(op.Cast(more, to=wide), op.Sub(one, op.Div(_float(2, wide), count)))
    gains = op.Mul(gains, op.Reshape(op.Add(one, more), _ints(1, -1, 1, 1, 1)))
    weights = op.Mul(shares, op.Add(gains, one))
    out = _octaves(levels[3], shares, weights, gains, octaves)
    for level in range(2, bands - 1, -1):
        out = _expand(out, 2, levels[level])
    if not bands:
        return op.CastLike(op.Squeeze(out, _ints(2)), luminance)
    out = _collapse(out, levels[: bands + 1], weights, model.SCALE)
    return op.CastLike(op.Squeeze(out, _ints(2)), luminance)


def _octaves(coarse: Any, shares: Any, weights: Any, gains: Any, octaves: int) -> Any:
    """Blend images at 1/8 size, (B, N, 1, h, w) -> (B, 1, 1, h, w); the last planes: base, fine and further octaves."""
    from ffmef.models.pyramid import FINE_OCTAVES

    def descend(maps: Any, octave: int) -> Any:
        return _shrink(maps) if octave <= FINE_OCTAVES else _spread(maps, 2 ** (octave - FINE_OCTAVES - 1))

    if not octaves:
        return _blend(_plane(shares, -3), coarse)
    fine, further = ([_plane(shares, plane), _plane(gains, plane)] for plane in (-2, -1))
    pictures, bands = [coarse], [_plane(weights, -3)]
    for octave in range(1, octaves + 1):
        further = [descend(maps, octave) for maps in further]
        pictures.append(descend(pictures[-1], octave))
        if octave <= FINE_OCTAVES:
            fine = [descend(maps, octave) for maps in fine]
        share, gain = fine if octave <= FINE_OCTAVES else further
        bands.append(op.Add(share, op.Mul(share, gain)))
    out = _blend(further[0], pictures[-1])
    for octave in reversed(range(octaves)):
        below = pictures[octave + 1]
        if octave < FINE_OCTAVES:
            out, below = _expand(out, 2, pictures[octave]), _expand(below, 2, pictures[octave])
        out = op.Add(out, _blend(bands[octave], op.Sub(pictures[octave], below)))
    return out


class _Predictor:
    """Writes :class:`ffmef.models.pyramid.CoarsePredictor`; maps are (B * N, c, h, w)."""

    def __init__(self, parameters: Any, grids: int, images: Any) -> None:
        names = ["stem", "enter", "statistics", "meet"]
        names += [f"{part}{i}" for part in ("down", "encode") for i in range(grids - 1)]
        names += ["overall", "meet_coarsest"]
        names += [f"{part}{i}" for part in ("up", "decode") for i in range(grids - 1)]
        self.layers = {name: (next(parameters), next(parameters)) for name in [*names, "head"]}
        self.grids, self.images = grids, images

    def run(self, half: Any, statistics: Any) -> Any:
        """Half (B, N, 1, 4 h, 4 w) and statistics (B, N, 3, h, w) -> (B, N, planes, h, w)."""
        x = op.Relu(self.convolve("stem", _together(half), 2))
        x = self.meet("meet", op.Add(self.convolve("enter", x, 2), self.convolve("statistics", _together(statistics))))
        skips = []
        for step in range(self.grids - 1):
            skips.append(x)
            x = op.Relu(self.convolve(f"down{step}", _to_multiple(x, 2), 2))
            x = op.Add(op.Relu(self.repeating(f"encode{step}", x)), x)
        x = self.meet("meet_coarsest", op.Add(x, self.convolve("overall", x)))
        for step in reversed(range(self.grids - 1)):
            wider = _resize(self.convolve(f"up{step}", x), 2)
            wider = op.Slice(wider, _ints(0, 0), op.Shape(skips[step], start=2, end=4), _ints(2, 3))
            x = op.Relu(op.Add(wider, skips[step]))
            x = op.Add(op.Relu(self.repeating(f"decode{step}", x)), x)
        return _apart(self.convolve("head", x), self.images)

    def convolve(self, name: str, x: Any, stride: int = 1) -> Any:
        return op.Conv(x, *self.layers[name], strides=[stride, stride])

    def repeating(self, name: str, x: Any) -> Any:
        return self.convolve(name, op.Pad(x, _ints(0, 0, 1, 1, 0, 0, 1, 1), mode="edge"))

    def meet(self, name: str, x: Any) -> Any:
        apart = _apart(x, self.images)
        both = op.Concat(op.ReduceMean(apart, _ints(1), keepdims=0), op.ReduceMax(apart, _ints(1), keepdims=0), axis=1)
        return op.Relu(_together(op.Add(apart, op.Unsqueeze(self.convolve(name, both), _ints(1)))))


_FUNCTIONS = {
    "adaptive_fuse": adaptive_fuse,
    "predict_and_fuse": predict_and_fuse,
    "pyramid_fuse": pyramid_fuse,
    "pyramid_luminance": pyramid_luminance,
}


def _wide(tensor: Any) -> int:
    """Return ONNX's number for the dtype in which sums are kept."""
    return FLOAT.dtype if tensor.dtype.name in _HALVES else int(tensor.dtype)


def _float(value: float, wide: int) -> Any:
    return op.Cast(op.Constant(value_float=value), to=wide)


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _side(tensor: Any, axis: int) -> Any:
    """Return (1,), the size along an axis."""
    return op.Shape(tensor, start=axis, end=axis + 1)


def _cut(tensor: Any, axes: list[int], starts: list[int], ends: list[int]) -> Any:
    return op.Slice(tensor, _ints(*starts), _ints(*ends), _ints(*axes))


def _window(padded: Any, size: int, row: int, column: int) -> Any:
    """Return the part of padded images that a tap reads; ends count from the end, so sizes may change."""
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
    # ONNX's modes refuse to wrap or to reflect more than once.
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
    planes = _to_multiple(_planes(images), 2)
    return _unplanes(op.AveragePool(planes, kernel_shape=[2, 2], strides=[2, 2]), images)


def _to_multiple(maps: Any, step: int) -> Any:
    """Repeat the last row and column of (..., h, w) until both sides are multiples of ``step``."""
    missing = op.Mod(op.Neg(op.Shape(maps, start=-2)), _ints(step))
    return op.Pad(maps, op.Concat(_ints(0, 0), missing, axis=0), None, _ints(-2, -1), mode="edge")


def _cells(maps: Any) -> Any:
    """Return the means of 4 x 4 values of (B, N, C, h, w)."""
    return _unplanes(op.AveragePool(_planes(maps), kernel_shape=[4, 4], strides=[4, 4]), maps)


def _shrink(maps: Any) -> Any:
    """Halve (B, N, C, h, w) by [1 3 3 1] / 8 along both sides, borders repeated, an odd one before that as well."""
    weights = [a * b / 64 for a in (1, 3, 3, 1) for b in (1, 3, 3, 1)]
    kernel = op.CastLike(op.Reshape(op.Constant(value_floats=weights), _ints(1, 1, 4, 4)), maps)
    planes = _to_multiple(_planes(maps), 2)
    planes = op.Pad(planes, _ints(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")
    return _unplanes(op.Conv(planes, kernel, strides=[2, 2]), maps)


def _spread(maps: Any, step: int) -> Any:
    """Smooth (B, N, C, h, w) by [1 2 1] / 4 along both sides, taps ``step`` cells apart, borders repeated."""
    half, quarter = (op.CastLike(op.Constant(value_float=value), maps) for value in (0.5, 0.25))
    for side in (3, 4):
        length = op.Shape(maps, start=side, end=side + 1)
        here = op.Range(_int(0), op.Squeeze(length), _int(1))
        before = op.Gather(maps, op.Max(op.Sub(here, _ints(step)), _ints(0)), axis=side)
        after = op.Gather(maps, op.Min(op.Add(here, _ints(step)), op.Sub(length, _ints(1))), axis=side)
        maps = op.Add(op.Mul(half, maps), op.Mul(quarter, op.Add(before, after)))
    return maps


def _plane(planes: Any, index: int) -> Any:
    """(B, planes, N, h, w) -> (B, N, 1, h, w)."""
    return op.Unsqueeze(op.Gather(planes, _int(index), axis=1), _ints(2))


def _together(maps: Any) -> Any:
    """(B, N, c, h, w) -> (B * N, c, h, w)."""
    return op.Reshape(maps, op.Concat(_ints(-1), op.Shape(maps, start=2), axis=0))


def _apart(maps: Any, images: Any) -> Any:
    """(B * N, c, h, w) -> (B, N, c, h, w), B and N as those of the images."""
    return op.Reshape(maps, op.Concat(op.Shape(images, start=0, end=2), op.Shape(maps, start=1), axis=0))


def _expand(coarse: Any, factor: int, like: Any) -> Any:
    """Interpolate to ``factor`` times the size and cut to the size of ``like``."""
    if factor > 1:
        coarse = _unplanes(_resize(_planes(coarse), factor), coarse)
    return op.Slice(coarse, _ints(0, 0), op.Shape(like, start=3, end=5), _ints(3, 4))


def _resize(planes: Any, factor: int) -> Any:
    scales = op.Constant(value_floats=[1.0, 1.0, float(factor), float(factor)])
    return op.Resize(planes, None, scales, mode="linear", coordinate_transformation_mode="half_pixel")


def _blend(shares: Any, images: Any) -> Any:
    """Sum over the images, (B, N, C, H, W) -> (B, 1, C, H, W)."""
    return op.ReduceSum(op.Mul(shares, images), _ints(1), keepdims=1)


def register() -> None:
    """Let torch's exporter, once imported, find the translations without a table."""
    from onnxscript.function_libs.torch_lib.registration import torch_op

    for name, function in _FUNCTIONS.items():
        torch_op((f"ffmef::{name}", f"ffmef::{name}_triton"), trace_only=True)(function)
