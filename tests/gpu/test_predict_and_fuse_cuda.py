"""The CUDA kernels of predict_and_fuse, executed on the CPU thread by thread (tests/support/cuda_emulator): the matrix,
sanitizers, and faults planted in a copy of the kernels."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from cuda_emulation import (
    DTYPE_CODES,
    Mutant,
    build,
    encoded_tensor,
    execute,
    needs_emulator,
    numbers,
    plant,
    why_failed,
)  # fmt: skip
from gpu_cases import TOLERANCE
from predict_and_fuse_cases import Case, expected, make_tensors, matrix
from problems import PADDINGS, relative_error

pytestmark = needs_emulator
OPERATOR = "predict_and_fuse"


def encode(case: Case, far_rows: int | None) -> bytes:
    t = make_tensors(case)
    data = numbers(DTYPE_CODES[case.dtype], PADDINGS.index(case.padding), case.output_offset, len(t.hidden))
    data += encoded_tensor(t.images, far_rows)
    for hidden, weight, bias in zip(t.hidden, t.weight, t.bias):
        data += encoded_tensor(hidden, far_rows) + encoded_tensor(weight) + encoded_tensor(bias)
    return data + encoded_tensor(t.alphas)


def run(program: Path, cases: list[Case], far_rows: int | None = None) -> list[torch.Tensor]:
    encoded = numbers(len(cases)) + b"".join(encode(case, far_rows) for case in cases)
    data, results, at = execute(program, encoded), [], 0
    for case in cases:
        (status,) = struct.unpack_from("<i", data, at)
        assert status == 0, f"{case.name}: CUDA error {status}"
        shape = (case.batch, case.channels, case.height, case.width)
        end = at + 4 + torch.Size(shape).numel() * case.dtype.itemsize
        values = torch.frombuffer(bytearray(data[at + 4 : end]), dtype=case.dtype) if end > at + 4 else torch.empty(0)
        results.append(values.reshape(shape))
        at = end
    assert at == len(data)
    return results


def error_of(case: Case, result: torch.Tensor) -> float:
    """Return the largest error in units of what is allowed."""
    return relative_error(result, expected(case)) / TOLERANCE[case.dtype]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plain"), operator=OPERATOR)


@pytest.fixture(scope="module")
def results(program: Path) -> dict[str, torch.Tensor]:
    return {case.name: result for case, result in zip(matrix(), run(program, matrix()))}


@pytest.mark.parametrize("case", matrix(), ids=lambda case: case.name)
def test_equals_float64_reference(case: Case, results: dict[str, torch.Tensor]) -> None:
    assert error_of(case, results[case.name]) <= 1


def test_offsets_past_32_bits(program: Path) -> None:
    rows = 2**29 + 16  # elements: the fifth row starts past 2^31
    cases = [
        Case("rows far apart", height=5, width=16, sizes=(3,), maps=(1,)),
        Case("rows far apart, odd width", height=5, width=7, channels=3, sizes=(3,), maps=(1,)),
    ]
    for case, result in zip(cases, run(program, cases, far_rows=rows)):
        assert error_of(case, result) <= 1


def test_results_do_not_depend_on_the_order_of_threads(program: Path) -> None:
    cases = [case for case in matrix() if case.name.startswith("many tiles") and case.padding == "zeros"]
    first, second = run(program, cases), run(program, cases + cases)
    for result, again, once_more in zip(first, second, second[len(cases) :]):
        assert torch.equal(result, again) and torch.equal(result, once_more)


# ---- sanitizers and planted faults ---------------------------------------------------------------------------------

# Few cases that reach every kernel, in one type: sanitizers and mutants compile and run the kernels once each.
CORE = [
    Case("core, vectors", width=72, height=19, images=3, sizes=(1, 3, 5)),
    Case("core, odd width", width=41, height=11, padding="reflect", channels=2, sizes=(3, 7), maps=(4, 3)),
    Case(
        "core, aligned slices",
        width=20,
        height=18,
        layout="aligned slice",
        padding="replicate",
        sizes=(7, 3),
        maps=(50, 4),
    ),
    Case("core, every second", width=37, height=10, channels=5, layout="every second", sizes=(3,)),
    Case(
        "core, nine taps",
        width=36,
        height=9,
        sizes=(9, 3),
        maps=(3, 2),
        padding="reflect",
        channels=5,
        layout="channels last",
    ),
    Case("core, off a 16-byte boundary", layout="offset", width=16, height=5, sizes=(3,)),
    Case("core, seventeen levels", sizes=(1, 3) * 8 + (5,), height=3, width=8),
]
# The thread sanitizer is slow to make threads: the fewest blocks that can race.
FEW_BLOCKS = [
    Case("few blocks, vectors", width=68, height=9, sizes=(1, 3)),
    Case("few blocks, maps in turns", width=12, height=5, sizes=(5,), maps=(73,), images=1),
    Case("few blocks, nine taps", width=7, height=3, sizes=(9,), maps=(2,), images=1),
]
ONE_TYPE = "-DFFMEF_CUDA_ONLY_FLOAT32"
THREAD = ("-g", "-fsanitize=thread")
ADDRESS = ("-g", "-fsanitize=address")


def fails(program: Path, cases: list[Case]) -> str:
    return why_failed(run, error_of, program, cases)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ("address,undefined", "thread"))
def test_clean_under_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    flags = (ONE_TYPE, "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    program = build(tmp_path, *flags, operator=OPERATOR)
    assert fails(program, FEW_BLOCKS if sanitizer == "thread" else CORE) == ""


KERNELS, LAUNCHES = "cuda/predict_and_fuse.cuh", "cuda/predict_and_fuse.cu"
MUTANTS = [
    Mutant("no barrier after the weights", "count, weights);\n            __syncthreads();", "count, weights);", KERNELS),
    Mutant("no barrier after the tile", "first_row, first_column);\n    __syncthreads();", "first_row, first_column);", KERNELS),
    Mutant("no barrier before the weights", "__syncthreads();  // every thread is done with the previous weights", "",
           KERNELS, flags=THREAD, sign="data race"),
    Mutant("no barrier between images", "if (n > 0) __syncthreads();  // every thread is done with the previous image", "",
           KERNELS, flags=THREAD, sign="data race"),
    Mutant("a barrier for some threads", "if (!inside) continue;", "if (!inside) return;", KERNELS, sign="barrier"),
    Mutant("no bound of rows", "if (row + r < p.height)\n      store_result", "store_result", KERNELS),
    Mutant("no bound of columns", "if (at.row >= p.height || at.column >= p.width) return;",
           "if (at.row >= p.height) return;", KERNELS),
    Mutant("no room for the weights", "tile + kWeightsBytes + kMapsBytes<T, V>", "tile + kWeightsBytes / 2", LAUNCHES,
           flags=ADDRESS, sign="AddressSanitizer"),
    Mutant("one map more is read", "if (d < maps) under_way", "if (d <= maps) under_way", KERNELS, flags=ADDRESS,
           sign="AddressSanitizer"),
    Mutant("a map is taken before it is there", "wait_for_copies<kAhead - 1>", "wait_for_copies<kAhead>", KERNELS),
    Mutant("no room for maps on their way", " + kMapsBytes<T, V>, stream", ", stream", LAUNCHES, flags=ADDRESS,
           sign="AddressSanitizer"),
    Mutant("weights not transposed", "(static_cast<int64_t>(tap) * level.maps + first + m)",
           "(static_cast<int64_t>(first + m) * K * K + tap)", KERNELS),
    Mutant("flipped taps", "[t % K + v];", "[K - 1 - t % K + v];", KERNELS),
    Mutant("no bias", "const bool is_bias = first + m == level.maps;", "const bool is_bias = false;", KERNELS),
    Mutant("the first turn's maps again", "hidden + first * level.map", "hidden", KERNELS),
    Mutant("another level's alpha, weights kept", "p.alphas[l * p.alpha_stride], 0, level.maps + 1",
           "p.alphas[0], 0, level.maps + 1", KERNELS),
    Mutant("another level's weights", "weights + (p.keeps_weights ? level.place : 0)", "weights", KERNELS),
    Mutant("another level's alpha", "const A alpha = p.alphas[l * p.alpha_stride];", "const A alpha = p.alphas[0];", KERNELS,
           count=2),
    Mutant("alphas taken as dense", "const A alpha = p.alphas[l * p.alpha_stride];", "const A alpha = p.alphas[l];",
           KERNELS, nth=1, count=2),
    Mutant("another channel", "load_tile<Shape, 1>(p, shared, batch, n, channel,", "load_tile<Shape, 1>(p, shared, batch, n, 0,",
           KERNELS),
    Mutant("later launches replace the result", "p.add_result = first_level > 0;", "p.add_result = false;", LAUNCHES),
    Mutant("vectors without alignment", "if (!aligned(f.hidden[l], bytes) || s[4] != 1) return false;", "", LAUNCHES,
           flags=("-fsanitize=undefined", "-fno-sanitize-recover=all")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_found(mutant: Mutant, tmp_path: Path) -> None:
    program = plant(mutant, tmp_path, ONE_TYPE, operator=OPERATOR)
    reason = fails(program, FEW_BLOCKS if mutant.flags == THREAD else CORE)
    assert reason and mutant.sign in reason
