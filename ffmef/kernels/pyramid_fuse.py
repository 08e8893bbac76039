"""Triton kernels of pyramid_fuse and its gradients, for GPUs without the compiled CUDA library.

There is one launch per level and step. Levels of half the size and smaller are stored; only input and output are of
full size. All gradients are gathers: there are no atomics, and the order of summation is fixed. Importing this module
imports triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ffmef.kernels.interpolation import share_of, tap_of
from ffmef.kernels.launch import (
    accumulator,
    launch,
    needs_64_bits,
    on_device,
    start,
    stride_arguments,
    tile_of_program,
)

# Compiled code should not depend on these numbers. It may on strides and the width: they decide how wide loads are.
UNSPECIALISED = [
    "count", "channels", "height", "fine_height", "fine_width", "below_height", "below_width", "cells_down",
    "cells_across", "size_class",
]  # fmt: skip
CELL_PIXELS = 128  # pixel columns of a program that collects the gradient of cells


@triton.jit
def _expanded(plane, y, x, mask, height, width, DTYPE: tl.constexpr):
    """Return a contiguous coarser level at (y, x) of the finer one: 3/4 of the place it lies in, 1/4 of the next."""
    row, column = y // 2, x // 2
    far_row = tl.minimum(tl.maximum(row + 2 * (y % 2) - 1, 0), height - 1)
    far_column = tl.minimum(tl.maximum(column + 2 * (x % 2) - 1, 0), width - 1)
    near = plane + row[:, None] * width
    far = plane + far_row[:, None] * width
    a = tl.load(near + column[None, :], mask=mask, other=0.0).to(DTYPE)
    b = tl.load(near + far_column[None, :], mask=mask, other=0.0).to(DTYPE)
    c = tl.load(far + column[None, :], mask=mask, other=0.0).to(DTYPE)
    d = tl.load(far + far_column[None, :], mask=mask, other=0.0).to(DTYPE)
    return 0.75 * (0.75 * a + 0.25 * b) + 0.25 * (0.75 * c + 0.25 * d)


@triton.jit
def _weight(
    cells, cell_row, cell_column, y, x, mask, down, across, FACTOR: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Return the weights of pixels, interpolated between cells."""
    first_row, second_row, row_share = tap_of(y, down, 1, FACTOR, DTYPE)
    first_column, second_column, column_share = tap_of(x, across, 1, FACTOR, DTYPE)
    upper = cells + first_row[:, None] * cell_row
    lower = cells + second_row[:, None] * cell_row
    left, right = first_column[None, :] * cell_column, second_column[None, :] * cell_column
    a = tl.load(upper + left, mask=mask, other=0.0).to(DTYPE)
    b = tl.load(upper + right, mask=mask, other=0.0).to(DTYPE)
    c = tl.load(lower + left, mask=mask, other=0.0).to(DTYPE)
    d = tl.load(lower + right, mask=mask, other=0.0).to(DTYPE)
    a += (b - a) * column_share[None, :]
    c += (d - c) * column_share[None, :]
    return a + (c - a) * row_share[:, None]


@triton.jit(do_not_specialize=UNSPECIALISED)
def halve_kernel(
    images, image_batch, image_image, image_channel, image_row, image_column, output,
    count, channels, height, width, fine_height, fine_width, size_class,
    WIDE: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write a tile of the means of 2 x 2 pixels, an odd border repeated."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, WIDE)
    batch, n, channel = plane // channels // count, plane // channels % count, plane % channels
    inside = (y < height)[:, None] & (x < width)[None, :]
    image = images + batch * image_batch + n * image_image + channel * image_channel
    upper = image + (2 * y)[:, None] * image_row
    lower = image + tl.minimum(2 * y + 1, fine_height - 1)[:, None] * image_row
    left = (2 * x)[None, :] * image_column
    right = tl.minimum(2 * x + 1, fine_width - 1)[None, :] * image_column
    total = tl.load(upper + left, mask=inside, other=0.0).to(DTYPE)
    total += tl.load(upper + right, mask=inside, other=0.0).to(DTYPE)
    total += tl.load(lower + left, mask=inside, other=0.0).to(DTYPE)
    total += tl.load(lower + right, mask=inside, other=0.0).to(DTYPE)
    target = output + (plane * height + y[:, None]) * width + x[None, :]
    tl.store(target, total * 0.25, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def fuse_kernel(
    images, image_batch, image_image, image_channel, image_row, image_column,
    cells, cell_batch, cell_image, cell_row, cell_column, below, below_fused, output,
    count, channels, height, width, below_height, below_width, cells_down, cells_across, size_class,
    FACTOR: tl.constexpr, HAS_BELOW: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write a tile of one fused level: the level below, expanded, and the weighted bands of all images."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, WIDE)
    batch, channel = plane // channels, plane % channels
    inside = (y < height)[:, None] & (x < width)[None, :]
    below_size = tl.cast(below_height, tl.int64) * below_width
    total = tl.zeros((ROWS, COLUMNS), DTYPE)
    if HAS_BELOW:
        total += _expanded(below_fused + plane * below_size, y, x, inside, below_height, below_width, DTYPE)
    for number in range(count):
        n = tl.cast(number, tl.int64)
        image = images + batch * image_batch + n * image_image + channel * image_channel
        pixels = image + (y[:, None] * image_row + x[None, :] * image_column)
        value = tl.load(pixels, mask=inside, other=0.0).to(DTYPE)
        if HAS_BELOW:
            coarse = below + ((batch * count + n) * channels + channel) * below_size
            value -= _expanded(coarse, y, x, inside, below_height, below_width, DTYPE)
        own = cells + batch * cell_batch + n * cell_image
        total += value * _weight(own, cell_row, cell_column, y, x, inside, cells_down, cells_across, FACTOR, DTYPE)
    target = output + (plane * height + y[:, None]) * width + x[None, :]
    tl.store(target, total.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _adjoint_share(fine, coarse, size, fine_size, DTYPE: tl.constexpr):
    """Return the share of coarse places in fine ones two times finer, zero where there is no such fine place."""
    near = fine // 2
    far = tl.minimum(tl.maximum(near + 2 * (fine % 2) - 1, 0), size - 1)
    share = tl.where(near == coarse, 0.75, 0.0) + tl.where(far == coarse, 0.25, 0.0)
    return tl.where((fine >= 0) & (fine < fine_size), share, 0.0).to(DTYPE)


@triton.jit(do_not_specialize=UNSPECIALISED)
def adjoint_kernel(
    gradient, gradient_batch, gradient_channel, gradient_row, gradient_column, output,
    channels, height, width, fine_height, fine_width, size_class,
    WIDE: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write a tile of what a level gets of the gradient of its expansion."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, WIDE)
    gradient += plane // channels * gradient_batch + plane % channels * gradient_channel
    inside = (y < height)[:, None] & (x < width)[None, :]
    total = tl.zeros((ROWS, COLUMNS), DTYPE)
    for i in tl.static_range(4):
        row = tl.maximum(2 * y - 1 + i, 0)
        row_share = tl.where(2 * y - 1 + i < 0, 0.0, _adjoint_share(row, y, height, fine_height, DTYPE))
        for j in tl.static_range(4):
            column = tl.maximum(2 * x - 1 + j, 0)
            column_share = tl.where(2 * x - 1 + j < 0, 0.0, _adjoint_share(column, x, width, fine_width, DTYPE))
            exists = inside & ((row < fine_height)[:, None] & (column < fine_width)[None, :])
            source = gradient + (row[:, None] * gradient_row + column[None, :] * gradient_column)
            value = tl.load(source, mask=exists, other=0.0).to(DTYPE)
            total += value * (row_share[:, None] * column_share[None, :])
    target = output + (plane * height + y[:, None]) * width + x[None, :]
    tl.store(target, total, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def weights_gradient_kernel(
    gradient, gradient_batch, gradient_channel, gradient_row, gradient_column,
    images, image_batch, image_image, image_channel, image_row, image_column, below,
    output, output_batch, output_image,
    count, channels, height, width, below_height, below_width, cells_down, cells_across,
    FACTOR: tl.constexpr, HAS_BELOW: tl.constexpr, CELLS: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Write the gradient of some neighbouring cells of one image, gathered band by band over the pixels they affect."""
    SPAN: tl.constexpr = 2 * FACTOR
    program = tl.program_id(0)
    blocks = tl.cdiv(cells_across, CELLS)
    rest = program // blocks
    i = rest % cells_down
    plane = tl.cast(rest // cells_down, tl.int64)
    batch, n = plane // count, plane % count
    # Pixel columns of all cells in a row: each cell has those of its two neighbouring halves and its own.
    place = tl.arange(0, CELLS * SPAN)
    cell = (program % blocks) * CELLS + place // SPAN
    x = (cell - 1) * FACTOR + FACTOR // 2 + place % SPAN
    served = (cell < cells_across) & ((x >= 0) & (x < width))
    first_row = (i - 1) * FACTOR + FACTOR // 2
    if WIDE:
        x = x.to(tl.int64)
    shown = tl.maximum(x, 0)
    below_size = tl.cast(below_height, tl.int64) * below_width
    total = tl.zeros((1, CELLS * SPAN), DTYPE)
    for k in range(SPAN):
        y = first_row + k + tl.zeros((1,), tl.int32)
        if WIDE:
            y = y.to(tl.int64)
        mask = ((y >= 0) & (y < height))[:, None] & served[None, :]
        y = tl.maximum(y, 0)
        share = share_of(i, y, cells_down, 1, FACTOR, DTYPE)[:, None]
        for number in range(channels):
            c = tl.cast(number, tl.int64)
            own = gradient + batch * gradient_batch + c * gradient_channel
            g = tl.load(own + (y[:, None] * gradient_row + shown[None, :] * gradient_column), mask=mask, other=0.0)
            image = images + batch * image_batch + n * image_image + c * image_channel
            pixels = image + (y[:, None] * image_row + shown[None, :] * image_column)
            value = tl.load(pixels, mask=mask, other=0.0).to(DTYPE)
            if HAS_BELOW:
                coarse = below + ((batch * count + n) * channels + c) * below_size
                value -= _expanded(coarse, y, shown, mask, below_height, below_width, DTYPE)
            total += share * (g.to(DTYPE) * value)
    total *= share_of(cell, shown, cells_across, 1, FACTOR, DTYPE)[None, :]
    sums = tl.sum(tl.reshape(total, (CELLS, SPAN)), 1)
    cell = (program % blocks) * CELLS + tl.arange(0, CELLS)
    target = output + batch * output_batch + n * output_image + tl.cast(i, tl.int64) * cells_across + cell
    tl.store(target, sums.to(output.dtype.element_ty), mask=cell < cells_across)


@triton.jit(do_not_specialize=UNSPECIALISED)
def images_gradient_kernel(
    gradient, gradient_batch, gradient_channel, gradient_row, gradient_column,
    cells, cell_batch, cell_image, cell_row, cell_column,
    fine_gradient, fine_batch, fine_channel, fine_row, fine_column,
    fine_cells, fine_cell_batch, fine_cell_image, fine_cell_row, fine_cell_column,
    below, output, count, channels, height, width, fine_height, fine_width, below_height, below_width,
    cells_down, cells_across, size_class,
    FACTOR: tl.constexpr, HAS_FINER: tl.constexpr, HAS_BELOW: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write a tile of what one image's level gets: of its own band, less what the finer band took, and of its mean."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, WIDE)
    batch, n, channel = plane // channels // count, plane // channels % count, plane % channels
    inside = (y < height)[:, None] & (x < width)[None, :]
    own = gradient + batch * gradient_batch + channel * gradient_channel
    total = tl.load(own + (y[:, None] * gradient_row + x[None, :] * gradient_column), mask=inside, other=0.0).to(DTYPE)
    cells += batch * cell_batch + n * cell_image
    total *= _weight(cells, cell_row, cell_column, y, x, inside, cells_down, cells_across, FACTOR, DTYPE)
    if HAS_BELOW:
        mean = below + plane * (tl.cast(below_height, tl.int64) * below_width)
        mean += (y // 2)[:, None] * below_width + (x // 2)[None, :]
        # An odd border went into its mean twice.
        row_share = tl.where((y == height - 1) & (height % 2 == 1), 1.0, 0.5).to(DTYPE)
        column_share = tl.where((x == width - 1) & (width % 2 == 1), 1.0, 0.5).to(DTYPE)
        total += (row_share[:, None] * column_share[None, :]) * tl.load(mean, mask=inside, other=0.0)
    if HAS_FINER:
        fine_gradient += batch * fine_batch + channel * fine_channel
        fine_cells += batch * fine_cell_batch + n * fine_cell_image
        for i in tl.static_range(4):
            row = tl.maximum(2 * y - 1 + i, 0)
            row_share = tl.where(2 * y - 1 + i < 0, 0.0, _adjoint_share(row, y, height, fine_height, DTYPE))
            for j in tl.static_range(4):
                column = tl.maximum(2 * x - 1 + j, 0)
                column_share = tl.where(2 * x - 1 + j < 0, 0.0, _adjoint_share(column, x, width, fine_width, DTYPE))
                exists = inside & ((row < fine_height)[:, None] & (column < fine_width)[None, :])
                source = fine_gradient + (row[:, None] * fine_row + column[None, :] * fine_column)
                value = tl.load(source, mask=exists, other=0.0).to(DTYPE)
                value *= _weight(
                    fine_cells, fine_cell_row, fine_cell_column, row, column, exists, cells_down, cells_across,
                    2 * FACTOR, DTYPE,
                )  # fmt: skip
                total -= value * (row_share[:, None] * column_share[None, :])
    target = output + (plane * height + y[:, None]) * width + x[None, :]
    tl.store(target, total.to(output.dtype.element_ty), mask=inside)


IMAGE_AXES = ("batch", "image", "channel", "row", "column")
CELL_AXES = ("batch", "image", "row", "column")
GRADIENT_AXES = ("batch", "channel", "row", "column")


@dataclass
class _Pyramid:
    """The arguments that all launches share, and the images' levels, the finest first."""

    levels: list[Tensor]
    cells: list[Tensor]  # weights of every band, then of the base: (B, N, h, w)
    scale: int
    wide: torch.dtype
    common: dict[str, object]

    @property
    def bands(self) -> int:
        return len(self.cells) - 1

    def size(self, level: int) -> tuple[int, int]:
        height, width = self.levels[0].shape[-2:]
        return -(-height >> level), -(-width >> level)

    def at(self, level: int, *tensors: Tensor) -> dict[str, object]:
        """Return a level's sizes and those of the levels around it."""
        names = ("height", "width"), ("below_height", "below_width"), ("fine_height", "fine_width")
        sizes = self.size(level), self.size(min(level + 1, self.bands)), self.size(max(level - 1, 0))
        arguments = dict(self.common)
        for (down, across), (height, width) in zip(names, sizes, strict=True):
            arguments |= {down: height, across: width}
        return arguments | {"WIDE": needs_64_bits(*tensors)}


def _pyramid(images: Tensor, weights: Tensor, base: Tensor, scale: int, with_levels: bool) -> _Pyramid:
    batch, count, channels = images.shape[:3]
    wide = accumulator(images.dtype)
    common: dict[str, object] = {
        "count": count,
        "channels": channels,
        "cells_down": base.shape[-2],
        "cells_across": base.shape[-1],
    }
    common["DTYPE"] = tl.float64 if wide == torch.float64 else tl.float32
    pyramid = _Pyramid([images], [*weights.unbind(1), base], scale, wide, common)
    for level in range(1, pyramid.bands + 1) if with_levels else ():
        fine = pyramid.levels[-1]
        coarse = images.new_empty((batch, count, channels, *pyramid.size(level)), dtype=wide)
        arguments = pyramid.at(level, fine) | stride_arguments("image", fine, IMAGE_AXES)
        launch(halve_kernel, batch * count * channels, arguments | {"images": fine, "output": coarse}, ())
        pyramid.levels.append(coarse)
    return pyramid


def forward(images: Tensor, weights: Tensor, base: Tensor, scale: int) -> Tensor:
    """Return ``ffmef::pyramid_fuse`` of (B, N, C, H, W) images; arguments are taken as valid."""
    batch, _, channels, height, width = images.shape
    if images.numel() == 0:
        return images.new_empty((batch, channels, height, width))
    with on_device(images):
        pyramid = _pyramid(images, weights, base, scale, with_levels=True)
        fused: Tensor | None = None
        for level in reversed(range(pyramid.bands + 1)):
            fine, cells = pyramid.levels[level], pyramid.cells[level]
            has_below = fused is not None
            out = images.new_empty(
                (batch, channels, *pyramid.size(level)), dtype=images.dtype if level == 0 else pyramid.wide
            )
            arguments = pyramid.at(level, fine) | stride_arguments("image", fine, IMAGE_AXES)
            arguments |= stride_arguments("cell", cells, CELL_AXES) | {"images": fine, "cells": cells, "output": out}
            arguments |= {"below": pyramid.levels[level + 1] if has_below else fine, "HAS_BELOW": has_below}
            arguments |= {"below_fused": fused if has_below else fine, "FACTOR": scale >> level}
            launch(fuse_kernel, batch * channels, arguments, ("FACTOR", "HAS_BELOW"))
            fused = out
    assert fused is not None  # there is at least a base
    return fused


def _fused_gradients(pyramid: _Pyramid, grad: Tensor) -> list[Tensor]:
    """Return the gradient of every fused level, the finest first."""
    batch, channels = grad.shape[:2]
    gradients = [grad]
    for level in range(1, pyramid.bands + 1):
        fine = gradients[-1]
        coarse = grad.new_empty((batch, channels, *pyramid.size(level)), dtype=pyramid.wide)
        arguments = pyramid.at(level, fine) | stride_arguments("gradient", fine, GRADIENT_AXES)
        launch(adjoint_kernel, batch * channels, arguments | {"gradient": fine, "output": coarse}, ())
        gradients.append(coarse)
    return gradients


def _collect(pyramid: _Pyramid, level: int, gradient: Tensor, target: Tensor) -> None:
    """Write the gradient of one level's cells to ``target``, (B, N, h, w) with contiguous cells."""
    batch, count, down, across = target.shape
    fine, factor, has_below = pyramid.levels[level], pyramid.scale >> level, level < pyramid.bands
    cells = max(CELL_PIXELS // (2 * factor), 1)
    arguments = pyramid.at(level, fine, gradient) | stride_arguments("image", fine, IMAGE_AXES)
    arguments |= stride_arguments("gradient", gradient, GRADIENT_AXES)
    arguments |= {"gradient": gradient, "images": fine, "below": pyramid.levels[level + 1] if has_below else fine}
    arguments |= {"output": target, "output_batch": target.stride(0), "output_image": target.stride(1)}
    arguments |= {"FACTOR": factor, "HAS_BELOW": has_below, "CELLS": cells}
    programs = triton.cdiv(across, cells) * down * batch * count
    start(weights_gradient_kernel, programs, arguments, warps=4)


def _images_gradient(pyramid: _Pyramid, gradients: list[Tensor]) -> Tensor:
    images = pyramid.levels[0]
    batch, count, channels = images.shape[:3]
    below = None
    for level in reversed(range(pyramid.bands + 1)):
        dtype = images.dtype if level == 0 else pyramid.wide
        out = images.new_empty((batch, count, channels, *pyramid.size(level)), dtype=dtype)
        gradient, cells = gradients[level], pyramid.cells[level]
        fine_gradient, fine_cells = gradients[max(level - 1, 0)], pyramid.cells[max(level - 1, 0)]
        arguments = pyramid.at(level, gradient, fine_gradient)
        arguments |= stride_arguments("gradient", gradient, GRADIENT_AXES) | stride_arguments("cell", cells, CELL_AXES)
        arguments |= stride_arguments("fine", fine_gradient, GRADIENT_AXES)
        arguments |= stride_arguments("fine_cell", fine_cells, CELL_AXES)
        arguments |= {"gradient": gradient, "cells": cells, "fine_gradient": fine_gradient, "fine_cells": fine_cells}
        arguments |= {"below": out if below is None else below, "output": out, "FACTOR": pyramid.scale >> level}
        arguments |= {"HAS_FINER": level > 0, "HAS_BELOW": below is not None}
        key = ("FACTOR", "HAS_FINER", "HAS_BELOW")
        launch(images_gradient_kernel, batch * count * channels, arguments, key)
        below = out
    assert below is not None  # there is at least a base
    return below


def backward(
    grad: Tensor,
    images: Tensor,
    weights: Tensor,
    base: Tensor,
    scale: int,
    need_images: bool,
    need_weights: bool,
    need_base: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``ffmef::pyramid_fuse_backward``; arguments are taken as valid. What is not needed has shape (0,)."""
    image_grad = images.new_empty(images.shape if need_images and images.numel() == 0 else (0,))
    weight_grad = weights.new_empty(weights.shape if need_weights else (0,))
    base_grad = base.new_empty(base.shape if need_base else (0,))
    if images.numel() == 0:
        return image_grad, weight_grad, base_grad
    with on_device(images):
        pyramid = _pyramid(images, weights, base, scale, with_levels=need_weights or need_base)
        gradients = _fused_gradients(pyramid, grad)
        if need_weights:
            for level in range(pyramid.bands):
                _collect(pyramid, level, gradients[level], weight_grad[:, level])
        if need_base:
            _collect(pyramid, pyramid.bands, gradients[-1], base_grad)
        if need_images:
            image_grad = _images_gradient(pyramid, gradients)
    return image_grad, weight_grad, base_grad
