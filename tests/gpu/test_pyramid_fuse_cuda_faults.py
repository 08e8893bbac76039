"""Sanitizers over the emulated CUDA kernels of pyramid_fuse, and faults planted in a copy of them: each has to be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuda_emulation import Mutant, build, needs_emulator, plant, why_failed_either_way
from pyramid_cases import Case
from pyramid_emulation import run, worst

pytestmark = [*needs_emulator, pytest.mark.slow]

# Few cases that reach every kernel, in one type: sanitizers and mutants compile and run the kernels once each.
CORE = [
    Case("core, vectors", height=40, width=72, images=3),
    Case("core, odd", height=37, width=41, channels=2, batch=2),
    Case("core, small cells", height=34, width=39, bands=2, scale=4),
    Case("core, two problems", height=45, width=50, bands=5, scale=32, channels=2),
    Case("core, aligned slices", height=16, width=36, layout="aligned slice"),
    Case("core, off a 16-byte boundary", height=9, width=16, layout="offset"),
    Case("core, one pixel", height=1, width=1),
]
# The thread sanitizer is slow to make threads: the fewest blocks that can race.
FEW_BLOCKS = [
    Case("few blocks", height=36, width=68),
    Case("few blocks, two problems", height=20, width=36, bands=4, scale=16, channels=2, images=3),
    Case("few blocks, two bands", height=20, width=36, bands=2),
]
ONE_TYPE = "-DFFMEF_CUDA_ONLY_FLOAT32"


def fails(program: Path, cases: list[Case]) -> str:
    """Return why the cases, forward or backward, fail on this program; an empty string if they pass."""
    return why_failed_either_way(run, worst, program, cases, cases)


@pytest.mark.parametrize("sanitizer", ("address,undefined", "thread"))
def test_clean_under_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    flags = (ONE_TYPE, "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    program = build(tmp_path, *flags, operator="pyramid_fuse")
    assert fails(program, FEW_BLOCKS if sanitizer == "thread" else CORE) == ""


KERNELS, LAUNCHES = "cuda/pyramid_fuse.cuh", "cuda/pyramid_fuse.cu"
THREE_BANDS = "cuda/pyramid_fuse_three_bands.cuh"
THREAD = ("-g", "-fsanitize=thread")
ADDRESS = ("-g", "-fsanitize=address")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
BETWEEN_IMAGES = "if (n > 0) __syncthreads();"
MUTANTS = [
    Mutant(
        "no barrier after the means",
        "put_means(around, row, column, p.bands, first, second);\n  }\n  __syncthreads();",
        "put_means(around, row, column, p.bands, first, second);\n  }",
        KERNELS,
    ),
    Mutant(
        "no barrier after level 3 and the products",
        "      __syncthreads();\n      collect<Shape>(p, tile, products, 0",
        "      collect<Shape>(p, tile, products, 0",
        KERNELS,
        flags=THREAD,
        sign="data race",
    ),
    Mutant("no barrier between images", BETWEEN_IMAGES, "", KERNELS, flags=THREAD, sign="data race", count=2),
    Mutant(
        "no barrier between images, gradient",
        BETWEEN_IMAGES,
        "",
        KERNELS,
        flags=THREAD,
        sign="data race",
        nth=1,
        count=2,
    ),
    Mutant(
        "no barrier between levels",
        "for (int l = p.bands - 1; l >= 1; --l) {\n    __syncthreads();",
        "for (int l = p.bands - 1; l >= 1; --l) {",
        KERNELS,
        flags=THREAD,
        sign="data race",
    ),
    Mutant(
        "no barrier between levels of the gradient",
        "adjoint_at(fine, coarse, row, column); });\n    __syncthreads();",
        "adjoint_at(fine, coarse, row, column); });",
        KERNELS,
        flags=THREAD,
        sign="data race",
    ),
    Mutant(
        "no barrier after sums along rows",
        "row_sums[i] = sum;\n  }\n  __syncthreads();",
        "row_sums[i] = sum;\n  }",
        KERNELS,
        flags=THREAD,
        sign="data race",
    ),
    Mutant(
        "a barrier for some threads", "if (!own.inside) continue;", "if (!own.inside) return;", KERNELS, sign="barrier"
    ),
    Mutant(
        "blocks that write the same sums",
        "static_cast<int64_t>(blockIdx.x) * p.image_count",
        "int64_t(0) * p.image_count",
        KERNELS,
    ),
    Mutant("no bound of rows", "if (row + i >= height) break;", "", KERNELS),
    Mutant(
        "no bound of columns",
        "if (column + j < width) line[j] = narrow<S>(values[i][j]);",
        "line[j] = narrow<S>(values[i][j]);",
        KERNELS,
    ),
    Mutant(
        "no bound of places",
        "if (level.has(row, column)) visit(row, column);",
        "visit(row, column);",
        KERNELS,
        flags=ADDRESS,
        sign="AddressSanitizer",
    ),
    Mutant(
        "rows past the picture read",
        "plane + clamped(row + i, height) * row_stride",
        "plane + (row + i) * row_stride",
        KERNELS,
        flags=ADDRESS,
        sign="AddressSanitizer",
    ),
    Mutant(
        "too little shared memory",
        "Shape::size(0) + 2 * Shape::kLevels + Shape::kRows * cells",
        "Shape::size(0) + 2 * Shape::kLevels + Shape::kRows / 2 * cells",
        KERNELS,
        flags=ADDRESS,
        sign="AddressSanitizer",
    ),
    Mutant(
        "vectors without alignment",
        "width % kPatch != 0 || !aligned(data, alignof(Four<S>))",
        "width % kPatch != 0",
        LAUNCHES,
        flags=UNDEFINED,
        sign="alignment",
    ),
    Mutant("wrong tap", "clamped(row & 1 ? r + 1 : r - 1, coarse.height)", "clamped(r + 1, coarse.height)", KERNELS),
    Mutant("wrong tap of a patch", "fine[2] = A(0.25) * coarse[1]", "fine[2] = A(0.25) * coarse[0]", KERNELS),
    Mutant("wrong tap of the gradient", "shares[1] = i > 0 ? A(0.75) : A(1);", "shares[1] = A(0.75);", KERNELS),
    Mutant("another band's weights", "level * p.weight_strides[1] + ", "", KERNELS),
    Mutant(
        "the first bands' weights below",
        "static_cast<const W*>(f.weights) + first_band * w[1]",
        "static_cast<const W*>(f.weights)",
        LAUNCHES,
    ),
    Mutant(
        "wrong scale",
        "\n          p.scale_shift - level}",
        "\n          p.scale_shift}",
        KERNELS,
    ),
    Mutant("one set of cells for a patch with a centre", "kSmoothShift = 3;", "kSmoothShift = 2;", KERNELS),
    Mutant(
        "odd border not repeated",
        "if (row / 2 + 1 >= first.height) means[1][0] = means[0][0], means[1][1] = means[0][1];",
        "",
        KERNELS,
    ),
    Mutant("odd border's gradient halved", "(last_row ? A(1) : A(0.5))", "A(0.5)", KERNELS),
    Mutant("borders of level 3 not repeated", "place = place < last ? place : last;", "(void)last;", KERNELS),
    Mutant(
        "the last tile's sums left out",
        "j <= (columns.last - 1) / Shape::kColumns",
        "j < (columns.last - 1) / Shape::kColumns",
        KERNELS,
    ),
    Mutant(
        "three bands: no barrier after an image",
        "first_column, cells);\n    __syncthreads();",
        "first_column, cells);",
        THREE_BANDS,
        flags=THREAD,
        sign="data race",
    ),
    Mutant(
        "three bands: one place for every image",
        "levels = shared + (n & 1) * T::kLevels;",
        "levels = shared;",
        THREE_BANDS,
        flags=THREAD,
        sign="data race",
    ),
    Mutant(
        "three bands: the outer ring stored",
        "for (int i = 0; beside && i < 2; ++i)",
        "for (int i = 0; i < 2; ++i)",
        THREE_BANDS,
    ),
    Mutant(
        "three bands: cells beyond the grid",
        "clamped(first_row + i / T::kCellsAcross, p.cells_down)",
        "(first_row + i / T::kCellsAcross)",
        THREE_BANDS,
        flags=ADDRESS,
        sign="AddressSanitizer",
    ),
    Mutant("three bands: odd border halved", "p.height, 2)) lower = line;", "p.height, 2)) lower = A(0);", THREE_BANDS),
    Mutant("three bands: border not repeated", "      repeat_border<Shape, 2>(p, here, levels);\n", "", THREE_BANDS),
    Mutant("later channels replace the sums", "A sum = add ? partials[i] : A(0);", "A sum = A(0);", KERNELS),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_found(mutant: Mutant, tmp_path: Path) -> None:
    program = plant(mutant, tmp_path, ONE_TYPE, operator="pyramid_fuse")
    reason = fails(program, FEW_BLOCKS if mutant.flags == THREAD else CORE)
    assert reason and mutant.sign in reason
