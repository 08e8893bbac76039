"""Triton kernels of adaptive_fuse and its gradients, for GPUs without the compiled CUDA library.

A program computes a tile of pixels of one batch element for up to four channels, so that filters are read once; several
levels share one launch. The gradient of the images is a gather: no atomics, one order of summation. Nothing here is
particular to one vendor's GPUs. Importing this module imports triton.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ffmef.kernels.launch import (
    accumulator,
    launch,
    most_programs,
    needs_64_bits,
    on_device,
    stride_arguments,
    tile_of_program,
)

LEVELS = 4  # of one launch; further levels are added by further launches
CHANNELS = 4  # of one program
PADDINGS = {"zeros": 0, "replicate": 1, "reflect": 2}
# Numbers of which no compiled code should depend; strides and the width may, for they decide how wide loads are.
UNSPECIALISED = ["count", "channels", "height", "groups", "size_class"]


@triton.jit
def _padded(position, size, PADDING: tl.constexpr):
    """Return the index that a padded position shows and whether it shows one."""
    if PADDING == 0:
        shown = (position >= 0) & (position < size)
        index = position
    else:
        shown = position == position
        if PADDING == 1:
            index = tl.minimum(tl.maximum(position, 0), size - 1)
        else:
            period = tl.maximum(2 * (size - 1), 1)
            phase = ((position % period) + period) % period
            index = tl.minimum(phase, period - phase)
    return index, shown


@triton.jit
def _response(
    total, image, channel, image_channel, image_row, image_column, filters, filter_tap, filter_row, filter_column,
    y, x, inside, channels, height, width, tap, SIZE: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """Add one tap's products to the level's sum, (channels, rows, columns)."""
    row, row_shown = _padded(y + tap // SIZE - SIZE // 2, height, PADDING)
    column, column_shown = _padded(x + tap % SIZE - SIZE // 2, width, PADDING)
    weight = tl.load(
        filters + tl.cast(tap, tl.int64) * filter_tap + (y[:, None] * filter_row + x[None, :] * filter_column),
        mask=inside, other=0.0,
    ).to(total.dtype)  # fmt: skip
    shown = (row_shown[:, None] & column_shown[None, :]) & inside
    pixel = tl.load(
        image + channel[:, None, None] * image_channel
        + (row[:, None] * image_row + column[None, :] * image_column)[None, :, :],
        mask=(channel < channels)[:, None, None] & shown[None, :, :], other=0.0,
    ).to(total.dtype)  # fmt: skip
    return total + weight[None, :, :] * pixel


@triton.jit
def _fuse_level(
    result, image, channel, image_channel, image_row, image_column, filters, filter_tap, filter_row, filter_column,
    y, x, inside, channels, height, width, alpha, SIZE: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    total = tl.zeros_like(result)
    if SIZE <= 7:
        for tap in tl.static_range(SIZE * SIZE):
            total = _response(
                total, image, channel, image_channel, image_row, image_column, filters, filter_tap, filter_row,
                filter_column, y, x, inside, channels, height, width, tap, SIZE, PADDING,
            )  # fmt: skip
    else:
        for tap in range(SIZE * SIZE):
            total = _response(
                total, image, channel, image_channel, image_row, image_column, filters, filter_tap, filter_row,
                filter_column, y, x, inside, channels, height, width, tap, SIZE, PADDING,
            )  # fmt: skip
    return result + alpha * total


@triton.jit(do_not_specialize=UNSPECIALISED)
def forward_kernel(
    images, image_batch, image_image, image_channel, image_row, image_column,
    filters_0, batch_0, image_0, tap_0, row_0, column_0,
    filters_1, batch_1, image_1, tap_1, row_1, column_1,
    filters_2, batch_2, image_2, tap_2, row_2, column_2,
    filters_3, batch_3, image_3, tap_3, row_3, column_3,
    alphas, output, count, channels, height, width, groups, size_class,
    SIZE_0: tl.constexpr, SIZE_1: tl.constexpr, SIZE_2: tl.constexpr, SIZE_3: tl.constexpr,
    PADDING: tl.constexpr, ADD: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write sum_l alpha_l sum_n sum_taps filter * image for one tile; SIZE_l = 0 marks an absent level."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, WIDE)
    batch = plane // groups
    channel = (plane % groups) * GROUP + tl.arange(0, GROUP)
    inside = (y < height)[:, None] & (x < width)[None, :]
    result = tl.zeros((GROUP, ROWS, COLUMNS), DTYPE)
    for image_number in range(count):
        n = tl.cast(image_number, tl.int64)
        image = images + batch * image_batch + n * image_image
        result = _fuse_level(
            result, image, channel, image_channel, image_row, image_column, filters_0 + batch * batch_0 + n * image_0,
            tap_0, row_0, column_0, y, x, inside, channels, height, width, tl.load(alphas), SIZE_0, PADDING,
        )  # fmt: skip
        if SIZE_1 > 0:
            result = _fuse_level(
                result, image, channel, image_channel, image_row, image_column,
                filters_1 + batch * batch_1 + n * image_1, tap_1, row_1, column_1,
                y, x, inside, channels, height, width, tl.load(alphas + 1), SIZE_1, PADDING,
            )  # fmt: skip
        if SIZE_2 > 0:
            result = _fuse_level(
                result, image, channel, image_channel, image_row, image_column,
                filters_2 + batch * batch_2 + n * image_2, tap_2, row_2, column_2,
                y, x, inside, channels, height, width, tl.load(alphas + 2), SIZE_2, PADDING,
            )  # fmt: skip
        if SIZE_3 > 0:
            result = _fuse_level(
                result, image, channel, image_channel, image_row, image_column,
                filters_3 + batch * batch_3 + n * image_3, tap_3, row_3, column_3,
                y, x, inside, channels, height, width, tl.load(alphas + 3), SIZE_3, PADDING,
            )  # fmt: skip
    rows = (batch * channels + channel)[:, None, None] * height + y[None, :, None]
    target = output + rows * width + x[None, None, :]
    mask = (channel < channels)[:, None, None] & inside[None, :, :]
    if ADD:
        result += tl.load(target, mask=mask, other=0.0).to(DTYPE)
    tl.store(target, result.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=UNSPECIALISED)
def filters_gradient_kernel(
    gradient, gradient_batch, gradient_channel, gradient_row, gradient_column,
    images, image_batch, image_image, image_channel, image_row, image_column,
    filters, filter_batch, filter_image, filter_tap, filter_row, filter_column,
    alpha, target, partials, count, channels, height, width, size_class,
    SIZE: tl.constexpr, PADDING: tl.constexpr, NEED_FILTERS: tl.constexpr, NEED_ALPHA: tl.constexpr,
    WIDE: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write one level's alpha * gradient * shifted image for one tile of one image, and its share of alpha's gradient."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, WIDE)
    batch, n = plane // count, plane % count
    inside = (y < height)[:, None] & (x < width)[None, :]
    image = images + batch * image_batch + n * image_image
    filters += batch * filter_batch + n * filter_image
    here = gradient + batch * gradient_batch + (y[:, None] * gradient_row + x[None, :] * gradient_column)
    weight = tl.load(alpha)
    pixels = tl.cast(height, tl.int64) * width
    target += plane * (SIZE * SIZE) * pixels + (y[:, None].to(tl.int64) * width + x[None, :])
    total = tl.zeros((ROWS, COLUMNS), DTYPE)
    for tap in tl.range(SIZE * SIZE, loop_unroll_factor=SIZE):
        row, row_shown = _padded(y + tap // SIZE - SIZE // 2, height, PADDING)
        column, column_shown = _padded(x + tap % SIZE - SIZE // 2, width, PADDING)
        shown = (row_shown[:, None] & column_shown[None, :]) & inside
        seen = image + (row[:, None] * image_row + column[None, :] * image_column)
        product = tl.zeros((ROWS, COLUMNS), DTYPE)
        for channel in range(channels):
            c = tl.cast(channel, tl.int64)
            value = tl.load(here + c * gradient_channel, mask=inside, other=0.0).to(DTYPE)
            product += value * tl.load(seen + c * image_channel, mask=shown, other=0.0).to(DTYPE)
        wide_tap = tl.cast(tap, tl.int64)
        if NEED_ALPHA:
            own = filters + wide_tap * filter_tap + (y[:, None] * filter_row + x[None, :] * filter_column)
            total += product * tl.load(own, mask=inside, other=0.0).to(DTYPE)
        if NEED_FILTERS:
            tl.store(target + wide_tap * pixels, (weight * product).to(target.dtype.element_ty), mask=inside)
    if NEED_ALPHA:
        tl.store(partials + tl.program_id(0), tl.sum(total))


@triton.jit
def _places(own, i, size, RADIUS: tl.constexpr, PADDING: tl.constexpr):
    """Return the i-th place where padding may show a pixel, and whether it does; place 0 is the pixel's own."""
    place = tl.where(i <= RADIUS, i - 1 - RADIUS, size + i - 1 - RADIUS) + 0 * own
    index, shown = _padded(place, size, PADDING)
    first = (i + 0 * own) == 0
    return tl.where(first, own, place), first | (shown & (index == own))


@triton.jit
def _place_count(own, size, RADIUS: tl.constexpr, PADDING: tl.constexpr):
    """Return how many places the pixels of a tile may be shown at: its own only, unless the tile is at the border."""
    if PADDING == 0:
        count = 1
    else:
        at_border = (tl.min(own) <= RADIUS) | (tl.max(own) >= size - 1 - RADIUS)
        count = tl.where(at_border, 1 + 2 * RADIUS, 1)
    return count


@triton.jit
def _seen_by(
    total, gradient, channel, gradient_channel, gradient_row, gradient_column, filters, filter_tap, filter_row,
    filter_column, row_place, column_place, shown, channels, height, width, tap, SIZE: tl.constexpr,
):  # fmt: skip
    """Add what the outputs that see these places through one tap send back."""
    row = row_place + SIZE // 2 - tap // SIZE
    column = column_place + SIZE // 2 - tap % SIZE
    rows_exist = (row >= 0) & (row < height)
    exists = shown & (rows_exist[:, None] & ((column >= 0) & (column < width))[None, :])
    weight = tl.load(
        filters + tl.cast(tap, tl.int64) * filter_tap + (row[:, None] * filter_row + column[None, :] * filter_column),
        mask=exists, other=0.0,
    ).to(total.dtype)  # fmt: skip
    value = tl.load(
        gradient + channel[:, None, None] * gradient_channel
        + (row[:, None] * gradient_row + column[None, :] * gradient_column)[None, :, :],
        mask=(channel < channels)[:, None, None] & exists[None, :, :], other=0.0,
    ).to(total.dtype)  # fmt: skip
    return total + weight[None, :, :] * value


@triton.jit(do_not_specialize=UNSPECIALISED)
def images_gradient_kernel(
    gradient, gradient_batch, gradient_channel, gradient_row, gradient_column,
    filters, filter_batch, filter_image, filter_tap, filter_row, filter_column,
    alpha, output, count, channels, height, width, groups, size_class,
    SIZE: tl.constexpr, PADDING: tl.constexpr, ADD: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write, or add to float32 or float64 sums, one level's gradient of a tile of one image."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, WIDE)
    channel = (plane % groups) * GROUP + tl.arange(0, GROUP)
    plane = plane // groups
    batch, n = plane // count, plane % count
    gradient += batch * gradient_batch
    filters += batch * filter_batch + n * filter_image
    inside = (y < height)[:, None] & (x < width)[None, :]
    total = tl.zeros((GROUP, ROWS, COLUMNS), DTYPE)
    RADIUS: tl.constexpr = SIZE // 2
    for i in range(_place_count(y, height, RADIUS, PADDING)):
        row_place, row_shown = _places(y, i, height, RADIUS, PADDING)
        if tl.max(row_shown.to(tl.int32), 0) > 0:
            for j in range(_place_count(x, width, RADIUS, PADDING)):
                column_place, column_shown = _places(x, j, width, RADIUS, PADDING)
                if tl.max(column_shown.to(tl.int32), 0) > 0:
                    shown = (row_shown[:, None] & column_shown[None, :]) & inside
                    for tap in tl.range(SIZE * SIZE, loop_unroll_factor=SIZE):
                        total = _seen_by(
                            total, gradient, channel, gradient_channel, gradient_row, gradient_column, filters,
                            filter_tap, filter_row, filter_column, row_place, column_place, shown, channels, height,
                            width, tap, SIZE,
                        )  # fmt: skip
    total *= tl.load(alpha)
    rows = (plane * channels + channel)[:, None, None] * height + y[None, :, None]
    target = output + rows * width + x[None, None, :]
    mask = (channel < channels)[:, None, None] & inside[None, :, :]
    if ADD:
        total += tl.load(target, mask=mask, other=0.0).to(DTYPE)
    tl.store(target, total.to(output.dtype.element_ty), mask=mask)


def _in_level(level: Tensor | None, number: int, dummy: Tensor) -> dict[str, object]:
    strides = level.stride() if level is not None else (0,) * 5
    names = ("batch", "image", "tap", "row", "column")
    arguments: dict[str, object] = {f"{name}_{number}": stride for name, stride in zip(names, strides, strict=True)}
    arguments[f"filters_{number}"] = level if level is not None else dummy
    arguments[f"SIZE_{number}"] = math.isqrt(level.shape[2]) if level is not None else 0
    return arguments


def _common(images: Tensor, padding_mode: str) -> tuple[dict[str, object], int, int]:
    """Return the arguments that all kernels share, the channels of one program, and how many groups of them there are."""
    count, channels, height, width = images.shape[1:]
    group = min(triton.next_power_of_2(channels), CHANNELS)
    shared = {"count": count, "channels": channels, "height": height, "width": width}
    shared["PADDING"] = PADDINGS[padding_mode]
    shared["DTYPE"] = tl.float64 if images.dtype == torch.float64 else tl.float32
    return shared, group, triton.cdiv(channels, group)


IMAGE_AXES = ("batch", "image", "channel", "row", "column")
FILTER_AXES = ("batch", "image", "tap", "row", "column")
GRADIENT_AXES = ("batch", "channel", "row", "column")


def forward(images: Tensor, filters: Sequence[Tensor], alphas: Tensor, padding_mode: str) -> Tensor:
    """Return ``ffmef::adaptive_fuse`` of (B, N, C, H, W) images; arguments are taken as valid."""
    batch, _, channels, height, width = images.shape
    wide = accumulator(images.dtype)
    # Sums of several launches are kept where they do not lose digits.
    dtype = wide if len(filters) > LEVELS else images.dtype
    output = images.new_empty((batch, channels, height, width), dtype=dtype)
    if output.numel() == 0:
        return output.to(images.dtype)
    alphas = alphas.to(wide).contiguous()
    shared, group, groups = _common(images, padding_mode)
    with on_device(images):
        for first in range(0, len(filters), LEVELS):
            levels = list(filters[first : first + LEVELS])
            arguments = shared | stride_arguments("image", images, IMAGE_AXES)
            for number in range(LEVELS):
                arguments |= _in_level(levels[number] if number < len(levels) else None, number, levels[0])
            arguments |= {"images": images, "alphas": alphas[first:], "output": output, "groups": groups, "GROUP": group}
            arguments |= {"ADD": first > 0, "WIDE": needs_64_bits(images, *levels)}
            key = ("GROUP", *(f"SIZE_{number}" for number in range(LEVELS)))
            launch(forward_kernel, batch * groups, arguments, key, restored=("output",))
    return output.to(images.dtype)


def backward(
    grad: Tensor,
    images: Tensor,
    filters: Sequence[Tensor],
    alphas: Tensor,
    padding_mode: str,
    need_images: bool,
    need_filters: Sequence[int],
    need_alphas: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return ``ffmef::adaptive_fuse_backward``; arguments are taken as valid. What is not needed has shape (0,)."""
    batch, count, _, height, width = images.shape
    wide = accumulator(images.dtype)
    wide_alphas = alphas.to(wide).contiguous()
    dtype = wide if len(filters) > 1 else images.dtype
    image_grad = images.new_empty(images.shape if need_images else (0,), dtype=dtype)
    filter_grads = [
        level.new_empty(level.shape if needed else (0,)) for level, needed in zip(filters, need_filters, strict=True)
    ]
    alpha_grad = wide_alphas.new_zeros(len(filters) if need_alphas else 0)
    if images.numel() == 0:
        return image_grad.to(images.dtype), filter_grads, alpha_grad.to(alphas.dtype)
    shared, group, groups = _common(images, padding_mode)
    programs = most_programs(height, width, batch * count) if need_alphas else 1
    with on_device(images):
        for l, level in enumerate(filters):
            arguments = shared | stride_arguments("gradient", grad, GRADIENT_AXES) | stride_arguments("filter", level, FILTER_AXES)
            arguments |= {"gradient": grad, "filters": level, "alpha": wide_alphas[l:]}
            arguments |= {"SIZE": math.isqrt(level.shape[2]), "WIDE": needs_64_bits(images, level, grad)}
            if need_filters[l] or need_alphas:
                partials = wide_alphas.new_zeros(programs)
                own = arguments | stride_arguments("image", images, IMAGE_AXES) | {"images": images, "partials": partials}
                own |= {"target": filter_grads[l] if need_filters[l] else level}
                own |= {"NEED_FILTERS": bool(need_filters[l]), "NEED_ALPHA": need_alphas}
                key = ("SIZE", "NEED_FILTERS", "NEED_ALPHA")
                launch(filters_gradient_kernel, batch * count, own, key, zeroed=("partials",))
                if need_alphas:
                    alpha_grad[l] = partials.sum(dtype=torch.float64)
            if need_images:
                own = arguments | {"output": image_grad, "groups": groups, "GROUP": group, "ADD": l > 0}
                launch(
                    images_gradient_kernel, batch * count * groups, own, ("SIZE", "GROUP"), restored=("output",)
                )
    return image_grad.to(images.dtype), filter_grads, alpha_grad.to(alphas.dtype)
