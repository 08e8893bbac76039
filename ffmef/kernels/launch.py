"""How the Triton kernels of this package are launched: one program a tile of pixels, tuned once for each kind of problem.

Importing this module imports triton.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

INT32_MAX = 2**31 - 1
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# (rows, columns, warps) of a program's tile; None lets the tuner choose on a GPU. Tests set it.
tile: tuple[int, int, int] | None = None
TILES = [(8, 64, 4), (4, 128, 4), (16, 64, 8), (4, 64, 2), (8, 64, 2), (4, 64, 4)]
INTERPRETED_TILE = (16, 64, 4)


@triton.jit
def tile_of_program(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Return the program's plane, and the rows and columns of its tile."""
    program = tl.program_id(0)
    rows_of_tiles = tl.cdiv(height, ROWS)
    columns_of_tiles = tl.cdiv(width, COLUMNS)
    rest = program // columns_of_tiles
    y = (rest % rows_of_tiles) * ROWS + tl.arange(0, ROWS)
    x = (program % columns_of_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    if WIDE:
        y = y.to(tl.int64)
        x = x.to(tl.int64)
    return tl.cast(rest // rows_of_tiles, tl.int64), y, x


@functools.cache
def _tuner(kernel, key: tuple[str, ...], restored: tuple[str, ...], zeroed: tuple[str, ...]):
    configs = [triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps) for rows, columns, warps in TILES]
    decorate = triton.autotune(
        configs, key=list(key), restore_value=list(restored), reset_to_zero=list(zeroed), cache_results=True
    )
    return decorate(kernel)


def _fixed_tile() -> tuple[int, int, int] | None:
    return tile or (INTERPRETED_TILE if INTERPRETED else None)


def launch(
    kernel,
    planes: int,
    arguments: dict[str, object],
    key: tuple[str, ...],
    restored: tuple[str, ...] = (),
    zeroed: tuple[str, ...] = (),
) -> None:
    """Run ``kernel`` over all tiles of ``planes`` pictures, with the tile given or the fastest for these keys."""
    height, width = arguments["height"], arguments["width"]
    # Tuned anew for each power of two of pixels, not for each size.
    arguments["size_class"] = (height * width).bit_length()

    def grid(meta):
        return (triton.cdiv(width, meta["COLUMNS"]) * triton.cdiv(height, meta["ROWS"]) * planes,)

    fixed = _fixed_tile()
    if fixed is None:
        _tuner(kernel, (*key, "size_class"), restored, zeroed)[grid](**arguments)
    else:
        rows, columns, warps = fixed
        kernel[grid](**arguments, ROWS=rows, COLUMNS=columns, num_warps=warps)


def most_programs(height: int, width: int, planes: int) -> int:
    """Return how many programs the smallest tile needs."""
    tiles = [_fixed_tile()] if _fixed_tile() is not None else TILES
    return max(triton.cdiv(width, columns) * triton.cdiv(height, rows) for rows, columns, _ in tiles) * planes


def stride_arguments(prefix: str, tensor: Tensor, axes: Sequence[str]) -> dict[str, int]:
    return {f"{prefix}_{axis}": stride for axis, stride in zip(axes, tensor.stride(), strict=True)}


def needs_64_bits(*tensors: Tensor) -> bool:
    """Return whether offsets inside a plane need 64 bits; those of planes and taps always have them."""
    return any((t.shape[-2] - 1) * t.stride(-2) + (t.shape[-1] - 1) * t.stride(-1) > INT32_MAX for t in tensors)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def on_device(tensor: Tensor):
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
