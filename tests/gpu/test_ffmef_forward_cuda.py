"""The CUDA kernels of the whole network, executed on the CPU thread by thread (tests/support/cuda_emulator): against the
float64 network, under sanitizers, and with faults planted in a copy of the kernels."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cuda_emulation import Failed, Mutant, build, encoded_tensor, execute, needs_emulator, numbers, plant
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
    """Return why the cases fail on this program; an empty string if they pass."""
    try:
        found = run(program, cases)
    except Failed as failure:
        return str(failure)
    errors = {case.name: error_of(case, result) for case, result in zip(cases, found)}
    return next((f"{name}: {error:.1e} times what is allowed" for name, error in errors.items() if error > 1), "")


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
