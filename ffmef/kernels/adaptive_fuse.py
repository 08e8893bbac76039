"""Triton kernels of adaptive_fuse and its gradients, for GPUs without the compiled CUDA library.

A program computes a tile of pixels of one batch element for up to four channels, so that filters are read once; several
levels share one launch; those on a coarser grid have one each. The gradients of the images and of coarse filters are
gathers: there are no atomics, and the order of summation is fixed. Nothing here is specific to one vendor's GPUs.
Importing this module imports triton.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ffmef.kernels.interpolation import share_of, span_of, tap_of
from ffmef.kernels.launch import (
    INT32_MAX,
    Tile,
    accumulator,
    launch,
    like,
    needs_64_bits,
    on_device,
    programs_of,
    stride_arguments,
    tile_of_program,
    without_memory,
)
from ffmef.ops.adaptive_fuse import PADDING_MODES
from ffmef.ops.reference import promoted_dtype

LEVELS = 4  # of one launch; further levels are added by further launches
CHANNELS = 4  # of one program
# Each tile's share of alpha's gradient is summed inside the tile, so the gradient would change with the tile.
ALPHA_TILE: Tile = (8, 64, 4)
PADDINGS = {mode: number for number, mode in enumerate(PADDING_MODES)}
# Compiled code should not depend on these numbers. It may on strides and the width: they decide how wide loads are.
UNSPECIALISED = ["count", "channels", "height", "groups", "size_class", "cells_down", "cells_across"]


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
        elif PADDING == 2:
            period = tl.maximum(2 * (size - 1), 1)
            phase = ((position % period) + period) % period
            index = tl.minimum(phase, period - phase)
        else:
            index = ((position % size) + size) % size
    return index, shown


@triton.jit
def _taps_at(
    filters, filter_row, filter_column, row, column, mask, height, width, cells_down, cells_across,
    COARSE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Return one tap's filter values at rows and columns of pixels, interpolated where their grid is coarser."""
    if COARSE:
        top, bottom, down = tap_of(row, cells_down, cells_down, height, DTYPE)
        left, right, across = tap_of(column, cells_across, cells_across, width, DTYPE)
        upper, lower = filters + top[:, None] * filter_row, filters + bottom[:, None] * filter_row
        near, far = left[None, :] * filter_column, right[None, :] * filter_column
        far_share = across[None, :]
        value = (1 - down[:, None]) * (
            tl.load(upper + near, mask=mask, other=0.0).to(DTYPE) * (1 - far_share)
            + tl.load(upper + far, mask=mask, other=0.0).to(DTYPE) * far_share
        )
        value += down[:, None] * (
            tl.load(lower + near, mask=mask, other=0.0).to(DTYPE) * (1 - far_share)
            + tl.load(lower + far, mask=mask, other=0.0).to(DTYPE) * far_share
        )
    else:
        source = filters + (row[:, None] * filter_row + column[None, :] * filter_column)
        value = tl.load(source, mask=mask, other=0.0).to(DTYPE)
    return value


@triton.jit
def _response(
    total, image, channel, image_channel, image_row, image_column, filters, filter_tap, filter_row, filter_column,
    y, x, inside, channels, height, width, cells_down, cells_across, tap, COARSE: tl.constexpr, SIZE: tl.constexpr,
    PADDING: tl.constexpr,
):  # fmt: skip
    """Add one tap's products to the level's sum, (channels, rows, columns)."""
    row, row_shown = _padded(y + tap // SIZE - SIZE // 2, height, PADDING)
    column, column_shown = _padded(x + tap % SIZE - SIZE // 2, width, PADDING)
    weight = _taps_at(
        filters + tl.cast(tap, tl.int64) * filter_tap, filter_row, filter_column, y, x,
        inside, height, width, cells_down, cells_across, COARSE, total.dtype,
    )  # fmt: skip
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
    y, x, inside, channels, height, width, cells_down, cells_across, alpha, COARSE: tl.constexpr, SIZE: tl.constexpr,
    PADDING: tl.constexpr,
):  # fmt: skip
    total = tl.zeros_like(result)
    if SIZE <= 7 and not COARSE:  # the four loads of cells per tap are enough in flight without unrolling
        # A row of taps at a time: all 25 of 5 x 5 in flight need more registers than there are.
        for tap in tl.range(SIZE * SIZE, loop_unroll_factor=SIZE):
            total = _response(
                total, image, channel, image_channel, image_row, image_column, filters, filter_tap, filter_row,
                filter_column, y, x, inside, channels, height, width, cells_down, cells_across, tap, COARSE, SIZE,
                PADDING,
            )  # fmt: skip
    else:
        for tap in range(SIZE * SIZE):
            total = _response(
                total, image, channel, image_channel, image_row, image_column, filters, filter_tap, filter_row,
                filter_column, y, x, inside, channels, height, width, cells_down, cells_across, tap, COARSE, SIZE,
                PADDING,
            )  # fmt: skip
    return result + alpha * total


@triton.jit(do_not_specialize=UNSPECIALISED)
def forward_kernel(
    images, image_batch, image_image, image_channel, image_row, image_column,
    filters_0, batch_0, image_0, tap_0, row_0, column_0,
    filters_1, batch_1, image_1, tap_1, row_1, column_1,
    filters_2, batch_2, image_2, tap_2, row_2, column_2,
    filters_3, batch_3, image_3, tap_3, row_3, column_3,
    alphas, output, count, channels, height, width, cells_down, cells_across, groups, size_class,
    COARSE: tl.constexpr, SIZE_0: tl.constexpr, SIZE_1: tl.constexpr, SIZE_2: tl.constexpr, SIZE_3: tl.constexpr,
    PADDING: tl.constexpr, ADD: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write sum_l alpha_l sum_n sum_taps filter * image for one tile; SIZE_l = 0 marks an absent level.

    COARSE: the first level is on a grid of cells, and the others are absent.
    """
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
            tap_0, row_0, column_0, y, x, inside, channels, height, width, cells_down, cells_across, tl.load(alphas),
            COARSE, SIZE_0, PADDING,
        )  # fmt: skip
        if SIZE_1 > 0:
            result = _fuse_level(
                result, image, channel, image_channel, image_row, image_column,
                filters_1 + batch * batch_1 + n * image_1, tap_1, row_1, column_1,
                y, x, inside, channels, height, width, 0, 0, tl.load(alphas + 1), False, SIZE_1, PADDING,
            )  # fmt: skip
        if SIZE_2 > 0:
            result = _fuse_level(
                result, image, channel, image_channel, image_row, image_column,
                filters_2 + batch * batch_2 + n * image_2, tap_2, row_2, column_2,
                y, x, inside, channels, height, width, 0, 0, tl.load(alphas + 2), False, SIZE_2, PADDING,
            )  # fmt: skip
        if SIZE_3 > 0:
            result = _fuse_level(
                result, image, channel, image_channel, image_row, image_column,
                filters_3 + batch * batch_3 + n * image_3, tap_3, row_3, column_3,
                y, x, inside, channels, height, width, 0, 0, tl.load(alphas + 3), False, SIZE_3, PADDING,
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
    """Write one level's alpha * gradient * shifted image for a tile of one image, and its share of alpha's gradient."""
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


@triton.jit(do_not_specialize=[*UNSPECIALISED, "fine_height", "fine_width", "most_rows", "most_columns"])
def cells_gradient_kernel(
    gradient, gradient_batch, gradient_channel, gradient_row, gradient_column,
    images, image_batch, image_image, image_channel, image_row, image_column,
    filters, filter_batch, filter_image, filter_tap, filter_row, filter_column,
    alpha, target, partials, count, channels, height, width, fine_height, fine_width, most_rows, most_columns, size_class,
    SIZE: tl.constexpr, PADDING: tl.constexpr, NEED_FILTERS: tl.constexpr, NEED_ALPHA: tl.constexpr,
    WIDE: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write one tap's gradient of a tile of (height, width) cells of one image, gathered over the pixels they reach.

    Adds up the cells' share of alpha's gradient too: interpolation is linear, so that needs no other pixels.
    """
    plane, i, j = tile_of_program(height, width, ROWS, COLUMNS, WIDE)
    tap, picture = plane % (SIZE * SIZE), plane // (SIZE * SIZE)
    batch, n = picture // count, picture % count
    inside = (i < height)[:, None] & (j < width)[None, :]
    gradient += batch * gradient_batch
    image = images + batch * image_batch + n * image_image
    first_row, last_row = span_of(i, height, height, fine_height, fine_height)
    first_column, last_column = span_of(j, width, width, fine_width, fine_width)
    total = tl.zeros((ROWS, COLUMNS), DTYPE)
    for k in range(most_rows):
        y = first_row + k
        row, row_shown = _padded(y + (tap // SIZE).to(y.dtype) - SIZE // 2, fine_height, PADDING)
        row_share = share_of(i, y, height, height, fine_height, DTYPE)
        for m in range(most_columns):
            x = first_column + m
            column, column_shown = _padded(x + (tap % SIZE).to(x.dtype) - SIZE // 2, fine_width, PADDING)
            column_share = share_of(j, x, width, width, fine_width, DTYPE)
            reached = inside & ((y < last_row)[:, None] & (x < last_column)[None, :])
            shown = reached & (row_shown[:, None] & column_shown[None, :])
            here = gradient + (y[:, None] * gradient_row + x[None, :] * gradient_column)
            seen = image + (row[:, None] * image_row + column[None, :] * image_column)
            product = tl.zeros((ROWS, COLUMNS), DTYPE)
            for channel in range(channels):
                c = tl.cast(channel, tl.int64)
                value = tl.load(here + c * gradient_channel, mask=reached, other=0.0).to(DTYPE)
                product += value * tl.load(seen + c * image_channel, mask=shown, other=0.0).to(DTYPE)
            total += product * (row_share[:, None] * column_share[None, :])
    if NEED_ALPHA:
        own = filters + batch * filter_batch + n * filter_image + tap * filter_tap
        values = tl.load(own + (i[:, None] * filter_row + j[None, :] * filter_column), mask=inside, other=0.0)
        tl.store(partials + tl.program_id(0), tl.sum(total * values.to(DTYPE)))
    if NEED_FILTERS:
        place = target + plane * (tl.cast(height, tl.int64) * width) + (i[:, None].to(tl.int64) * width + j[None, :])
        tl.store(place, (tl.load(alpha) * total).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _places(own, i, size, RADIUS: tl.constexpr, PADDING: tl.constexpr):
    """Return the i-th place where padding may show a pixel, and whether it does; place 0 is the pixel itself."""
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
    filter_column, row_place, column_place, shown, channels, height, width, cells_down, cells_across, tap,
    COARSE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Add what the outputs that see these places through one tap send back."""
    row = row_place + SIZE // 2 - tap // SIZE
    column = column_place + SIZE // 2 - tap % SIZE
    rows_exist = (row >= 0) & (row < height)
    exists = shown & (rows_exist[:, None] & ((column >= 0) & (column < width))[None, :])
    weight = _taps_at(
        filters + tl.cast(tap, tl.int64) * filter_tap, filter_row, filter_column, row, column,
        exists, height, width, cells_down, cells_across, COARSE, total.dtype,
    )  # fmt: skip
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
    alpha, output, count, channels, height, width, cells_down, cells_across, groups, size_class,
    COARSE: tl.constexpr, SIZE: tl.constexpr, PADDING: tl.constexpr, ADD: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
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
                            width, cells_down, cells_across, tap, COARSE, SIZE,
                        )  # fmt: skip
    total *= tl.load(alpha)
    rows = (plane * channels + channel)[:, None, None] * height + y[None, :, None]
    target = output + rows * width + x[None, None, :]
    mask = (channel < channels)[:, None, None] & inside[None, :, :]
    if ADD:
        total += tl.load(target, mask=mask, other=0.0).to(DTYPE)
    tl.store(target, total.to(output.dtype.element_ty), mask=mask)


def _in_level(level: Tensor | None, number: int) -> dict[str, object]:
    strides = level.stride() if level is not None else (0,) * 5
    names = ("batch", "image", "tap", "row", "column")
    arguments: dict[str, object] = {f"{name}_{number}": stride for name, stride in zip(names, strides, strict=True)}
    arguments[f"SIZE_{number}"] = math.isqrt(level.shape[2]) if level is not None else 0
    return arguments


def _common(images: Tensor, padding_mode: str) -> tuple[dict[str, object], int, int]:
    """Return the arguments that all kernels share, the channels of one program, and the number of such groups."""
    count, channels, height, width = images.shape[1:]
    group = min(triton.next_power_of_2(channels), CHANNELS)
    shared: dict[str, object] = {"count": count, "channels": channels, "height": height, "width": width}
    shared["PADDING"] = PADDINGS[padding_mode]
    shared["DTYPE"] = tl.float64 if images.dtype == torch.float64 else tl.float32
    return shared, group, triton.cdiv(channels, group)


def _is_coarse(level: Tensor, images: Tensor) -> bool:
    return level.shape[-2:] != images.shape[-2:]


def _grid(level: Tensor, images: Tensor) -> dict[str, object]:
    """Return a level's grid, and whether places on it or offsets in it need 64 bits."""
    fine, cells = images.shape[-2:], level.shape[-2:]
    places = max(2 * pixels * (size + 1) for pixels, size in zip(fine, cells, strict=True))
    return {
        "cells_down": cells[0], "cells_across": cells[1], "COARSE": _is_coarse(level, images),
        "WIDE": needs_64_bits(images, level) or (_is_coarse(level, images) and places > INT32_MAX),
    }  # fmt: skip


def _launches(images: Tensor, filters: Sequence[Tensor]) -> list[list[int]]:
    """Return the levels of each launch: neighbours at full resolution share one, a coarse one has its own."""
    launches: list[list[int]] = []
    for l, level in enumerate(filters):
        follows = launches and not _is_coarse(filters[l - 1], images) and not _is_coarse(level, images)
        if follows and len(launches[-1]) < LEVELS:
            launches[-1].append(l)
        else:
            launches.append([l])
    return launches


IMAGE_AXES = ("batch", "image", "channel", "row", "column")
FILTER_AXES = ("batch", "image", "tap", "row", "column")
GRADIENT_AXES = ("batch", "channel", "row", "column")


@functools.lru_cache(256)
def _forward_plan(image_kind, level_kinds, padding_mode: str) -> list[tuple[list[int], int, dict[str, object]]]:
    """Return the levels, planes and numbers of each launch: all that stays the same while shapes and strides do."""
    images, filters = without_memory(image_kind), [without_memory(kind) for kind in level_kinds]
    shared, group, groups = _common(images, padding_mode)
    plan = []
    for number_of_launch, chosen in enumerate(_launches(images, filters)):
        levels = [filters[l] for l in chosen]
        arguments = shared | stride_arguments("image", images, IMAGE_AXES)
        for number in range(LEVELS):
            arguments |= _in_level(levels[number] if number < len(levels) else None, number)
        arguments |= _grid(levels[0], images) | {"groups": groups, "GROUP": group, "ADD": number_of_launch > 0}
        arguments["WIDE"] = arguments["WIDE"] or needs_64_bits(*levels)
        plan.append((chosen, images.shape[0] * groups, arguments))
    return plan


def forward(images: Tensor, filters: Sequence[Tensor], alphas: Tensor, padding_mode: str) -> Tensor:
    """Return ``ffmef::adaptive_fuse`` of (B, N, C, H, W) images; arguments are taken as valid."""
    batch, _, channels, height, width = images.shape
    wide = accumulator(images.dtype)
    if batch * channels * height * width == 0:
        return images.new_empty((batch, channels, height, width), dtype=promoted_dtype(images, *filters))
    # Sums over several launches are kept in a type in which they lose no digits.
    plan = _forward_plan(like(images), tuple(map(like, filters)), padding_mode)
    result = promoted_dtype(images, *filters)
    output = images.new_empty((batch, channels, height, width), dtype=wide if len(plan) > 1 else result)
    alphas = alphas.to(wide).contiguous()
    key = ("GROUP", "COARSE", *(f"SIZE_{number}" for number in range(LEVELS)))
    with on_device(images):
        for chosen, planes, numbers in plan:
            arguments = {**numbers, "images": images, "alphas": alphas[chosen[0] :], "output": output}
            for number in range(LEVELS):
                arguments[f"filters_{number}"] = filters[chosen[min(number, len(chosen) - 1)]]
            launch(forward_kernel, planes, arguments, key, restored=("output",))
    return output.to(result)


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
    programs = programs_of(height, width, batch * count, ALPHA_TILE) if need_alphas else 1
    alpha_tile = ALPHA_TILE if need_alphas else None
    with on_device(images):
        for l, level in enumerate(filters):
            arguments = (
                shared
                | stride_arguments("gradient", grad, GRADIENT_AXES)
                | stride_arguments("filter", level, FILTER_AXES)
            )
            arguments |= {"gradient": grad, "filters": level, "alpha": wide_alphas[l:]}
            grid = _grid(level, images)
            arguments |= {"SIZE": math.isqrt(level.shape[2]), "WIDE": grid["WIDE"] or needs_64_bits(grad)}
            if grid["COARSE"] and (need_filters[l] or need_alphas):
                alpha_sum = _cells_gradient(
                    level, images, arguments, filter_grads[l], bool(need_filters[l]), need_alphas
                )
                if need_alphas:
                    alpha_grad[l] = alpha_sum
            elif need_filters[l] or need_alphas:
                partials = wide_alphas.new_empty(programs)
                own = (
                    arguments | stride_arguments("image", images, IMAGE_AXES) | {"images": images, "partials": partials}
                )
                own |= {"target": filter_grads[l] if need_filters[l] else level}
                own |= {"NEED_FILTERS": bool(need_filters[l]), "NEED_ALPHA": need_alphas}
                key = ("SIZE", "NEED_FILTERS", "NEED_ALPHA")
                launch(filters_gradient_kernel, batch * count, own, key, only=alpha_tile)
                if need_alphas:
                    alpha_grad[l] = partials.sum(dtype=torch.float64)
            if need_images:
                own = grid | arguments | {"output": image_grad, "groups": groups, "GROUP": group, "ADD": l > 0}
                key = ("SIZE", "GROUP", "COARSE")
                launch(images_gradient_kernel, batch * count * groups, own, key, restored=("output",))
    return image_grad.to(images.dtype), filter_grads, alpha_grad.to(alphas.dtype)


def _cells_gradient(
    level: Tensor, images: Tensor, arguments: dict[str, Any], target: Tensor, need_filters: bool, need_alphas: bool
) -> Tensor:
    """Write the gradient of a coarse level's filters to ``target``, and return that of its alpha."""
    fine, cells = images.shape[-2:], level.shape[-2:]
    planes = level.shape[0] * level.shape[1] * level.shape[2]
    partials = arguments["alpha"].new_empty(programs_of(cells[0], cells[1], planes, ALPHA_TILE) if need_alphas else 1)
    # A cell reaches the pixels between its neighbours' centres: at most two cells' worth, rounded up, and one more.
    most_rows, most_columns = (-(-2 * pixels // size) + 1 for pixels, size in zip(fine, cells, strict=True))
    own = arguments | stride_arguments("image", images, IMAGE_AXES)
    own |= {"images": images, "partials": partials, "target": target if need_filters else level}
    own |= {"height": cells[0], "width": cells[1], "fine_height": fine[0], "fine_width": fine[1]}
    own |= {"most_rows": min(most_rows, fine[0]), "most_columns": min(most_columns, fine[1])}
    own |= {"NEED_FILTERS": need_filters, "NEED_ALPHA": need_alphas}
    only = ALPHA_TILE if need_alphas else None
    launch(cells_gradient_kernel, planes, own, ("SIZE", "NEED_FILTERS", "NEED_ALPHA"), only=only)
    return partials.sum(dtype=torch.float64)
