"""The CUDA kernels of the whole network, executed on the CPU thread by thread (tests/support/cuda_emulator): against the
float64 network, under sanitizers, and with faults planted in a copy of the kernels."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cuda_emulation import Mutant, build, encoded_tensor, execute, needs_emulator, numbers, plant, why_failed
from networks import TOLERANCE, eager64, random_luminance, random_model, worst

pytestmark = needs_emulator
OPERATOR = "ffmef_forward"


@dataclass(frozen=True)
class Case:
    name: str
    height: int
    width: int
    sizes: tuple[int, ...] = (1, 3, 5)
    batch: int = 1
    flat: bool = False  # all parameters in one tensor

    @property
    def luminance(self) -> torch.Tensor:
        return random_luminance(self.height, self.width, self.batch)


CASES = [
    Case("several tiles", 37, 71),
    Case("whole tiles", 32, 64, sizes=(1, 3)),
    Case("two pixels", 1, 2),
    Case("one row", 1, 40, sizes=(1,)),
    Case("one column", 35, 1, sizes=(3, 5)),
    Case("batch", 9, 33, batch=3),
    Case("seven", 18, 34, sizes=(1, 3, 5, 7)),
    Case("parameters in one piece", 5, 6, flat=True),
]


def encode(case: Case) -> bytes:
    parameters = [p.detach().flatten() for p in random_model(4, case.sizes).parameters()]
    if case.flat:
        parameters = [torch.cat(parameters)]
    data = encoded_tensor(case.luminance) + numbers(len(case.sizes), *case.sizes, len(parameters))
    return data + b"".join(map(encoded_tensor, parameters))


def run(program: Path, cases: list[Case]) -> list[torch.Tensor]:
    data = execute(program, numbers(len(cases)) + b"".join(map(encode, cases)))
    results, at = [], 0
    for case in cases:
        status, held = struct.unpack_from("<iq", data, at)
        assert status == 0, f"{case.name}: status {status}"
        assert held == sum(p.numel() for p in random_model(4, case.sizes).parameters())
        shape = (case.batch, 1, case.height, case.width)
        at, end = at + 12, at + 12 + 4 * torch.Size(shape).numel()
        results.append(torch.frombuffer(bytearray(data[at:end]), dtype=torch.float32).reshape(shape))
        at = end
    assert at == len(data)
    return results


def error_of(case: Case, result: torch.Tensor) -> float:
    """Return the largest error in units of what is allowed; infinity for values that are not finite."""
    if not bool(result.isfinite().all()):
        return float("inf")
    return worst(result, eager64(random_model(4, case.sizes), case.luminance)) / TOLERANCE


def fails(program: Path, cases: list[Case]) -> str:
    return why_failed(run, error_of, program, cases)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plain"), operator=OPERATOR)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_float64_network(case: Case, program: Path) -> None:
    (result,) = run(program, [case])
    # A tenth of what is allowed: float32 leaves far less, and a slip of a border or a norm more.
    assert error_of(case, result) <= 0.1


def test_results_do_not_depend_on_the_order_of_threads(program: Path) -> None:
    first, again = run(program, [CASES[0], CASES[0]])
    assert torch.equal(first, again)


# ---- sanitizers and planted faults ---------------------------------------------------------------------------------

CORE = [Case("core", 19, 37), Case("core, seven", 3, 34, sizes=(1, 3, 5, 7)), Case("core, batch", 17, 5, (1,), batch=2)]
# Few threads: the sanitizer knows 255 at a time.
FEW_BLOCKS = [
    Case("two tiles", 1, 33, sizes=(1,)),
    Case("two rows of tiles", 17, 2, sizes=(1,)),
    Case("few blocks", 17, 33, sizes=(1, 3)),
]
THREAD, ADDRESS = ("-g", "-fsanitize=thread"), ("-g", "-fsanitize=address")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ("address,undefined", "thread"))
def test_clean_under_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    program = build(tmp_path, "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", operator=OPERATOR)
    assert fails(program, FEW_BLOCKS if sanitizer == "thread" else CORE) == ""


CONVOLUTION, NORM = "cuda/thin_convolution.cuh", "cuda/norm_activation.cuh"
PASSES, CHAIN = "cuda/ffmef_forward.cuh", "cuda/ffmef_forward.cu"
MUTANTS = [
    Mutant("no barrier after the tile", "  __syncthreads();\n  start_from_bias(shared.weights[0], sums);\n  convolve_tile(shared, shared.weights[0], sums);\n  if constexpr (Beside)",
           "  start_from_bias(shared.weights[0], sums);\n  convolve_tile(shared, shared.weights[0], sums);\n  if constexpr (Beside)", PASSES),
    Mutant("no barrier before the tile is used again", "__syncthreads();  // every thread is done with the tile", "", PASSES,
           flags=THREAD, sign="data race"),
    Mutant("no barrier before a mixture", "__syncthreads();  // its values are there for all threads", "", PASSES,
           flags=THREAD, sign="data race"),
    Mutant("no barrier before the weights", "__syncthreads();  // every thread is done with the previous weights", "",
           PASSES, flags=THREAD, sign="data race"),
    Mutant("no barrier between images", "if (n > 0) __syncthreads();  // every thread is done with the previous image",
           "", PASSES, flags=THREAD, sign="data race"),
    Mutant("the last warp is not waited for", "if (!came_last(before, f.tiles_across)) return;",
           "came_last(before, f.tiles_across);", NORM, flags=THREAD, sign="data race"),
    Mutant("a lane's part not released", "__syncwarp();  // the release then counts for what all lanes wrote", "", NORM,
           flags=THREAD, sign="data race"),
    Mutant("a row too far", "return row(p) < f.height &&", "return row(p) <= f.height &&", CONVOLUTION),
    Mutant("a column too far", "first_column + column < f.width;", "first_column + column <= f.width;", CONVOLUTION),
    Mutant("border not zero", "spot.shown ? pixel.at[c] : 0.0f", "pixel.at[c]", CONVOLUTION),
    Mutant("a column of the tile not staged", "exists = row < kTileDown<Halo>;", "exists = false;", CONVOLUTION),
    Mutant("tile too small", "kTilePixels = kPitch<Halo> * kTileDown<Halo>;", "kTilePixels = kPitch<Halo> * (kTileDown<Halo> - Halo);",
           CONVOLUTION),
    Mutant("flipped taps", "const unsigned turned = tap % 3 * 3 + tap / 3;", "const unsigned turned = tap;", CONVOLUTION),
    Mutant("transposed taken as plain", "const unsigned place = transposed ?", "const unsigned place = false ?", CONVOLUTION),
    Mutant("whole tiles counted", "const double last_columns = f.width - (f.tiles_across - 1) * kColumns;",
           "const double last_columns = kColumns;", NORM),
    Mutant("whole rows counted", "last_rows = f.height - (f.strips_down - 1) * kRows;", "last_rows = kRows;", NORM),
    Mutant("hidden values counted", "hide(means);", "", NORM),
    Mutant("hidden pixels counted", "shown ? pixel.at[c] - pivot[c] : 0.0f", "pixel.at[c] - pivot[c]", NORM),
    Mutant("all channels normed", "if (lane < s.normed) {", "if (true) {", NORM, flags=ADDRESS),
    Mutant("no epsilon", "+ kEpsilon", "", NORM),
    Mutant("biased towards the pivot", "result.x = pivot + mean;", "result.x = mean;", NORM),
    Mutant("the stem for the map", "StemSkips >> i & 1u ? shared->stem(", "i == 0 ? shared->stem(", PASSES),
    Mutant("halves exchanged", "of_skip = load_four(weights[o]), of_base = load_four(weights[o] + kChannels);",
           "of_base = load_four(weights[o]), of_skip = load_four(weights[o] + kChannels);", PASSES),
    Mutant("the other image's map", "image == 0 ? first[n].at[c] : second[n].at[c]", "image == 1 ? first[n].at[c] : second[n].at[c]",
           PASSES),
    Mutant("no bias of the filters", "+= offset[i][0];", "+= 0 * offset[i][0];", PASSES),
    Mutant("the first groups again", "load_head<K>(level, first, count, last, weights);",
           "load_head<K>(level, 0, count, last, weights);", PASSES),
    Mutant("groups of the other team", "g += kTeams", "++g", PASSES),
    Mutant("a team's totals left out", " + totals[i * kHeadThreads + kThreads];", ";", PASSES),
    Mutant("a map overwritten too early", "Pixel* u1 = e2;", "Pixel* u1 = bottom;", CHAIN),
    Mutant("another level's map", "size == 1 ? kDecoded : size == 3 ? kUp2 : kBottom", "size == 1 ? kUp2 : size == 3 ? kUp2 : kBottom",
           CHAIN),
    Mutant("counters not cleared", "kNorms * memory_.counters_of_norm * sizeof(unsigned)", "sizeof(unsigned)", CHAIN),
    Mutant("workspace too small", "for (Pixel*& map : maps) map = take<Pixel>(planes * n.height * n.width);",
           "for (Pixel*& map : maps) map = take<Pixel>(planes * n.height * n.width - 64);", CHAIN, flags=ADDRESS),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_found(mutant: Mutant, tmp_path: Path) -> None:
    program = plant(mutant, tmp_path, operator=OPERATOR)
    reason = fails(program, FEW_BLOCKS if mutant.flags == THREAD else CORE)
    assert reason and mutant.sign in reason
