"""The Triton kernels of pyramid_fuse in Triton's interpreter, through the public function and in guarded memory."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ffmef.ops import backends, pyramid_fuse
from problems import TOLERANCE, relative_error
from pyramid_cases import Case, expected_backward, expected_forward, make_tensors
from triton_guard import Mutant, error_allowed, guarded, in_nan, inside, needs_triton, plant

SOURCE = Path(__file__).resolve().parents[2] / "ffmef/kernels/pyramid_fuse.py"
pytestmark = needs_triton


def present() -> ModuleType:
    from ffmef.kernels import pyramid_fuse as kernels

    return kernels


def worst(kernels: ModuleType, case: Case, monkeypatch: pytest.MonkeyPatch, steps: tuple[bool, ...]) -> float:
    """Return the largest error of a case, forward, backward or both, in units of what is allowed; infinity after a stray access."""
    t = make_tensors(case)
    inputs = [in_nan(t.images), in_nan(t.weights), in_nan(t.base), in_nan(t.gradient)]
    *arguments, gradient = inputs
    monkeypatch.setattr(importlib.import_module("ffmef.kernels.launch"), "tile", (8, 32, 1))
    largest = 0.0
    for backward in steps:
        with guarded(monkeypatch, inputs) as strayed:
            if backward:
                gradients = kernels.backward(gradient, *arguments, case.scale, *case.needed)
                assert all(needed or g.shape == (0,) for g, needed in zip(gradients, case.needed, strict=True))
                results = [g for g, needed in zip(gradients, case.needed) if needed]
            else:
                results = [kernels.forward(*arguments, case.scale)]
            if strayed():
                return float("inf")
        expected = expected_backward(case) if backward else [expected_forward(case)]
        assert all(result.dtype == case.dtype for result in results)
        allowed = error_allowed(case.dtype, TOLERANCE)
        largest = max([largest, *(relative_error(r, e) / allowed for r, e in zip(results, expected, strict=True))])
    return largest


HALF, BRAIN, DOUBLE = torch.float16, torch.bfloat16, torch.float64
SMALL = {"bands": 1, "scale": 2}
BOTH, FORWARD = (False, True), (False,)
CASES = [
    (Case("triton, three bands, odd", height=13, width=39, images=3), FORWARD),
    (Case("triton, three bands", height=9, width=19), BOTH),
    (Case("triton, two bands, scale 8", height=7, width=21, bands=2, images=1), BOTH),
    (Case("triton, six bands", height=5, width=7, bands=6, scale=64, images=1), FORWARD),
    (Case("triton, no band", height=5, width=36, bands=0, scale=1), BOTH),
    (Case("triton, no band, scale 4", height=9, width=6, bands=0, scale=4), BOTH),
    (Case("triton, many cells", height=2, width=150, **SMALL, images=1), BOTH),
    (Case("triton, one pixel", height=1, width=1), BOTH),
    (Case("triton, one column", height=5, width=1, **SMALL), BOTH),
    (Case("triton, channels and batch", height=4, width=7, channels=2, batch=2, **SMALL), BOTH),
    (Case("triton, float16", height=5, width=8, dtype=HALF, **SMALL), BOTH),
    (Case("triton, bfloat16", height=5, width=8, dtype=BRAIN, **SMALL), BOTH),
    (Case("triton, float64", height=5, width=8, dtype=DOUBLE, **SMALL), BOTH),
    (Case("triton, slices", height=5, width=9, layout="slice", **SMALL), BOTH),
    (Case("triton, transposed", height=5, width=9, layout="transposed", **SMALL), BOTH),
    (Case("triton, expanded", height=5, width=9, layout="expanded", batch=2, **SMALL), BOTH),
    (Case("triton, images only", height=3, width=6, needed=(True, False, False), **SMALL), (True,)),
    (Case("triton, weights only", height=3, width=6, needed=(False, True, False), **SMALL), (True,)),
    (Case("triton, base only", height=3, width=6, needed=(False, False, True), **SMALL), (True,)),
    (Case("triton, no batch", batch=0), BOTH),
]


@inside
@pytest.mark.parametrize(("case", "steps"), CASES, ids=[case.name for case, _ in CASES])
def test_equals_float64_reference(case: Case, steps: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst(present(), case, monkeypatch, steps) <= 1


@inside
def test_public_function_runs_triton_and_differentiates() -> None:
    assert backends()["triton"] is None
    case = Case("triton, public", height=5, width=7, **SMALL)
    t = make_tensors(case)
    leaves = [leaf.requires_grad_() for leaf in (t.images, t.weights, t.base)]
    output = pyramid_fuse(*leaves, scale=case.scale, backend="triton")
    assert relative_error(output.detach(), expected_forward(case)) <= TOLERANCE[case.dtype]
    results = torch.autograd.grad(output, leaves, t.gradient)
    for result, expected in zip(results, expected_backward(case), strict=True):
        assert relative_error(result, expected) <= TOLERANCE[case.dtype]


MUTANTS = [
    Mutant("no mask on the store", "tl.store(target, total * 0.25, mask=inside)", "tl.store(target, total * 0.25)"),
    Mutant("no mask of the image", "value = tl.load(pixels, mask=inside, other=0.0).to(DTYPE)\n        if HAS_BELOW:\n            coarse = below + ((batch * count + n)",
           "value = tl.load(pixels).to(DTYPE)\n        if HAS_BELOW:\n            coarse = below + ((batch * count + n)"),
    Mutant("odd border not repeated", "lower = image + tl.minimum(2 * y + 1, fine_height - 1)[:, None] * image_row",
           "lower = image + (2 * y + 1)[:, None] * image_row"),
    Mutant("wrong tap", "row + 2 * (y % 2) - 1", "row - 2 * (y % 2) + 1"),
    Mutant("rows' share for columns", "c += (d - c) * column_share[None, :]", "c += (d - c) * row_share[:, None]"),
    Mutant("another image's weights", "own = cells + batch * cell_batch + n * cell_image", "own = cells + batch * cell_batch"),
    Mutant("wrong scale", '"FACTOR": scale >> level}', '"FACTOR": scale}'),
    Mutant("border's share lost", "tl.where(far == coarse, 0.25, 0.0)", "tl.where((far == coarse) & (far != near), 0.25, 0.0)", backward=True),
    Mutant("finer band's scale", "                    2 * FACTOR, DTYPE,", "                    FACTOR, DTYPE,", backward=True),
    Mutant("odd border's gradient halved", "tl.where((y == height - 1) & (height % 2 == 1), 1.0, 0.5)", "tl.where(y == -1, 1.0, 0.5)",
           backward=True),
    Mutant("half of a cell's rows", "for k in range(SPAN):", "for k in range(FACTOR):", backward=True),
    Mutant("no bound of cells", "mask=cell < cells_across)", "mask=cell >= 0)", backward=True),
]  # fmt: skip
MUTANT_CASE = Case("triton, mutants", height=7, width=9, bands=1, scale=4)


@inside
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_found(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = plant(mutant, SOURCE, tmp_path)
    assert worst(kernels, MUTANT_CASE, monkeypatch, (mutant.backward,)) > 1
