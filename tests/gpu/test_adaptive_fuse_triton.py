"""The Triton kernels of adaptive_fuse in Triton's interpreter, through the public function and in guarded memory."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ffmef.ops import adaptive_fuse, backends
from gpu_cases import TOLERANCE, Case, expected_backward, expected_forward, make_tensors
from problems import relative_error
from triton_guard import Mutant, error_allowed, guarded, in_nan, inside, needs_triton, plant

SOURCE = Path(__file__).resolve().parents[2] / "ffmef/kernels/adaptive_fuse.py"
pytestmark = needs_triton


def present() -> ModuleType:
    from ffmef.kernels import adaptive_fuse as kernels

    return kernels


def worst(
    kernels: ModuleType, case: Case, backward: bool, tile: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> float:
    """Return the largest error of a case in units of what is allowed; infinity after a stray access."""
    t = make_tensors(case)
    images, alphas, gradient = in_nan(t.images), in_nan(t.alphas), in_nan(t.gradient)
    filters = [in_nan(level) for level in t.filters]
    monkeypatch.setattr(importlib.import_module("ffmef.kernels.launch"), "tile", tile)
    wide_alphas = in_nan(alphas.contiguous())  # of the dtype and layout that kernels take, so that they use this one
    inputs = [images, gradient, wide_alphas, *filters]
    with guarded(monkeypatch, inputs) as strayed:
        if backward:
            needed = [int(n) for n in case.filters_needed]
            image_grad, filter_grads, alpha_grad = kernels.backward(
                gradient, images, filters, wide_alphas, case.padding, case.need_images, needed, case.need_alphas
            )
            results = [image_grad] if case.need_images else []
            results += [level for level, n in zip(filter_grads, needed) if n]
            results += [alpha_grad] if case.need_alphas else []
        else:
            results = [kernels.forward(images, filters, wide_alphas, case.padding)]
        if strayed():
            return float("inf")
    expected = expected_backward(case) if backward else [expected_forward(case)]
    assert len(results) == len(expected)
    allowed = error_allowed(case.dtype, TOLERANCE)
    return max(map(relative_error, results, expected)) / allowed


SMALL = (8, 16, 1)  # tiles of the interpreter are few rather than fast
HALF, BRAIN, DOUBLE = torch.float16, torch.bfloat16, torch.float64
FORWARD = [
    Case("triton, zeros", height=11, width=24, batch=2),
    Case("triton, replicate", height=7, width=13, padding="replicate"),
    Case("triton, reflect", height=7, width=16, padding="reflect", sizes=(7, 3)),
    Case("triton, smaller than the filter", height=2, width=3, padding="reflect", sizes=(5, 7)),
    Case("triton, one pixel", height=1, width=1, padding="reflect"),
    Case("triton, one column", height=5, width=1, padding="replicate", sizes=(3,)),
    Case("triton, nine taps across", height=5, width=9, sizes=(9,), padding="reflect", images=1),
    Case("triton, three channels", height=5, width=9, channels=3, images=3, sizes=(1, 3)),
    Case("triton, six channels", height=5, width=9, channels=6, images=1, sizes=(3,)),
    Case("triton, float16", height=5, width=16, dtype=HALF),
    Case("triton, bfloat16", height=5, width=16, dtype=BRAIN, channels=2, sizes=(3,)),
    Case("triton, float64", height=5, width=16, dtype=DOUBLE, sizes=(1, 3)),
    Case("triton, six levels of float16", height=3, width=8, dtype=HALF, sizes=(1, 3, 1, 1, 3, 1)),
    Case("triton, slices", height=5, width=9, layout="slice", sizes=(1, 3)),
    Case("triton, transposed", height=5, width=9, layout="transposed", channels=2, sizes=(3,)),
    Case("triton, channels last", height=5, width=9, layout="channels last", channels=2, sizes=(3,)),
    Case("triton, every second pixel", height=5, width=9, layout="every second", sizes=(3,)),
    Case("triton, expanded", height=5, width=9, layout="expanded", batch=3, sizes=(1, 3)),
    Case("triton, no batch", batch=0),
]
BACKWARD = [
    *(case for case in FORWARD if case.padding == "zeros" and case.name != "triton, zeros"),
    Case("triton, zeros, two tiles", height=9, width=12),
    Case("triton, replicate, three taps", height=4, width=7, padding="replicate", sizes=(3,)),
    Case("triton, reflect, two tiles", height=4, width=18, padding="reflect", sizes=(1, 3), images=1),
    Case("triton, reflect, five taps", height=2, width=3, padding="reflect", sizes=(5,), images=1),
    Case("triton, one row", height=1, width=7, padding="reflect", sizes=(3,)),
    Case("triton, images only", width=7, sizes=(1, 3), need_filters=(False, False), need_alphas=False),
    Case(
        "triton, one level only",
        width=7,
        sizes=(1, 3),
        need_filters=(False, True),
        need_alphas=False,
        need_images=False,
    ),
    Case("triton, alphas only", width=7, sizes=(1, 3), need_filters=(False, False), need_images=False),
]


# Every pixel that a cell reaches is a step of the interpreter's, so these are few and small.
COARSE = [
    Case("triton, coarse and full", height=5, width=9, sizes=(1, 3), grids=((2, 3), None), padding="reflect"),
    Case("triton, two grids", height=4, width=6, sizes=(3, 1), grids=((4, 2), (1, 1)), padding="replicate", images=1),
    Case("triton, coarse, channels", height=4, width=5, channels=3, sizes=(3,), grids=((2, 3),), images=1),
    Case("triton, coarse, small", height=1, width=3, sizes=(5,), grids=((1, 2),), padding="reflect", images=1),
    Case("triton, tiles of cells", height=10, width=20, sizes=(1,), grids=((9, 18),), images=1),
    Case("triton, coarse, float16", height=4, width=6, dtype=HALF, sizes=(1, 3), grids=((2, 3), None), images=1),
    Case("triton, coarse, bfloat16", height=4, width=6, dtype=BRAIN, sizes=(1,), grids=((2, 3),)),
    Case("triton, coarse, float64", height=4, width=6, dtype=DOUBLE, sizes=(1,), grids=((3, 4),)),
    Case("triton, coarse, strided", height=4, width=6, layout="every second", sizes=(1,), grids=((2, 4),)),
    Case("triton, coarse, expanded", height=4, width=6, layout="expanded", batch=2, sizes=(1,), grids=((2, 4),)),
    Case("triton, coarse, alternating", height=3, width=5, sizes=(1,) * 6, grids=(None, (2, 2)) * 3, images=1),
]
COARSE_BACKWARD = [
    *COARSE,
    Case("triton, coarse, filters only", height=4, width=5, sizes=(1, 1), grids=((2, 3), None), need_images=False,
         need_alphas=False),
    Case("triton, coarse, alphas only", height=4, width=5, sizes=(1,), grids=((2, 3),), need_images=False,
         need_filters=(False,)),
]  # fmt: skip
FORWARD += COARSE
BACKWARD += COARSE_BACKWARD


@inside
@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.name)
def test_forward_equals_float64_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst(present(), case, False, SMALL, monkeypatch) <= 1


@inside
@pytest.mark.parametrize("case", BACKWARD, ids=lambda case: case.name)
def test_backward_equals_float64_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst(present(), case, True, SMALL, monkeypatch) <= 1


# (2 * pixel + 1) * cells, the place of a pixel on the grid, passes 2^31. One wide tile: a program takes the interpreter long.
FAR = Case("triton, coarse, places past 32 bits", height=1, width=32800, sizes=(1,), grids=((1, 32780),), images=1)


@inside
@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
def test_places_past_32_bits(backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = present()
    monkeypatch.setattr(kernels, "ALPHA_TILE", (1, 65536, 1))
    # 1 - share is off by half a unit of 1, which shows where the other cell's value is near zero.
    assert worst(kernels, FAR, backward, (1, 65536, 1), monkeypatch) <= 4


@inside
def test_public_function_runs_triton_and_differentiates() -> None:
    assert backends()["triton"] is None
    case = Case("triton, public", height=4, width=6, sizes=(1, 3), padding="reflect")
    t = make_tensors(case)
    leaves = [t.images, *t.filters, t.alphas]
    for leaf in leaves:
        leaf.requires_grad_()
    output = adaptive_fuse(t.images, t.filters, t.alphas, padding_mode=case.padding, backend="triton")
    assert relative_error(output.detach(), expected_forward(case)) <= TOLERANCE[case.dtype]
    results = torch.autograd.grad(output, leaves, t.gradient)
    for result, expected in zip(results, expected_backward(case), strict=True):
        assert relative_error(result, expected) <= TOLERANCE[case.dtype]


MUTANTS = [
    Mutant("no mask on the store", "tl.store(target, result.to(output.dtype.element_ty), mask=mask)",
           "tl.store(target, result.to(output.dtype.element_ty))"),
    Mutant("no mask of the filters", "value = tl.load(source, mask=mask, other=0.0).to(DTYPE)", "value = tl.load(source).to(DTYPE)"),
    Mutant("flipped taps", "row, row_shown = _padded(y + tap // SIZE - SIZE // 2, height, PADDING)\n    column, c",
           "row, row_shown = _padded(y - tap // SIZE + SIZE // 2, height, PADDING)\n    column, c"),
    Mutant("the next level's alpha", "tl.load(alphas + 1)", "tl.load(alphas)"),
    Mutant("one bounce only", "phase = ((position % period) + period) % period", "phase = position"),
    Mutant("places outside shown anywhere", "first | (shown & (index == own))", "first | shown", backward=True),
    Mutant("cells taken as pixels", "upper, lower = filters + top", "upper, lower = filters + 0 * top"),
    Mutant("the right cell twice", "near, far = left[None, :]", "near, far = right[None, :]"),
    Mutant("rows of cells not shared out", "value += down[:, None] * (", "value += 0 * down[:, None] * (", backward=True),
    Mutant("a pixel too many", "reached = inside & ((y < last_row)[:, None] & (x < last_column)[None, :])",
           "reached = inside & (y < last_row)[:, None]", backward=True),
    Mutant("gradient of one row of pixels", "for k in range(most_rows):", "for k in range(1):", backward=True),
    Mutant("later levels replace the gradient", '"ADD": l > 0', '"ADD": False', backward=True),
]  # fmt: skip
MUTANT_CASE = Case("triton, mutants", height=4, width=11, sizes=(1, 3), padding="reflect", images=1)
BOUNCING = Case("triton, mutants, small", height=2, width=3, sizes=(7, 1), padding="reflect", images=1)


@inside
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_found(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = plant(mutant, SOURCE, tmp_path)
    case = (
        BOUNCING
        if "bounce" in mutant.name
        else COARSE[0]
        if "cell" in mutant.name or "pixel" in mutant.name
        else MUTANT_CASE
    )
    assert worst(kernels, case, mutant.backward, SMALL, monkeypatch) > 1
