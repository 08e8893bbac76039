"""Sanitizers over the emulated CUDA kernels, and faults planted in a copy of them: each has to be found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cuda_emulation import Mutant, build, needs_emulator, plant, run, why_failed_either_way, worst
from gpu_cases import Case

pytestmark = [*needs_emulator, pytest.mark.slow]

# Few cases that reach every kernel, in one type: sanitizers and mutants compile and run the kernels once each.
CORE = [
    # The tile in the middle ends at the border of filters of 5 x 5; in the next case, it is inside.
    Case("core, vectors", width=72, height=33, images=3),
    Case("core, inside", width=72, height=36, images=1, need_alphas=False),
    # Shifted to the left, two tiles leave the last columns to a third.
    Case("core, odd width", width=63, height=11, padding="reflect", images=3),
    Case("core, channels", width=20, height=18, channels=3, layout="aligned slice", padding="replicate"),
    Case("core, channels, odd width", width=37, height=10, channels=5, layout="every second"),
    Case("core, nine taps", width=36, height=9, sizes=(9, 3), padding="reflect", channels=2),
    Case("core, smaller than the filter", width=2, height=3, sizes=(7, 1), padding="reflect"),
    Case("core, off a 16-byte boundary", layout="offset", width=16, height=5),
    Case("core, seventeen levels", sizes=(1, 3) * 8 + (5,), height=3, width=8),
    Case(
        "core, coarse and full", width=20, height=9, sizes=(3, 1), grids=((3, 7), None), padding="reflect", channels=2
    ),
    Case("core, cells in several tiles", width=40, height=12, sizes=(3,), grids=((10, 35),), images=1),
    Case("core, cells wider than a warp", width=70, height=19, sizes=(5, 3), grids=((2, 2), (3, 1)), images=1),
    Case("core, a lane per row of taps", width=35, height=9, sizes=(7,), grids=((2, 9),), images=1, batch=2),
    Case("core, cells in several tiles, nine taps", width=36, height=10, sizes=(9,), grids=((9, 33),), images=1),
    Case("core, wide tiles", width=292, height=17, sizes=(3,), images=1, need_images=False),
    Case("core, no columns", width=0, height=4, sizes=(1, 5), layout="slice", padding="replicate"),
]
# The thread sanitizer is slow to make threads: the fewest blocks that can race.
FEW_BLOCKS = [
    Case("few blocks, vectors", width=68, height=9, sizes=(1, 3)),
    Case("few blocks, channels", width=12, height=5, channels=3, sizes=(3,)),
    Case("few blocks, nine taps", width=7, height=3, sizes=(9,), images=1),
    Case("few blocks, coarse", width=7, height=5, sizes=(3, 1), grids=((2, 3), (1, 2)), images=1),
]
COARSE = "cuda/adaptive_fuse_coarse.cuh"
COARSE_GRADIENTS = "cuda/adaptive_fuse_coarse_gradients.cuh"
ONE_TYPE = "-DFFMEF_CUDA_ONLY_FLOAT32"


def fails(program: Path, cases: list[Case]) -> str:
    """Return why the cases, forward or backward, fail on this program; an empty string if they pass."""
    both = [case for one in cases for case in (one, replace(one, need_images=False))]
    return why_failed_either_way(run, worst, program, cases, both)


@pytest.mark.parametrize("sanitizer", ("address,undefined", "thread"))
def test_clean_under_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    program = build(tmp_path, ONE_TYPE, "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    assert fails(program, FEW_BLOCKS if sanitizer == "thread" else CORE) == ""


THREAD = ("-g", "-fsanitize=thread")
ADDRESS = ("-g", "-fsanitize=address")
BETWEEN_IMAGES = "if (kBuffers<C> == 1 && n > 0) __syncthreads();"
AFTER_TILE = "at.row - tile_row, at.column - tile_column);\n    __syncthreads();"
MUTANTS = [
    Mutant("no barrier after the tile", AFTER_TILE, AFTER_TILE[:-20], count=2),
    Mutant("no barrier after the tile, gradient", AFTER_TILE, AFTER_TILE[:-20], nth=1, count=2),
    Mutant("no barrier between images", BETWEEN_IMAGES, "", flags=THREAD, sign="data race", count=2),
    Mutant(
        "no barrier before the sums",
        "finish(int levels, A* partials) const {\n    __syncthreads();",
        "finish(int levels, A* partials) const {",
        flags=THREAD,
        sign="data race",
    ),
    Mutant("a barrier for some threads", "if (!inside) continue;", "if (!inside) return;", sign="barrier"),
    Mutant(
        "blocks that write the same rows",
        "const Position at = position_of_thread<Shape, 1>(p);\n  const int first",
        "Position at = position_of_thread<Shape, 1>(p);\n  at.row %= 4;\n  const int first",
        flags=THREAD,
        sign="data race",
    ),
    Mutant(
        "no bound of rows",
        "if (at.row + r < p.height)\n        store_result<V>",
        "store_result<V>",
    ),
    Mutant(
        "no bound of columns",
        "const bool inside = at.row < p.height && at.column < p.width;",
        "const bool inside = at.row < p.height;",
        nth=1,
        count=3,
    ),
    # Without a sanitizer: what is read outside is NaN, and so is what is written, but the memory around outputs is not.
    Mutant(
        "a row too far",
        "if (at.row + r < p.height)\n        store_result<V>",
        "if (at.row + r <= p.height)\n        store_result<V>",
        sign="a write outside an output",
    ),
    Mutant(
        "a row too far, filters' gradient",
        "const bool inside = at.row < p.height && at.column < p.width;",
        "const bool inside = at.row <= p.height && at.column < p.width;",
        nth=2,
        count=3,
        sign="a write outside an output",
    ),
    Mutant(
        "tile too small",
        "size_t tile_bytes(const Problem<T>& p) {\n  return sizeof(Accumulate<T>) *",
        "size_t tile_bytes(const Problem<T>& p) {\n  return sizeof(Accumulate<T>) * 7 / 8 *",
        file="cuda/adaptive_fuse.cu",
        flags=ADDRESS,
        sign="AddressSanitizer",
    ),
    Mutant(
        "flipped taps",
        "sum[c][r][v] += taps[v] * window[c][r][j + v];",
        "sum[c][r][v] += taps[v] * window[c][r][K - 1 - j + v];",
    ),
    Mutant("wrong tap of the gradient", "filters + t * tap_stride", "filters + i * tap_stride"),
    Mutant(
        "another level's alpha",
        "const Accumulate<T> alpha = p.alphas[l * p.alpha_stride];",
        "const Accumulate<T> alpha = p.alphas[0];",
        count=5,
    ),
    Mutant(
        "alphas taken as dense",
        "const Accumulate<T> alpha = p.alphas[l * p.alpha_stride];",
        "const Accumulate<T> alpha = p.alphas[l];",
        nth=2,
        count=5,
    ),
    Mutant(
        "reflection repeats the border",
        "folded < size ? folded : period - folded;",
        "folded < size ? folded : period - folded - 1;",
        file="common/padding.h",
    ),
    Mutant("one bounce only", "Int folded = position % period;", "Int folded = position;", file="common/padding.h"),
    Mutant(
        "images outside shown anywhere",
        "return i == 0 || padded_index((*this)[i], size, padding) == own;",
        "return true;",
    ),
    Mutant("half a warp summed", "distance = kWarp / 2;", "distance = kWarp / 4;"),
    Mutant(
        "later launches replace the result",
        "p.add_result = first_level > 0;",
        "p.add_result = false;",
        file="cuda/adaptive_fuse.cu",
    ),
    Mutant(
        "vectors without alignment",
        "if (!aligned(f.filters[l]) || s[4] != 1) return false;",
        "",
        file="cuda/adaptive_fuse.cu",
        flags=("-fsanitize=undefined", "-fno-sanitize-recover=all"),
    ),
    Mutant("cells taken as pixels", "return {down.first * level.row,", "return {row * level.row,", file=COARSE),
    Mutant(
        "the right cell's share for the left, nine taps",
        "const A near_share = A(1) - at.across;",
        "const A near_share = at.across;",
        file=COARSE,
    ),
    Mutant(
        "the right cell's share for the left",
        "const A near_share = A(1) - at[0].across;",
        "const A near_share = at[0].across;",
        file=COARSE,
    ),
    Mutant("four rows always between the same cells", "if (together) {", "if (true) {", file=COARSE),
    Mutant("the first row's share for all", "lower * at[r].down;", "lower * at[0].down;", file=COARSE),
    Mutant(
        "the right cell's share for the left, gradient of the images",
        "near_share = A(1) - share;",
        "near_share = share;",
        file=COARSE_GRADIENTS,
    ),
    Mutant(
        "places of the level before",
        "if (l > 0) __syncthreads();",
        "",
        file=COARSE_GRADIENTS,
        flags=THREAD,
        sign="data race",
    ),
    Mutant(
        "no barrier after the places",
        "if (coarse || l == 0) __syncthreads();",
        "",
        file=COARSE_GRADIENTS,
        flags=THREAD,
        sign="data race",
    ),
    Mutant(
        "border columns taken as inside",
        "if (rows.at_border() || columns.at_border()) {",
        "if (rows.at_border()) {",
        file=COARSE_GRADIENTS,
    ),
    Mutant("the window a row too high", "kRows - 1 - K / 2;", "kRows - 2 - K / 2;", file=COARSE_GRADIENTS),
    Mutant("the first row of taps alone", "cell.plane % kGroups, picture", "0, picture", file=COARSE_GRADIENTS),
    Mutant(
        "the window stands still",
        "window[i][j] = window[i + 1][j];",
        "window[i][j] = window[i][j];",
        file=COARSE_GRADIENTS,
    ),
    Mutant("half of a cell's lanes", "distance = lanes / 2;", "distance = lanes / 4;", file=COARSE_GRADIENTS),
    Mutant("columns past a warp", "x += lanes)", "x += 2 * lanes)", file=COARSE_GRADIENTS),
    Mutant("cells past the last", "lane == 0 && cell.column < grid.across", "lane == 0", file=COARSE_GRADIENTS),
    Mutant(
        "cells' share of alpha at another tap",
        "widen(filters[t * level.tap])",
        "widen(filters[0])",
        file=COARSE_GRADIENTS,
    ),
    Mutant("a pixel too few of a cell", "y < down.last; ++y", "y < down.last - 1; ++y", file=COARSE_GRADIENTS),
    Mutant(
        "cells outside the grid",
        "if (at.row < grid.down && at.column < grid.across) {",
        "if (at.row < grid.down) {",
        file=COARSE_GRADIENTS,
    ),
    Mutant(
        "cells' share of alpha at another tap, nine taps",
        "image * level.image + tap * level.tap +",
        "image * level.image +",
        file=COARSE_GRADIENTS,
    ),
    Mutant(
        "border rows taken as inside",
        "first_row.at_border() || last_row.at_border() || first_column",
        "first_row.at_border() || first_column",
    ),
    Mutant(
        "border of the smallest filters alone",
        "block_at_border<Shape>(p, at, p.halo_rows)",
        "block_at_border<Shape>(p, at, 0)",
    ),
    Mutant(
        "usual tiles for wide blocks",
        "set_tiles<WideTile<T>>(p);",
        "set_tiles<Shape>(p);",
        file="cuda/adaptive_fuse.cu",
    ),
    Mutant(
        "outputs past the picture, gradient of the images",
        "if (Border && (column - j < 0 || column - j >= p.width)) continue;",
        "if (Border && column - j < 0) continue;",
    ),
    Mutant(
        "a pixel's own place twice",
        "if (!columns.shows(s) || (!OwnPlace && r == 0 && s == 0)) continue;",
        "if (!columns.shows(s)) continue;",
    ),
    Mutant("the row before's columns", "const bool inside = column >= shift &&", "const bool inside = column >= 0 &&"),
    Mutant("the next row's columns", "column - shift < width;", "column - shift <= width;"),
    Mutant(
        "each lane its own shift",
        "(target != nullptr ? target : filters) - lane",
        "target != nullptr ? target : filters",
    ),
    Mutant(
        "no tile for the last columns",
        "width == 0 ? 0 : width + ShiftedTile<T>::kLargestShift - 1;",
        "width;",
        file="cuda/adaptive_fuse.cu",
    ),
    Mutant("a halo too narrow for the shift", "kLeft = kHalo + kLargestShift;", "kLeft = kHalo;", flags=ADDRESS),
    Mutant(
        "interpolation from the corner",
        "(2 * pixel + 1) * axis.cells - axis.pixels, unit",
        "2 * pixel * axis.cells, unit",
        file="common/interpolation.h",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_found(mutant: Mutant, tmp_path: Path) -> None:
    program = plant(mutant, tmp_path, ONE_TYPE)
    reason = fails(program, FEW_BLOCKS if mutant.flags == THREAD else CORE)
    assert reason and mutant.sign in reason
