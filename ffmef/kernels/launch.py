"""How the Triton kernels of this package are launched: one program per tile of pixels, through a kept compiled kernel.

A tile is fixed unless tuning is asked for, so results and the first call's time do not depend on a measurement:
``FFMEF_TRITON_TILE=8x64x4`` (rows, columns, warps) chooses one for every kernel, ``FFMEF_TRITON_TILE=tune`` measures
``TILES`` at the first call of each kind of problem, and :func:`tiled` does the same for a block of code.
Importing this module imports triton.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INT32_MAX = 2**31 - 1
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
Tile = tuple[int, int, int]  # rows, columns and warps of a program
TUNE = "tune"
TILES: list[Tile] = [(8, 64, 4), (4, 128, 4), (16, 64, 8), (4, 64, 2), (8, 64, 2), (4, 64, 4)]
TILE: Tile = (8, 64, 4)
# Tiles for which the compilers of both triton 3.6 and 3.9 keep everything in registers, where TILE does not: by the
# major number of the architecture, None for all; then by the kernel, "float64" where only that type needs it. Chosen by
# registers and stack (scripts/triton_budget.py), not by time: no GPU has timed them.
TABLE: dict[int | None, dict[str, Tile]] = {None: {}}
INTERPRETED_TILE: Tile = (16, 64, 4)
ENVIRONMENT = "FFMEF_TRITON_TILE"
# What a block of code or a test asks for; None leaves it to the environment, then to the table.
tile: Tile | str | None = None


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


# ---- tiles ----


@functools.cache
def parse_tile(text: str) -> Tile | str:
    """Return the tile that ``"8x64x4"`` means, or ``"tune"``; raise ValueError for anything else."""
    if text == TUNE:
        return TUNE
    parts = text.split("x")
    numbers = tuple(int(part) for part in parts if part.isdigit())
    powers = all(number > 0 and number & (number - 1) == 0 for number in numbers)
    if len(parts) != 3 or len(numbers) != 3 or not powers or numbers[2] > 32 or numbers[0] * numbers[1] > 2**16:
        raise ValueError(
            f"{ENVIRONMENT} must be ROWSxCOLUMNSxWARPS, powers of two with at most 65536 pixels and 32 warps, "
            f"or {TUNE!r}, got {text!r}"
        )
    return numbers[0], numbers[1], numbers[2]


@contextlib.contextmanager
def tiled(chosen: Tile | str | None) -> Iterator[None]:
    """Launch every kernel with this tile, or tune them with ``"tune"``, inside the block."""
    global tile
    before, tile = tile, chosen
    try:
        yield
    finally:
        tile = before


@functools.cache
def _from_table(kernel: str, wide: bool, device: int) -> Tile:
    major = torch.cuda.get_device_capability(device)[0] if torch.cuda.is_available() else None
    names = (f"{kernel} float64", kernel) if wide else (kernel,)
    for rows in (TABLE.get(major, {}), TABLE[None]):
        for name in names:
            if name in rows:
                return rows[name]
    return TILE


def asked_tile() -> Tile | str | None:
    """Return what the code or the environment asks for: a tile, ``"tune"``, or None."""
    if tile is not None:
        return tile
    text = os.environ.get(ENVIRONMENT)
    if text:
        return parse_tile(text)
    return INTERPRETED_TILE if INTERPRETED else None


def fixed_tile(default: Tile) -> Tile:
    """Return the tile asked for, or ``default`` if none is asked for or if tuning is."""
    asked = asked_tile()
    return default if asked is None or isinstance(asked, str) else asked


def programs_of(height: int, width: int, planes: int, chosen: Tile) -> int:
    """Return how many programs of a tile cover ``planes`` pictures."""
    return -(-width // chosen[1]) * -(-height // chosen[0]) * planes


# ---- launches ----


class _Forms:
    """One kernel's compiled forms, keyed by everything that makes Triton compile a kernel anew.

    Triton binds and specialises some 50 arguments at each call, which takes 100 us or more. Here a call looks only at
    the dtype and the alignment of its tensors and at what its numbers are specialised for.
    """

    def __init__(self, kernel) -> None:
        self.kernel = kernel
        self.names: list[str] = list(kernel.arg_names)
        parameters = [] if INTERPRETED else kernel.params
        self.constants = [i for i, p in enumerate(parameters) if p.is_constexpr]
        self.specialised = [not p.do_not_specialize for p in parameters]
        self.tensors: list[int] = []
        self.numbers: list[int] = []
        self.plain: list[int] = []
        self.compiled: dict[tuple, Any] = {}

    def sort(self, values: list[Any]) -> None:
        """Note which arguments are tensors and which numbers: the same at every call."""
        rest = [i for i in range(len(values)) if i not in self.constants]
        self.tensors = [i for i in rest if isinstance(values[i], Tensor)]
        self.numbers = [i for i in rest if i not in self.tensors and self.specialised[i]]
        self.plain = [i for i in rest if i not in self.tensors and not self.specialised[i]]

    def form_of(self, values: list[Any], warps: int) -> tuple:
        if not self.tensors:
            self.sort(values)
        form = [warps, values[self.tensors[0]].device]
        form += [values[i] for i in self.constants]
        for i in self.tensors:
            form.append(values[i].dtype)
            form.append(values[i].data_ptr() & 15 == 0)
        for i in self.numbers:
            value = values[i]
            # 1 becomes a constant, multiples of 16 allow wide loads, and larger numbers have another type.
            form.append((1 if value == 1 else 2 if value & 15 == 0 else 0) + (4 if value > INT32_MAX else 0))
        form += [values[i] > INT32_MAX for i in self.plain]
        return tuple(form)

    def start(self, programs: int, values: list[Any], warps: int) -> None:
        # The interpreter compiles nothing, and AMD's backend specialises for more than this looks at.
        kept = not INTERPRETED and torch.version.hip is None
        if kept:
            form = self.form_of(values, warps)
            compiled = self.compiled.get(form)
            if compiled is not None:
                compiled[(programs, 1, 1)](*values)
                return
        # Multiply-adds are fused, as the error bounds assume; triton 3.9 has to be told so.
        compiled = self.kernel[(programs,)](*values, num_warps=warps, enable_fp_fusion=True)
        if kept:
            self.compiled[form] = compiled


_forms: dict[object, _Forms] = {}


def start(kernel, programs: int, arguments: dict[str, Any], warps: int) -> None:
    """Run ``programs`` programs of a kernel; ``arguments`` may hold more than it takes."""
    forms = _forms.get(kernel) or _forms.setdefault(kernel, _Forms(kernel))
    forms.start(programs, [arguments[name] for name in forms.names], warps)


def start_in_order(
    kernel, programs: int, arguments: Sequence[object], constants: dict[str, object], warps: int
) -> None:
    """Run ``programs`` programs of a kernel whose last arguments are ``constants``, the others given in order."""
    forms = _forms.get(kernel) or _forms.setdefault(kernel, _Forms(kernel))
    forms.start(programs, [*arguments, *(constants[name] for name in forms.names[len(arguments) :])], warps)


@functools.cache
def _tuner(kernel, key: tuple[str, ...], restored: tuple[str, ...]):
    configs = [triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps) for rows, columns, warps in TILES]
    return triton.autotune(configs, key=list(key), restore_value=list(restored), cache_results=True)(kernel)


def launch(
    kernel,
    planes: int,
    arguments: dict[str, Any],
    key: tuple[str, ...],
    restored: tuple[str, ...] = (),
    only: Tile | None = None,
) -> None:
    """Run ``kernel`` over all tiles of ``planes`` pictures, with the tile asked for, the table's, or the fastest.

    ``key`` names the constants for which tuning is done anew. ``only`` is the one tile allowed where the kernel writes
    sums over a tile, because their order is part of the result.
    """
    height, width = arguments["height"], arguments["width"]
    # Tuned anew for each power of two of pixels, not for each size.
    arguments["size_class"] = (height * width).bit_length()
    chosen = only or asked_tile()
    if chosen is None:
        device = next(value for value in arguments.values() if isinstance(value, Tensor)).device
        chosen = _from_table(kernel.__name__, arguments["DTYPE"] == tl.float64, device.index or 0)
    if isinstance(chosen, str):  # to be tuned
        own = {name: arguments[name] for name in kernel.arg_names if name in arguments}

        def grid(meta):
            return (programs_of(height, width, planes, (meta["ROWS"], meta["COLUMNS"], 0)),)

        _tuner(kernel, (*key, "size_class"), restored)[grid](**own)
        return
    arguments["ROWS"], arguments["COLUMNS"], warps = chosen
    start(kernel, programs_of(height, width, planes, chosen), arguments, warps)


def like(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    """Return what a launch's numbers depend on, as a key for what is kept between calls."""
    return tensor.shape, tensor.stride(), tensor.dtype


def without_memory(kind: tuple[torch.Size, tuple[int, ...], torch.dtype]) -> Tensor:
    """Return a tensor of this shape, these strides and this dtype that has no memory."""
    return torch.empty_strided(kind[0], kind[1], dtype=kind[2], device="meta")


def stride_arguments(prefix: str, tensor: Tensor, axes: Sequence[str]) -> dict[str, int]:
    return {f"{prefix}_{axis}": stride for axis, stride in zip(axes, tensor.stride(), strict=True)}


def needs_64_bits(*tensors: Tensor) -> bool:
    """Return whether offsets inside a plane need 64 bits; those of planes and taps always have them."""
    return any((t.shape[-2] - 1) * t.stride(-2) + (t.shape[-1] - 1) * t.stride(-1) > INT32_MAX for t in tensors)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def on_device(tensor: Tensor):
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
