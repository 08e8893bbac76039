"""The CUDA kernels of pyramid_fuse, executed on the CPU thread by thread (tests/support/cuda_emulator)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cuda_emulation import build, needs_emulator
from problems import TOLERANCE
from pyramid_cases import Case, backward_matrix, matrix
from pyramid_emulation import run, worst

pytestmark = needs_emulator


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plain"), operator="pyramid_fuse")


@pytest.fixture(scope="module")
def forward_results(program: Path) -> dict[str, list[torch.Tensor]]:
    return {case.name: result for case, result in zip(matrix(), run(program, matrix(), backward=False))}


@pytest.fixture(scope="module")
def backward_results(program: Path) -> dict[str, list[torch.Tensor]]:
    cases = backward_matrix()
    return {case.name: result for case, result in zip(cases, run(program, cases, backward=True))}


@pytest.mark.parametrize("case", matrix(), ids=lambda case: case.name)
def test_forward_equals_float64_reference(case: Case, forward_results: dict[str, list[torch.Tensor]]) -> None:
    assert worst(case, forward_results[case.name], backward=False) <= TOLERANCE[case.dtype]


@pytest.mark.parametrize("case", backward_matrix(), ids=lambda case: case.name)
def test_backward_equals_float64_reference(case: Case, backward_results: dict[str, list[torch.Tensor]]) -> None:
    assert worst(case, backward_results[case.name], backward=True) <= TOLERANCE[case.dtype]


FAR_ROWS = 2**29 + 16  # elements: the fifth row starts past 2^31


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
def test_offsets_past_32_bits(program: Path, backward: bool) -> None:
    cases = [
        Case("rows far apart", height=9, width=16),
        Case("rows far apart, odd width", height=9, width=7, bands=4, scale=16),
    ]
    for case, results in zip(cases, run(program, cases, backward, far_rows=FAR_ROWS)):
        assert worst(case, results, backward) <= TOLERANCE[case.dtype]


def test_results_do_not_depend_on_the_order_of_threads(program: Path) -> None:
    cases = [case for case in backward_matrix() if case.name.endswith("many tiles")][-4:]
    first, second = run(program, cases, backward=True), run(program, cases + cases, backward=True)
    for results, again, once_more in zip(first, second, second[len(cases) :]):
        for part, part_again, part_once_more in zip(results, again, once_more):
            assert torch.equal(part, part_again) and torch.equal(part, part_once_more)
