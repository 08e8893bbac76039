"""Triton kernel of predict_and_fuse, for GPUs without the compiled CUDA library.

A program computes a tile of one channel of one batch element: for each hidden map, its filter's response to the image
times the map. Filters never exist; tiles can be tuned. Nothing here is specific to one vendor's GPUs. Importing this
module imports triton.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ffmef.kernels.adaptive_fuse import IMAGE_AXES, _common, _padded
from ffmef.kernels.launch import accumulator, launch, needs_64_bits, on_device, stride_arguments, tile_of_program

MAPS = 8  # of one program at a time: they share the picture's pixels
UNSPECIALISED = ["count", "channels", "height", "size_class", "maps"]


@triton.jit
def _responses(
    image, image_row, image_column, weight, bias, map_number, maps, y, x, inside, height, width,
    SIZE: tl.constexpr, PADDING: tl.constexpr, DTYPE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Return what the filters of some maps, the same at every pixel, make of the image; map M stands for the bias."""
    response = tl.zeros((GROUP, ROWS, COLUMNS), DTYPE)
    for tap in tl.range(SIZE * SIZE, loop_unroll_factor=SIZE):
        row, row_shown = _padded(y + tap // SIZE - SIZE // 2, height, PADDING)
        column, column_shown = _padded(x + tap % SIZE - SIZE // 2, width, PADDING)
        shown = (row_shown[:, None] & column_shown[None, :]) & inside
        pixel = tl.load(image + (row[:, None] * image_row + column[None, :] * image_column), mask=shown, other=0.0)
        taps = tl.load(weight + tap * maps + map_number, mask=map_number < maps, other=0.0)
        offset = tl.load(bias + tap + map_number * 0, mask=map_number == maps, other=0.0)
        response += (taps.to(DTYPE) + offset.to(DTYPE))[:, None, None] * pixel.to(DTYPE)[None, :, :]
    return response


@triton.jit(do_not_specialize=UNSPECIALISED)
def level_kernel(
    hidden, hidden_batch, hidden_image, hidden_map, hidden_row, hidden_column, weight, bias, alpha,
    images, image_batch, image_image, image_channel, image_row, image_column,
    output, count, channels, height, width, maps, size_class,
    SIZE: tl.constexpr, PADDING: tl.constexpr, ADD: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write, or add, one level's alpha * sum_n (sum_m h_m * (w_m on image) + (bias on image)) of one tile."""
    plane, y, x = tile_of_program(height, width, ROWS, COLUMNS, WIDE)
    batch, channel = plane // channels, plane % channels
    inside = (y < height)[:, None] & (x < width)[None, :]
    total = tl.zeros((ROWS, COLUMNS), DTYPE)
    for image_number in range(count):
        n = tl.cast(image_number, tl.int64)
        image = images + batch * image_batch + n * image_image + channel * image_channel
        own = hidden + batch * hidden_batch + n * hidden_image
        here = own + (y[:, None] * hidden_row + x[None, :] * hidden_column)
        for first in range(0, maps + 1, GROUP):
            map_number = first + tl.arange(0, GROUP)
            response = _responses(
                image, image_row, image_column, weight, bias, map_number, maps, y, x, inside, height, width, SIZE, PADDING,
                DTYPE, GROUP, ROWS, COLUMNS,
            )  # fmt: skip
            value = tl.load(
                here[None, :, :] + map_number.to(tl.int64)[:, None, None] * hidden_map,
                mask=(map_number < maps)[:, None, None] & inside[None, :, :], other=0.0,
            ).to(DTYPE)  # fmt: skip
            value = tl.where((map_number == maps)[:, None, None], 1.0, value).to(DTYPE)
            total += tl.sum(value * response, 0)
    total *= tl.load(alpha)
    target = output + ((plane * height + y[:, None]) * width + x[None, :])
    if ADD:
        total += tl.load(target, mask=inside, other=0.0).to(DTYPE)
    tl.store(target, total.to(output.dtype.element_ty), mask=inside)


def forward(
    hidden: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    images: Tensor,
    alphas: Tensor,
    padding_mode: str,
) -> Tensor:
    """Return ``ffmef::predict_and_fuse`` of (B, N, C, H, W) images; arguments are taken as valid."""
    batch, _, channels, height, width = images.shape
    wide = accumulator(images.dtype)
    # Sums over several launches are kept in a type in which they lose no digits.
    output = images.new_empty((batch, channels, height, width), dtype=wide if len(hidden) > 1 else images.dtype)
    if output.numel() == 0:
        return output.to(images.dtype)
    alphas = alphas.to(wide).contiguous()
    common, _, _ = _common(images, padding_mode)
    with on_device(images):
        for l, (h, w, b) in enumerate(zip(hidden, weight, bias, strict=True)):
            arguments = common | stride_arguments("image", images, IMAGE_AXES)
            arguments |= stride_arguments("hidden", h, ("batch", "image", "map", "row", "column"))
            arguments |= {
                "hidden": h,
                "weight": w.contiguous(),
                "bias": b.contiguous(),
                "alpha": alphas[l:],
                "images": images,
            }
            arguments |= {"output": output, "maps": h.shape[2], "SIZE": math.isqrt(w.shape[0]), "ADD": l > 0}
            arguments["GROUP"] = min(triton.next_power_of_2(h.shape[2] + 1), MAPS)
            arguments["WIDE"] = needs_64_bits(images, h)
            launch(level_kernel, batch * channels, arguments, ("SIZE", "GROUP"), restored=("output",))
    return output.to(images.dtype)
