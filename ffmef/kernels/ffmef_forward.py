"""The whole FFMEF network in a chain of few Triton launches, for inference; docs/engine.md has the picture.

InstanceNorm needs the whole image's statistics, so a map is written as it leaves its convolution, with the moments of
every tile beside it. One small launch merges them in the tiles' order, and each kernel that reads the map normalises
and activates it on the way in. Heads end in one kernel that predicts and fuses: neither hidden k*k maps nor filters
are ever stored. All images of a batch share each launch. Nothing is atomic, so results are the same from run to run.
Importing this module imports triton.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ffmef.kernels import launch
from ffmef.kernels.launch import on_device, tile_of_program

IMAGES = 2
EPSILON = tl.constexpr(1e-5)
SLOPE = tl.constexpr(0.2)
TILE = (8, 64, 4)  # rows, columns, warps of a program where no test chooses others
MAPS = 8  # hidden maps of one program at a time: they share the pixels that they are computed from
TILES_AT_ONCE = 1024  # whose moments are merged in one step

# How a map is read. STEM: it is a 1x1 convolution of luminance, never stored. MAP: as it is. RECTIFIED: normalised,
# ReLU. LEAKY: normalised, leaky ReLU. GATED: times its image's attention.
STEM, MAP, RECTIFIED, LEAKY, GATED = (tl.constexpr(i) for i in range(5))
# What follows a convolution. RAW: nothing. RECTIFY: ReLU. RESIDUAL: leaky ReLU, plus a 1x1 of the block's inputs.
RAW, RECTIFY, RESIDUAL = (tl.constexpr(i) for i in range(3))


@triton.jit
def _shown(row, column, height, width):
    return ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))[None, :]


@triton.jit
def _read(source, norms, gates, stem, plane, channel, pixels, place, shown, KIND: tl.constexpr, C: tl.constexpr):
    """Return one channel of a map at ``place``, as its kind has it, zero outside the image."""
    if KIND == STEM:
        value = tl.load(source + plane * pixels + place, mask=shown, other=0.0)
        value = tl.where(shown, tl.load(stem + channel) * value + tl.load(stem + C + channel), 0.0)
    else:
        value = tl.load(source + (plane * C + channel) * pixels + place, mask=shown, other=0.0)
    if (KIND == RECTIFIED) | (KIND == LEAKY):
        norm = norms + (plane * C + channel) * 2
        value = value * tl.load(norm) + tl.load(norm + 1)
        if KIND == RECTIFIED:
            value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        else:
            value = tl.where(value < 0, SLOPE * value, value)
        value = tl.where(shown, value, 0.0)
    if KIND == GATED:
        value *= tl.load(gates + plane * pixels + place, mask=shown, other=0.0)
    return value


@triton.jit
def _convolve(
    total, source, norms, gates, stem, weights, plane, y, x, height, width,
    KIND: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, OUT: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Add a convolution of a map of C channels; weights are [channel][tap][PITCH outputs], OUT of them computed."""
    pixels = tl.cast(height, tl.int64) * width
    output = tl.arange(0, OUT)
    for channel in range(C):
        # Small filters are unrolled a row at a time: more would need more registers than there are.
        for tap in tl.range(SIZE * SIZE, loop_unroll_factor=SIZE if SIZE <= 3 else 1):
            row = y + (tap // SIZE - SIZE // 2)
            column = x + (tap % SIZE - SIZE // 2)
            place = row[:, None] * width + column[None, :]
            shown = _shown(row, column, height, width)
            value = _read(source, norms, gates, stem, plane, channel, pixels, place, shown, KIND, C)
            taps = tl.load(weights + (channel * (SIZE * SIZE) + tap) * PITCH + output)
            total += taps[:, None, None] * value[None, :, :]
    return total


@triton.jit
def _store_moments(
    values, partials, plane, y, x, height, width, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Write the mean and the sum of squared deviations of every channel over the tile."""
    inside = _shown(y, x, height, width)[None, :, :]
    count = tl.sum(inside.to(tl.float32))
    mean = tl.sum(tl.sum(tl.where(inside, values, 0.0), 2), 1) / count
    deviation = tl.where(inside, values - mean[:, None, None], 0.0)
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    place = ((plane * C + tl.arange(0, C)) * tiles + tl.program_id(0) % tiles) * 2
    tl.store(partials + place, mean)
    tl.store(partials + place + 1, tl.sum(tl.sum(deviation * deviation, 2), 1))


@triton.jit
def convolution_kernel(
    first, second, norms, gates, stem, weights, bias, identity_first, identity_second, identity, identity_bias, gains,
    output, partials, height, width,
    KIND: tl.constexpr, SECOND: tl.constexpr, TAIL: tl.constexpr, IDENTITY: tl.constexpr, MERGE: tl.constexpr,
    MOMENTS: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write a 3x3 convolution of one or two maps, what follows it, and the moments of its tile."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, False)
    pixels = tl.cast(height, tl.int64) * width
    channel = tl.arange(0, C)
    place = y[:, None] * width + x[None, :]
    inside = _shown(y, x, height, width)
    total = tl.zeros((C, ROWS, COLUMNS), tl.float32) + tl.load(bias + channel)[:, None, None]
    total = _convolve(total, first, norms, gates, stem, weights, plane, y, x, height, width, KIND, 3, C, C, C)
    if SECOND:
        total = _convolve(
            total, second, norms, gates, stem, weights + C * 9 * C, plane, y, x, height, width, MAP, 3, C, C, C
        )
    if TAIL == RECTIFY:
        total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if TAIL == RESIDUAL:
        total = tl.where(total < 0, SLOPE * total, total) + tl.load(identity_bias + channel)[:, None, None]
        total = _convolve(
            total, identity_first, norms, gates, stem, identity, plane, y, x, height, width, IDENTITY, 1, C, C, C
        )  # fmt: skip
        if MERGE:  # a second input; it is also what the block is mixed with
            total = _convolve(
                total, identity_second, norms, gates, stem, identity + C * C, plane, y, x, height, width, MAP, 1, C, C, C
            )  # fmt: skip
            skip = identity_second + (plane * C + channel)[:, None, None] * pixels + place[None, :, :]
            skip = tl.load(skip, mask=inside[None, :, :], other=0.0)
            total = tl.load(gains) * total + tl.load(gains + 1) * skip
    target = output + (plane * C + channel)[:, None, None] * pixels + place[None, :, :]
    tl.store(target, total, mask=inside[None, :, :])
    if MOMENTS:
        _store_moments(total, partials, plane, y, x, height, width, C, ROWS, COLUMNS)


@triton.jit
def point_kernel(
    base, base_norms, skip, stem, weights, bias, gains, norms, output, partials, height, width,
    BASE: tl.constexpr, SKIP: tl.constexpr, STORE: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute a 1x1 convolution of [skip, base]: its moments alone, or, with its norm known, the mix around it."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, False)
    pixels = tl.cast(height, tl.int64) * width
    channel = tl.arange(0, C)
    place = y[:, None] * width + x[None, :]
    inside = _shown(y, x, height, width)
    body = tl.zeros((C, ROWS, COLUMNS), tl.float32) + tl.load(bias + channel)[:, None, None]
    body = _convolve(body, skip, norms, skip, stem, weights, plane, y, x, height, width, SKIP, 1, C, C, C)
    body = _convolve(body, base, base_norms, base, stem, weights + C * C, plane, y, x, height, width, BASE, 1, C, C, C)
    if STORE:
        norm = norms + (plane * C + channel) * 2
        body = body * tl.load(norm)[:, None, None] + tl.load(norm + 1)[:, None, None]
        body = tl.maximum(body, 0.0, propagate_nan=tl.PropagateNan.ALL)
        offset = (plane * C + channel)[:, None, None] * pixels + place[None, :, :]
        value = tl.load(base + offset, mask=inside[None, :, :], other=0.0)
        if BASE == RECTIFIED:
            norm = base_norms + (plane * C + channel) * 2
            value = value * tl.load(norm)[:, None, None] + tl.load(norm + 1)[:, None, None]
            value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(output + offset, tl.load(gains) * body + tl.load(gains + 1) * value, mask=inside[None, :, :])
    else:
        _store_moments(body, partials, plane, y, x, height, width, C, ROWS, COLUMNS)


@triton.jit
def _pixels_of_tile(tile, across, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.minimum(height - tile // across * ROWS, ROWS)
    return (rows * tl.minimum(width - tile % across * COLUMNS, COLUMNS)).to(tl.float64)


@triton.jit
def norm_kernel(
    partials, affine, norms, height, width,
    NORMED: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Merge one channel's moments in the tiles' order, in float64, to y = scale * x + shift; 1 and 0 beyond NORMED."""
    program = tl.program_id(0)
    channel = program % C
    across = tl.cdiv(width, COLUMNS)
    tiles = across * tl.cdiv(height, ROWS)
    pixels = tl.cast(height, tl.float64) * tl.cast(width, tl.float64)
    partials += tl.cast(program, tl.int64) * tiles * 2
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        count = _pixels_of_tile(tile, across, height, width, ROWS, COLUMNS)
        mean = tl.load(partials + tile * 2, mask=tile < tiles, other=0.0).to(tl.float64)
        total += count * mean
    mean_of_all = tl.sum(total) / pixels
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        count = _pixels_of_tile(tile, across, height, width, ROWS, COLUMNS)
        mean = tl.load(partials + tile * 2, mask=tile < tiles, other=0.0).to(tl.float64)
        deviation = tl.load(partials + tile * 2 + 1, mask=tile < tiles, other=0.0).to(tl.float64)
        between = mean - mean_of_all
        total += tl.where(tile < tiles, deviation + count * between * between, 0.0)
    normed = channel < NORMED
    gamma = tl.load(affine + channel, mask=normed, other=0.0).to(tl.float64)
    beta = tl.load(affine + NORMED + channel, mask=normed, other=0.0).to(tl.float64)
    scale = gamma / tl.sqrt(tl.sum(total) / pixels + EPSILON)
    shift = beta - mean_of_all * scale
    tl.store(norms + program * 2, tl.where(normed, scale, 1.0).to(tl.float32))
    tl.store(norms + program * 2 + 1, tl.where(normed, shift, 0.0).to(tl.float32))


@triton.jit
def attention_kernel(
    maps, squeeze, squeeze_bias, excite, excite_bias, gates, height, width,
    IMAGES: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the weight in (0, 1) of each image at every pixel, from the maps of all."""
    batch, y, x = tile_of_program(height, width, ROWS, COLUMNS, False)
    pixels = tl.cast(height, tl.int64) * width
    channel = tl.arange(0, C)
    place = y[:, None] * width + x[None, :]
    inside = _shown(y, x, height, width)
    squeezed = tl.zeros((C, ROWS, COLUMNS), tl.float32) + tl.load(squeeze_bias + channel)[:, None, None]
    for n in range(IMAGES):
        squeezed = _convolve(
            squeezed, maps, maps, maps, maps, squeeze + n * C * C, batch * IMAGES + n, y, x, height, width, MAP, 1, C, C, C
        )  # fmt: skip
    squeezed = tl.maximum(squeezed, 0.0, propagate_nan=tl.PropagateNan.ALL)
    for n in range(IMAGES):
        weights = tl.load(excite + channel * IMAGES + n)
        excited = tl.sum(weights[:, None, None] * squeezed, 0) + tl.load(excite_bias + n)
        gate = 1.0 / (1.0 + tl.exp(-excited))
        tl.store(gates + (batch * IMAGES + n) * pixels + place, gate, mask=inside)


@triton.jit
def head_kernel(
    features, luminance, expand, expand_bias, responses, output, height, width,
    ADD: tl.constexpr, SIZE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, IMAGES: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write, or add, one level's fused picture: sum over images and hidden maps of relu(expand) * response."""
    batch, y, x = tile_of_program(height, width, ROWS, COLUMNS, False)
    pixels = tl.cast(height, tl.int64) * width
    PITCH: tl.constexpr = GROUPS * GROUP
    inside = _shown(y, x, height, width)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for n in range(IMAGES):
        plane = batch * IMAGES + n
        for group in range(GROUPS):
            map_number = group * GROUP + tl.arange(0, GROUP)
            hidden = tl.zeros((GROUP, ROWS, COLUMNS), tl.float32) + tl.load(expand_bias + map_number)[:, None, None]
            hidden = _convolve(
                hidden, features, features, features, features, expand + group * GROUP, plane, y, x, height, width, MAP,
                SIZE, C, GROUP, PITCH,
            )  # fmt: skip
            response = tl.zeros((GROUP, ROWS, COLUMNS), tl.float32)
            response = _convolve(
                response, luminance, luminance, luminance, luminance, responses + group * GROUP, plane, y, x, height, width,
                MAP, SIZE, 1, GROUP, PITCH,
            )  # fmt: skip
            total += tl.sum(tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL) * response, 0)
    target = output + batch * pixels + y[:, None] * width + x[None, :]
    if ADD:
        total += tl.load(target, mask=inside, other=0.0)
    tl.store(target, total, mask=inside)


# ---- parameters ----


@dataclass(frozen=True)
class Layout:
    """Where the kernels find each weight: packed[i] = flat[index[i]] * flat[factor[i]]; flat is the parameters, 1, 0."""

    parameters: int
    index: Tensor
    factor: Tensor
    places: dict[str, int]


def groups_of(kernel_size: int) -> tuple[int, int]:
    """Return how many groups a level's hidden maps are computed in, and how many maps a group has; the bias is one."""
    maps = kernel_size * kernel_size + 1
    group = min(triton.next_power_of_2(maps), MAPS)
    return triton.cdiv(maps, group), group


class _Packer:
    """Takes a model's parameters by their numbers, one after the other, and keeps them in the kernels' order."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.taken = 0
        # Name, numbers of the values, number of the factor that multiplies them.
        self.pieces: list[tuple[str, Tensor, int | None]] = []

    def take(self, *shape: int) -> Tensor:
        self.taken += math.prod(shape)
        return torch.arange(self.taken - math.prod(shape), self.taken).view(shape)

    def keep(self, name: str, numbers: Tensor, factor: int | None = None) -> None:
        self.pieces.append((name, numbers.reshape(-1), factor))

    def convolution(self, name: str, out: int, into: int, size: int, transposed: bool = False) -> None:
        if transposed:  # of stride 1: a convolution with its taps turned round
            weight = self.take(into, out, size, size).transpose(0, 1).flip(2, 3)
        else:
            weight = self.take(out, into, size, size)
        self.keep(f"{name}.weight", weight.permute(1, 2, 3, 0))
        self.keep(f"{name}.bias", self.take(out))

    def residual(self, name: str, into: int) -> None:
        c = self.channels
        self.convolution(f"{name}.identity", c, into, 1)
        self.convolution(f"{name}.conv_1", c, into, 3)
        self.keep(f"{name}.norm", self.take(2, c // 2))
        self.convolution(f"{name}.conv_2", c, c, 3)

    def step(self, name: str, transposed: bool) -> None:
        self.convolution(f"{name}.conv", self.channels, self.channels, 3, transposed)
        self.keep(f"{name}.norm", self.take(2, self.channels))

    def mix(self, name: str) -> None:
        self.keep(f"{name}.gains", self.take(2))
        self.convolution(f"{name}.conv", self.channels, 2 * self.channels, 1)
        self.keep(f"{name}.norm", self.take(2, self.channels))

    def merge(self, name: str) -> None:
        self.keep(f"{name}.gains", self.take(2))
        self.residual(name, 2 * self.channels)

    def extractor(self) -> None:
        c = self.channels
        self.keep("stem", self.take(2, c))
        self.residual("encode_1", c)
        self.step("down_1", False)
        self.mix("skip_1")
        self.residual("encode_2", c)
        self.step("down_2", False)
        self.mix("skip_2")
        self.mix("skip_3")
        self.residual("bottom", c)
        self.step("up_2", True)
        self.mix("skip_4")
        self.residual("decode_2", c)
        self.merge("merge_2")
        self.step("up_1", True)
        self.mix("skip_5")
        self.residual("decode_1", c)
        self.mix("skip_6")
        self.merge("merge_1")

    def heads(self, kernel_sizes: tuple[int, ...]) -> None:
        c = self.channels
        for level in range(len(kernel_sizes)):
            self.convolution(f"squeeze_{level}", c, IMAGES * c, 1)
            self.convolution(f"excite_{level}", IMAGES, c, 1)
        shapes = [((c, c, 3, 3), (c,), (k * k, c, k, k), (k * k,), (k * k, k * k), (k * k,)) for k in kernel_sizes]
        heads = [[self.take(*shape) for shape in of_head] for of_head in shapes]
        alphas = self.take(len(kernel_sizes))
        one, zero = self.taken, self.taken + 1
        for level, (size, head) in enumerate(zip(kernel_sizes, heads, strict=True)):
            conv, conv_bias, expand, expand_bias, project, project_bias = head
            taps, pitch = size * size, math.prod(groups_of(size))
            self.keep(f"features_{level}.weight", conv.permute(1, 2, 3, 0))
            self.keep(f"features_{level}.bias", conv_bias)
            padded = torch.full((c, taps, pitch), zero)
            padded[..., :taps] = expand.reshape(taps, c, taps).permute(1, 2, 0)
            self.keep(f"expand_{level}.weight", padded)
            # One more hidden map, always 1, stands for the bias of the last convolution.
            padded = torch.full((pitch,), zero)
            padded[:taps], padded[taps] = expand_bias, one
            self.keep(f"expand_{level}.bias", padded)
            padded = torch.full((taps, pitch), zero)
            padded[:, :taps], padded[:, taps] = project, project_bias
            self.keep(f"responses_{level}", padded, int(alphas[level]))


@functools.cache
def layout(channels: int, kernel_sizes: tuple[int, ...]) -> Layout:
    """Lay out the model's ``parameters()`` by laying out their numbers."""
    packer = _Packer(channels)
    packer.extractor()
    packer.heads(kernel_sizes)
    one, zero = packer.taken, packer.taken + 1
    places, index, factors, offset = {}, [], [], 0
    for name, numbers, factor in packer.pieces:
        # 16-byte boundaries, so that a channel's weights are read at once.
        numbers = torch.cat([numbers, torch.full((-numbers.numel() % 4,), zero)])
        places[name], offset = offset, offset + numbers.numel()
        index.append(numbers)
        factors.append(torch.full_like(numbers, one if factor is None else factor))
    return Layout(packer.taken, torch.cat(index), torch.cat(factors), places)


@functools.cache
def _on(device: torch.device, channels: int, kernel_sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layout's numbers and the constants 1 and 0 on a device."""
    plan = layout(channels, kernel_sizes)
    return plan.index.to(device), plan.factor.to(device), torch.tensor([1.0, 0.0], device=device)


# ---- the chain of launches ----


class _Map:
    """(planes, C, H, W), or luminance in place of the stem's result, and how it is to be read."""

    def __init__(self, values: Tensor, kind: tl.constexpr, norms: Tensor | None = None) -> None:
        self.values, self.kind, self.norms = values, kind.value, values if norms is None else norms


class _Network:
    """The launches for one batch of luminance (B, 2, H, W)."""

    def __init__(self, luminance: Tensor, packed: Tensor, places: dict[str, int], channels: int) -> None:
        self.luminance, self.packed, self.channels = luminance, packed, channels
        # Cut once and for all: a slice for each use would take longer than the launch.
        ends = [*list(places.values())[1:], packed.numel()]
        sizes = [end - first for first, end in zip(places.values(), ends, strict=True)]
        self.pieces = dict(zip(places, packed.split(sizes), strict=True))
        self.batch, _, self.height, self.width = luminance.shape
        self.planes = self.batch * IMAGES
        self.rows, self.columns, self.warps = launch.fixed_tile(TILE)
        self.tiles = triton.cdiv(self.height, self.rows) * triton.cdiv(self.width, self.columns)

    def weights(self, name: str) -> Tensor:
        return self.pieces[name]

    def run(self, kernel, programs: int, *arguments, **constants) -> None:
        constants |= {"ROWS": self.rows, "COLUMNS": self.columns, "C": self.channels}
        launch.start_in_order(kernel, programs, (*arguments, self.height, self.width), constants, self.warps)

    def new_map(self) -> Tensor:
        return self.luminance.new_empty((self.planes, self.channels, self.height, self.width))

    def new_partials(self) -> Tensor:
        return self.luminance.new_empty((self.planes, self.channels, self.tiles, 2))

    def norm(self, partials: Tensor, affine: str, normed: int) -> Tensor:
        norms = self.luminance.new_empty((self.planes, self.channels, 2))
        block = min(triton.next_power_of_2(self.tiles), TILES_AT_ONCE)
        self.run(
            norm_kernel, self.planes * self.channels, partials, self.weights(affine), norms, NORMED=normed, BLOCK=block
        )
        return norms

    def convolve(
        self, name: str, first: _Map, second: Tensor | None = None, *, gates: Tensor | None = None, tail=RAW,
        inputs: tuple[_Map, Tensor | None] | None = None, moments: bool = True,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return a 3x3 convolution and its tiles' moments; RESIDUAL has ``inputs`` of the block around it."""
        block = name.removesuffix(".conv_2")
        output = self.new_map()
        partials = self.new_partials() if moments else output
        unused = self.packed
        around, skip = inputs if inputs is not None else (first, None)
        self.run(
            convolution_kernel, self.tiles * self.planes,
            first.values, second if second is not None else unused, first.norms, gates if gates is not None else unused,
            self.weights("stem"), self.weights(f"{name}.weight"), self.weights(f"{name}.bias"),
            around.values, skip if skip is not None else unused,
            self.weights(f"{block}.identity.weight") if inputs is not None else unused,
            self.weights(f"{block}.identity.bias") if inputs is not None else unused,
            self.weights(f"{block}.gains") if skip is not None else unused,
            output, partials,
            KIND=first.kind, SECOND=second is not None, TAIL=tail.value, IDENTITY=around.kind, MERGE=skip is not None,
            MOMENTS=moments,
        )  # fmt: skip
        return output, partials

    def residual(self, name: str, first: _Map, second: Tensor | None = None) -> Tensor:
        """Return a residual block of one or two maps, mixed with the second where there are two."""
        raw, partials = self.convolve(f"{name}.conv_1", first, second)
        norms = self.norm(partials, f"{name}.norm", self.channels // 2)
        activated = _Map(raw, LEAKY, norms)
        return self.convolve(f"{name}.conv_2", activated, tail=RESIDUAL, inputs=(first, second), moments=False)[0]

    def step(self, name: str, values: Tensor) -> _Map:
        raw, partials = self.convolve(f"{name}.conv", _Map(values, MAP))
        return _Map(raw, RECTIFIED, self.norm(partials, f"{name}.norm", self.channels))

    def mix(self, name: str, skip: _Map, base: _Map) -> Tensor:
        """Return the 1x1 mix: once through for its statistics, once for its values."""
        arguments = (
            base.values, base.norms, skip.values, self.weights("stem"), self.weights(f"{name}.conv.weight"),
            self.weights(f"{name}.conv.bias"), self.weights(f"{name}.gains"),
        )  # fmt: skip
        kinds = {"BASE": base.kind, "SKIP": skip.kind}
        partials = self.new_partials()
        programs = self.tiles * self.planes
        self.run(point_kernel, programs, *arguments, self.packed, self.packed, partials, **kinds, STORE=False)
        norms = self.norm(partials, f"{name}.norm", self.channels)
        output = self.new_map()
        self.run(point_kernel, programs, *arguments, norms, output, output, **kinds, STORE=True)
        return output

    def extract(self) -> tuple[Tensor, Tensor, Tensor]:
        x = _Map(self.luminance, STEM)
        e1 = self.residual("encode_1", x)
        d1 = self.mix("skip_1", x, self.step("down_1", e1))
        e2 = self.residual("encode_2", _Map(d1, MAP))
        d2 = self.mix("skip_2", _Map(d1, MAP), self.step("down_2", e2))
        del d1
        d2 = self.mix("skip_3", x, _Map(d2, MAP))
        bottom = self.residual("bottom", _Map(d2, MAP))
        del d2
        u2 = self.mix("skip_4", _Map(bottom, MAP), self.step("up_2", bottom))
        u2 = self.residual("decode_2", _Map(u2, MAP))
        u2 = self.residual("merge_2", _Map(e2, MAP), u2)
        del e2
        u1 = self.mix("skip_5", _Map(u2, MAP), self.step("up_1", u2))
        u1 = self.residual("decode_1", _Map(u1, MAP))
        u1 = self.mix("skip_6", _Map(bottom, MAP), _Map(u1, MAP))
        return bottom, u2, self.residual("merge_1", _Map(e1, MAP), u1)

    def fuse_level(self, level: int, size: int, maps: Tensor, output: Tensor) -> None:
        gates = self.luminance.new_empty((self.planes, self.height, self.width))
        attention = [
            self.weights(f"{part}_{level}.{kind}") for part in ("squeeze", "excite") for kind in ("weight", "bias")
        ]
        self.run(attention_kernel, self.tiles * self.batch, maps, *attention, gates, IMAGES=IMAGES)
        features, _ = self.convolve(f"features_{level}", _Map(maps, GATED), gates=gates, tail=RECTIFY, moments=False)
        groups, group = groups_of(size)
        self.run(
            head_kernel, self.tiles * self.batch, features, self.luminance, self.weights(f"expand_{level}.weight"),
            self.weights(f"expand_{level}.bias"), self.weights(f"responses_{level}"), output,
            ADD=level > 0, SIZE=size, GROUPS=groups, GROUP=group, IMAGES=IMAGES,
        )  # fmt: skip


def network_of(
    luminance: Tensor, parameters: Sequence[Tensor], channels: int, kernel_sizes: tuple[int, ...]
) -> _Network:
    """Return the launches for luminance with the parameters packed as the kernels read them."""
    plan = layout(channels, kernel_sizes)
    if (held := sum(p.numel() for p in parameters)) != plan.parameters:
        raise RuntimeError(
            f"parameters must hold {plan.parameters} values for channels {channels} and these kernel_sizes, got {held}"
        )
    index, factor, constants = _on(luminance.device, channels, kernel_sizes)
    flat = torch.cat([*(p.detach().reshape(-1) for p in parameters), constants])
    packed = torch.mul(flat[index], flat[factor], out=luminance.new_empty(index.shape))
    return _Network(luminance.contiguous(), packed, plan.places, channels)


def forward(luminance: Tensor, parameters: Sequence[Tensor], channels: int, kernel_sizes: Sequence[int]) -> Tensor:
    """Return ``ffmef::ffmef_forward`` of (B, 2, H, W) luminance; arguments are taken as valid."""
    batch, _, height, width = luminance.shape
    if height * width > launch.INT32_MAX:
        raise RuntimeError(f"luminance must have fewer than 2**31 pixels on GPUs, got {height} x {width}")
    with on_device(luminance):
        output = luminance.new_empty((batch, 1, height, width))
        if output.numel() == 0:
            return output
        network = network_of(luminance, parameters, channels, tuple(kernel_sizes))
        bottom, up2, up1 = network.extract()
        for level, size in enumerate(kernel_sizes):
            # Small filters are predicted from the shallow maps, large ones from the deep one.
            network.fuse_level(level, size, up1 if size == 1 else up2 if size == 3 else bottom, output)
    return output
