"""The CUDA kernels of adaptive_fuse, executed on the CPU thread by thread (tests/support/cuda_emulator)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cuda_emulation import build, needs_emulator, run, worst
from gpu_cases import TOLERANCE, Case, backward_matrix, coarse_backward_matrix, coarse_matrix, matrix

FORWARD = matrix() + coarse_matrix()
BACKWARD = backward_matrix() + coarse_backward_matrix()

pytestmark = needs_emulator


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def forward_results(program: Path) -> dict[str, list[torch.Tensor]]:
    return {case.name: result for case, result in zip(FORWARD, run(program, FORWARD, backward=False))}


@pytest.fixture(scope="module")
def backward_results(program: Path) -> dict[str, list[torch.Tensor]]:
    return {case.name: result for case, result in zip(BACKWARD, run(program, BACKWARD, backward=True))}


@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.name)
def test_forward_equals_float64_reference(case: Case, forward_results: dict[str, list[torch.Tensor]]) -> None:
    assert worst(case, forward_results[case.name], backward=False) <= TOLERANCE[case.dtype]


@pytest.mark.parametrize("case", BACKWARD, ids=lambda case: case.name)
def test_backward_equals_float64_reference(case: Case, backward_results: dict[str, list[torch.Tensor]]) -> None:
    assert worst(case, backward_results[case.name], backward=True) <= TOLERANCE[case.dtype]


FAR_ROWS = 2**29 + 16  # elements: the fifth row starts past 2^31


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
def test_offsets_past_32_bits(program: Path, backward: bool) -> None:
    cases = [
        Case("rows far apart", height=5, width=16),
        Case("rows far apart, odd width", height=5, width=7, channels=3),
    ]
    for case, results in zip(cases, run(program, cases, backward, far_rows=FAR_ROWS)):
        assert worst(case, results, backward) <= TOLERANCE[case.dtype]


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
def test_places_past_32_bits(program: Path, backward: bool) -> None:
    """(2 * pixel + 1) * cells, the place of a pixel on the grid, passes 2^31."""
    case = Case("places past 32 bits", height=1, width=32800, sizes=(1,), grids=((1, 32780),), images=1)
    ((*results,),) = run(program, [case], backward)
    # 1 - share is off by half a unit of 1, which shows where the other cell's value is near zero.
    assert worst(case, results, backward) <= 4 * TOLERANCE[case.dtype]


@pytest.mark.parametrize("empty", ({"height": 0}, {"width": 0}, {"batch": 0}), ids=str)
def test_empty_images(program: Path, empty: dict[str, int]) -> None:
    ((image_grad, filter_grad, alpha_grad),) = run(program, [Case("nothing", sizes=(3,), **empty)], backward=True)
    assert image_grad.numel() == filter_grad.numel() == 0
    assert alpha_grad.tolist() == [0.0]


def test_results_do_not_depend_on_the_order_of_threads(program: Path) -> None:
    cases = [case for case in BACKWARD if "many tiles" in case.name and case.padding == "zeros"]
    first, second = run(program, cases, backward=True), run(program, cases + cases, backward=True)
    for results, again, once_more in zip(first, second, second[len(cases) :]):
        for part, part_again, part_once_more in zip(results, again, once_more):
            assert torch.equal(part, part_again) and torch.equal(part, part_once_more)


def test_wide_tiles_of_filters_gradients(program: Path) -> None:
    """Large pictures have them; the driver lowers the limit."""
    cases = [
        Case("wide tiles", width=292, height=17, sizes=(3, 5), images=1, need_images=False),
        Case("wide tiles, no alphas", width=4904, height=1, sizes=(3,), need_alphas=False, padding="reflect"),
    ]
    for case, results in zip(cases, run(program, cases, backward=True)):
        assert worst(case, results, backward=True) <= TOLERANCE[case.dtype]
