"""The Triton kernel of predict_and_fuse in Triton's interpreter, through the public function and in guarded memory."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ffmef.ops import predict_and_fuse
from gpu_cases import TOLERANCE
from predict_and_fuse_cases import Case, expected, make_tensors, two_steps
from problems import relative_error
from triton_guard import INTERPRETED, Mutant, error_allowed, guarded, in_nan, inside, needs_triton, plant

SOURCE = Path(__file__).resolve().parents[2] / "ffmef/kernels/predict_and_fuse.py"
pytestmark = needs_triton


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        from ffmef.kernels import launch

        monkeypatch.setattr(launch, "tile", (8, 16, 1))


def guarded_error(case: Case, monkeypatch: pytest.MonkeyPatch) -> float:
    """Run a case through the public function; return its error in units of what is allowed, infinity after a stray access."""
    t = make_tensors(case)
    t.alphas = t.alphas.contiguous()  # as the kernel takes them, so that it reads these
    held = t.changed(in_nan)
    inputs = [*held.hidden, *held.weight, *held.bias, held.images, held.alphas]
    with guarded(monkeypatch, inputs) as strayed:
        result = predict_and_fuse(
            held.hidden, held.weight, held.bias, held.images, held.alphas, padding_mode=case.padding,
            backend="triton",
        )  # fmt: skip
        if strayed():
            return float("inf")
    allowed = error_allowed(case.dtype, TOLERANCE)
    return relative_error(result, expected(case)) / allowed


HALF, BRAIN, DOUBLE = torch.float16, torch.bfloat16, torch.float64
CASES = [
    Case("triton, zeros", height=11, width=24, batch=2, sizes=(1, 3)),
    Case("triton, five taps across", height=5, width=16),
    Case("triton, replicate", height=7, width=13, padding="replicate", sizes=(3,)),
    Case("triton, reflect", height=3, width=16, padding="reflect", sizes=(7, 1), maps=(3, 9)),
    Case("triton, smaller than the filter", height=2, width=3, padding="reflect", sizes=(5, 7), maps=(2, 1)),
    Case("triton, one pixel", height=1, width=1, padding="reflect", sizes=(3,)),
    Case("triton, nine taps across", height=5, width=9, sizes=(9,), maps=(7,), padding="replicate", images=1),
    Case("triton, three channels", height=5, width=9, channels=3, images=3, sizes=(1, 3), maps=(8, 15)),
    Case("triton, float16", height=5, width=16, dtype=HALF, sizes=(1, 3)),
    Case("triton, bfloat16", height=5, width=16, dtype=BRAIN, channels=2, sizes=(3,)),
    Case("triton, float64", height=5, width=16, dtype=DOUBLE, sizes=(1, 3)),
    Case("triton, six levels of float16", height=3, width=8, dtype=HALF, sizes=(1, 3, 1, 1, 3, 1)),
    Case("triton, slices", height=5, width=9, layout="slice", sizes=(1, 3)),
    Case("triton, transposed", height=5, width=9, layout="transposed", channels=2, sizes=(3,)),
    Case("triton, expanded", height=5, width=9, layout="expanded", batch=3, sizes=(1, 3)),
    Case("triton, no batch", batch=0),
]


@inside
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_float64_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guarded_error(case, monkeypatch) <= 1


@inside
def test_derivatives_are_the_reference_s() -> None:
    case = Case("triton, derivatives", height=3, width=5, sizes=(1, 3), maps=(2, 3), padding="reflect", dtype=DOUBLE)
    t = make_tensors(case)
    leaves = [leaf.requires_grad_() for leaf in (*t.hidden, *t.weight, *t.bias, t.images, t.alphas)]
    output = predict_and_fuse(
        t.hidden, t.weight, t.bias, t.images, t.alphas, padding_mode=case.padding, backend="triton"
    )
    gradient = torch.randn(output.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    first = torch.autograd.grad(output, leaves, gradient, create_graph=True)
    wanted = torch.autograd.grad(two_steps(t, case.padding), leaves, gradient, create_graph=True)
    for one, other in zip(first, wanted, strict=True):
        torch.testing.assert_close(one, other)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    for one, other in zip(second, torch.autograd.grad(sum(g.square().sum() for g in wanted), leaves), strict=True):
        torch.testing.assert_close(one, other)


@inside
def test_one_gradient_alone() -> None:
    t = make_tensors(Case("triton, one gradient", height=3, width=5, sizes=(3,), maps=(2,), dtype=DOUBLE))
    t.bias[0].requires_grad_()
    output = predict_and_fuse(t.hidden, t.weight, t.bias, t.images, t.alphas, backend="triton")
    (found,) = torch.autograd.grad(output.square().sum(), t.bias)
    (wanted,) = torch.autograd.grad(two_steps(t, "zeros").square().sum(), t.bias)
    torch.testing.assert_close(found, wanted)


MUTANTS = [
    Mutant("no mask on the store", "tl.store(target, total.to(output.dtype.element_ty), mask=inside)",
           "tl.store(target, total.to(output.dtype.element_ty))"),
    Mutant("no mask of the maps", "mask=(map_number < maps)[:, None, None] & inside[None, :, :]",
           "mask=(map_number < GROUP * 9)[:, None, None] & inside[None, :, :]"),
    Mutant("no mask of the weights", "mask=map_number < maps, other=0.0)\n        offset",
           "mask=map_number < maps + 1, other=0.0)\n        offset"),
    Mutant("no bias", "mask=map_number == maps, other=0.0)", "mask=map_number == maps + 1, other=0.0)"),
    Mutant("flipped taps", "y + tap // SIZE - SIZE // 2", "y - tap // SIZE + SIZE // 2"),
    Mutant("weights transposed", "weight + tap * maps + map_number", "weight + tap + map_number * (SIZE * SIZE)"),
    Mutant("the first image's maps for all", "+ n * hidden_image", "+ 0 * n * hidden_image"),
    Mutant("the first level's alpha", '"alpha": alphas[l:]', '"alpha": alphas[0:]'),
    Mutant("later levels replace the result", '"ADD": l > 0', '"ADD": False'),
]  # fmt: skip
MUTANT_CASE = Case("triton, mutants", height=4, width=11, sizes=(1, 3), maps=(4, 8), padding="reflect")


@inside
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_found(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: ModuleType = plant(mutant, SOURCE, tmp_path)
    import_module("ffmef.kernels.predict_and_fuse")  # so that it is there to be replaced
    monkeypatch.setitem(sys.modules, "ffmef.kernels.predict_and_fuse", changed)
    monkeypatch.setattr("ffmef.kernels.predict_and_fuse", changed)
    assert guarded_error(MUTANT_CASE, monkeypatch) > 1
