"""The CUDA kernels of PyramidFFMEF from pictures to a picture, executed on the CPU thread by thread
(tests/support/cuda_emulator): float64, order and identity, sanitizers, and faults planted in a copy of the kernels."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cuda_emulation import ROOT, Mutant, build, needs_emulator, plant, why_failed
from ffmef import picture
from pyramid_pictures_cases import MANY, MATRIX, Case, error_of, expected, model_of, pictures_of, run

pytestmark = needs_emulator
OPERATOR = "pyramid_pictures"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plain"), operator=OPERATOR)


@pytest.fixture(scope="module")
def results(program: Path) -> dict[str, torch.Tensor]:
    return {case.name: result for case, result in zip(MATRIX, run(program, MATRIX))}


@pytest.mark.parametrize("case", MATRIX, ids=lambda case: case.name)
def test_equals_float64_definition(case: Case, results: dict[str, torch.Tensor]) -> None:
    result = results[case.name]
    assert error_of(case, result) <= 1
    if case.sample == "rgb8":  # one level where float64 lies on the edge of rounding: rarely
        wanted = (expected(case) + 0.5).floor()
        assert (result.double() != wanted).float().mean() < 2e-3


def test_equals_the_native_cpu_path(results: dict[str, torch.Tensor]) -> None:
    if picture.missing is not None:
        pytest.skip(picture.missing)
    for case in MATRIX:
        if case.sample != "rgb8" or case.masked or case.channels != (16, 16, 32, 32):
            continue
        model = model_of(case)
        native = picture.fuse(
            picture.network_of(model), [p.numpy().astype(np.uint8) for p in pictures_of(case)], 1, (), case.adjust
        )
        apart = (torch.from_numpy(native).int() - results[case.name].int()).abs()
        assert apart.max() <= 1 and (apart > 0).float().mean() < 2e-3, case.name


ORDERS = [
    Case("order", count=2, order=(1, 0)),
    Case("order", count=3, order=(2, 0, 1)),
    Case("order", count=9, order=(8, 3, 1, 0, 7, 5, 2, 6, 4), height=21, width=26),
    Case("order", count=4, order=(3, 1, 2, 0), masked=True, adjust=MANY),
    Case("order", count=3, order=(1, 2, 0), sample="luminance"),
]


def test_the_order_of_exposures_does_not_change_a_bit(program: Path) -> None:
    for case in ORDERS:
        for pictures in ("noise", "scene"):
            other = replace(case, pictures=pictures)
            first, second = run(program, [replace(other, order=()), other])
            assert torch.equal(first, second), other


@pytest.mark.parametrize("sample", ["rgb8", "rgb16", "luminance"])
def test_a_picture_fused_with_itself_is_unchanged(program: Path, sample: str) -> None:
    for count in (2, 3, 5):
        case = Case("identity", sample=sample, count=count, pictures="same", bundled=True, height=43, width=70)
        given, (result,) = pictures_of(case)[0], run(program, [case])
        if sample == "luminance":
            assert (result - given).abs().max() < 1e-6
        else:
            assert torch.equal(result.int(), given)


def test_brackets_on_streams_beside_each_other(program: Path) -> None:
    for case in BRACKETS:
        together, alone = run(program, [case, replace(case, brackets=1)])
        assert error_of(case, together) <= 1
        assert torch.equal(together[0].int(), alone.int()) and not torch.equal(together[1].int(), alone.int())


# ---- sanitizers and planted faults ---------------------------------------------------------------------------------

CORE = [
    Case("core, three", count=3, height=69, width=75, masked=True, adjust=replace(MANY, prefer=1.0)),
    Case("core, words", height=37, width=136, octaves=2, bundled=True, pictures="scene"),
    Case("core, luminance", sample="luminance", height=27, width=44, channels=(16, 32, 16), stem=3),
    Case("core, floating point", sample="rgb float", height=40, width=11, masked=True),
]
BRACKETS = [
    Case("five", brackets=5, height=17, width=24, channels=(16, 16), octaves=2),
    Case("two of usable parts", brackets=2, count=3, height=12, width=20, masked=True, adjust=MANY, offset=1),
    Case("luminance of three", brackets=3, sample="luminance", height=16, width=9),
]
# The thread sanitizer is slow to make threads: the fewest blocks that can race.
FEW_BLOCKS = [Case("few blocks", height=9, width=40, channels=(16, 16), octaves=4)]
ADDRESS = ("-g", "-fsanitize=address")
THREAD = ("-g", "-fsanitize=thread")
LANES = "cuda/lanes.cuh"


def fails(program: Path, cases: list[Case]) -> str:
    return why_failed(run, error_of, program, cases)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ("address,undefined", "thread"))
def test_clean_under_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    program = build(tmp_path, "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", operator=OPERATOR)
    assert fails(program, FEW_BLOCKS if sanitizer == "thread" else [*BRACKETS, *CORE]) == ""


KERNELS, LAUNCHES = "cuda/pyramid_pictures.cuh", "cuda/pyramid_pictures.cu"
MUTANTS = [
    Mutant("no barrier before the statistics", "__syncthreads();\n    measure_cells", "measure_cells", KERNELS, flags=THREAD,
           sign="data race"),
    Mutant("no barrier after the statistics", "add_places(sums);\n    __syncthreads();", "add_places(sums);", KERNELS, flags=THREAD,
           sign="data race"),
    Mutant("one place of a cell left out", "int distance = 8; distance >= 4", "int distance = 8; distance > 4", KERNELS),
    Mutant("pairs of pixels across the end of a row", "f.width % 2 == 0 && all_aligned", "all_aligned", LAUNCHES),
    Mutant("no convolution for the further stems", "i += kThreads / (4 * kFinest)", "i += kThreads", KERNELS),
    Mutant("no barrier before the convolution that follows", "__syncthreads();  // every thread is done with the tile and the weights",
           "", KERNELS, flags=THREAD, sign="data race"),
    Mutant("one row too far", "row < tile.row + kTileDown && row < p.sizes[0].height", "row < tile.row + kTileDown", KERNELS),
    Mutant("no bound of columns", "if (column + j < width) {", "{", KERNELS, flags=ADDRESS, sign="AddressSanitizer"),
    Mutant("the order that was given", "const int own = p.order[n];", "const int own = n;", KERNELS, nth=2, count=3),
    Mutant("the order that was given, at half size", "const int own = p.order[n];", "const int own = n;", KERNELS, count=3),
    Mutant("no repeated border of a fused level", "if (r != row || c != column)", "if (r != row)", KERNELS),
    Mutant("no repeated row of a fused level", "if (r != row || c != column)", "if (c != column)", KERNELS),
    Mutant("no barrier before the repeated border", "first_column = (tile.column >> Number) - 1;\n  __syncthreads();",
           "first_column = (tile.column >> Number) - 1;", KERNELS, flags=THREAD, sign="data race"),
    Mutant("weights between the wrong rows of cells", "cell_row.share + 0.25f", "cell_row.share + 0.5f", KERNELS),
    Mutant("no repeated border of level 2", "const int down = 2 * row + 1 < p.quarter_size.height ? 1 : 0;",
           "const int down = 1;", KERNELS),
    Mutant("no repeated border of a grid", "(row + 2 * y + 1 < size.height ? tap / 2 : 0)", "tap / 2", KERNELS),
    Mutant("no maximum", "store_four(&both[cell][C + channel], met.most);",
           "store_four(&both[cell][C + channel], met.mean);", KERNELS),
    Mutant("no difference among the statistics", "v[0] = x.x + added[0]", "v[0] = x.x", KERNELS),
    Mutant("another exposure's validity", "p.valid[known] > kLeastValidity ? p.valid[known] : kLeastValidity", "p.valid[cell]", KERNELS),
    Mutant("gains of a pair for any number", " * gain_with_count(plane, kBands, p.count)", "", KERNELS),
    Mutant("gains without a gate", "kPlanes + plane] * gate", "kPlanes + plane]", KERNELS),
    Mutant("exposures that clash are trusted", "counts = colour.mass * reciprocal(trust * trust)", "counts = colour.mass", KERNELS),
    Mutant("octaves of the wrong order", "map == kPictures && number == 1 ? p.order[n] : n", "n", KERNELS),
    Mutant("a fine octave without a plane of its own", "p.is_fine(number) ? kFineShares - kShares : 0", "0", KERNELS),
    Mutant("another fine octave without a plane of its own", "o.maps[kFineShares][at] *", "o.maps[kShares][at] *", KERNELS),
    Mutant("one fine octave", "kFine = 2;", "kFine = 1;", KERNELS),
    Mutant("taps of further octaves side by side", "1 << (number - kFine - 1)", "1", KERNELS, nth=1, count=2),
    Mutant("no repeated border of further octaves", "clamped(column + step, size.width)", "column", KERNELS),
    Mutant("no barrier between octaves", "__syncthreads();\n    const float* from", "const float* from", KERNELS, flags=THREAD,
           sign="data race"),
    Mutant("one half of the memory for all octaves", "s.halves[(number - kFine) % 2]", "s.halves[(number - kFine + 1) % 2]", KERNELS,
           flags=THREAD, sign="data race"),
    Mutant("no repeated border of the fused octave", "clamped(first_row / 2 - 1 + thread / kSide, size.height)",
           "clamped(first_row / 2 - 1 + thread / kSide, size.height + 1)", KERNELS),
    Mutant("the wrong neighbour in the fused octave", "far_y = y % 2 == 0 ?", "far_y = y % 2 != 0 ?", KERNELS),
    Mutant("the knee of all pictures", "fmaxf(range.least, kKnee)", "kKnee", KERNELS),
    Mutant("the toe of all pictures", "fminf(range.most, kToe)", "kToe", KERNELS),
    Mutant("white of all pictures", "fmaxf(range.top, kWhite)", "kWhite", KERNELS),
    Mutant("luminance is cut off", "fmaxf(beyond > 0.0f ? white - knee : toe, 0.0f)", "0.0f", KERNELS),
    Mutant("what must not be used is dark", "dark = 255.0f - v * (255.0f - dark)", "dark *= 1.0f", KERNELS),
    Mutant("what must not be used is bright", "bright *= v", "bright *= 1.0f", KERNELS),
    Mutant("what must not be used has a peak", "top = 255.0f - v * (255.0f - top)", "top *= 1.0f", KERNELS),
    Mutant("chroma as noisy as it was", "red[j] + closer * red_step", "red[j]", KERNELS),
    Mutant("chroma smoothed where exposures agree", "return apart * reciprocal((apart + kHalfApart) *", "return reciprocal(1.0f *", KERNELS),
    Mutant("chroma smoothed across edges", "1.0f + far * (1.0f", "1.0f + 0.0f * (1.0f", KERNELS),
    Mutant("chroma smoothed in texture", "red_step * red_step + edge * edge", "red_step * red_step", KERNELS),
    Mutant("a last odd column smoothed with what lies beyond", "column + (j ^ 1) < size.width;", "true;", KERNELS),
    Mutant("the base without its gain", "f.octaves > 0 ? m.base : m.shares", "m.shares", LAUNCHES),
    Mutant("a lane that does not wait", "if (error_ == cudaSuccess) error_ = cudaStreamWaitEvent(lane.stream, start, 0);", ";", LANES),
    Mutant("a lane that is not waited for", "if (error == cudaSuccess) error = cudaStreamWaitEvent(stream_, lane.done, 0);", "",
           LANES, sign="a stream is not waited for"),
    Mutant("lanes that share a workspace", "b % lanes.count() * bytes", "0 * bytes", LAUNCHES),
    Mutant("too little shared memory", "kBytes = (kTile + kWeights) * 4", "kBytes = (kTile + kWeights) * 4 - 64", KERNELS,
           flags=ADDRESS, sign="AddressSanitizer"),
]  # fmt: skip


def test_large_pictures_have_other_launches(tmp_path: Path) -> None:
    """As if even the last octaves of these small pictures were too much for one block, and CUDA had one more stream; and
    with two cells per thread in a grid of one tile, four in larger ones."""
    lines = """kTilesForTwo = 200, kTilesForFour = 640;
// An octave of more cells takes one block more than a microsecond.
constexpr int64_t kSpreadCells = SpreadingShared::kMostCells;"""
    small = "kTilesForTwo = 0, kTilesForFour = 1; constexpr int64_t kSpreadCells = 0;"
    program = plant(Mutant("", lines, small, LAUNCHES), tmp_path, "-DFFMEF_EMULATED_STREAMS=2", operator=OPERATOR)
    assert fails(program, [*BRACKETS, *CORE]) == ""


def test_kernels_wait_before_they_touch_maps() -> None:
    """What the emulator cannot show, because it runs one launch after the other: before a kernel waits for the launch
    before its own, it copies packed weights to shared memory, and nothing else."""
    launches, bodies = ((ROOT / "csrc" / file).read_text() for file in (LAUNCHES, KERNELS))
    early = dict(re.findall(r"__global__.*?(\w+)_kernel\(.*?\{(.*?)\n\}", launches, re.DOTALL))
    assert len(early) == 10 and "wait" not in early.pop("enter")
    for name, kernel in early.items():
        if "wait_for_launch_before();" not in kernel:
            kernel = re.search(rf"void {name}\(const.*?\n\}}", bodies, re.DOTALL)[0]
        before, wait, _ = kernel.partition("wait_for_launch_before();")
        before = re.sub(r"copy_weights\([^,]*, p\.\w+\.(weights|bias), ", "", before)
        assert wait and not re.search(r"copy_weights|load_four|store_four|share\(|\[|->|= \*", before), name


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_found(mutant: Mutant, tmp_path: Path) -> None:
    program = plant(mutant, tmp_path, operator=OPERATOR)
    reason = fails(program, FEW_BLOCKS if mutant.flags == THREAD else [*BRACKETS, *CORE])
    assert reason and mutant.sign in reason
