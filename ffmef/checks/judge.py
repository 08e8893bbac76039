"""Runs problems on a backend and says how far its results are from float64, in units of the tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ffmef.checks import tolerances
from ffmef.checks.problems import FilterProblem, Problem, inputs, predictions
from ffmef.checks.tolerances import SMALLEST, TOLERANCE

if TYPE_CHECKING:
    import torch

    from ffmef.ops.types import Backend


@dataclass
class Tally:
    """What a backend did on the matrix."""

    passed: int = 0
    worst: float = 0.0  # in units of the tolerance
    failures: list[str] = field(default_factory=list)


def results(problem: Problem, device: str, backend: Backend) -> list[torch.Tensor]:
    """Return the output and the gradients of all tensors, on the CPU."""
    import torch

    tensors, gradient = inputs(problem, device)
    leaves = [leaf.detach().requires_grad_() for leaf in tensors]
    output = problem.run(leaves, backend)
    return [
        part.detach().cpu() for part in (output, *torch.autograd.grad(output, leaves, gradient, materialize_grads=True))
    ]


def references(problem: Problem, magnitudes: bool) -> list[torch.Tensor]:
    """Return the same in float64 from plain torch, for the values or for the magnitudes of their terms."""
    import torch

    tensors, gradient = inputs(problem, "cpu")
    change = torch.abs if magnitudes else torch.clone
    leaves = [change(leaf.double()).contiguous().requires_grad_() for leaf in tensors]
    output = problem.define(leaves, magnitudes)
    # Weights without a band do not affect the output.
    found = torch.autograd.grad(output, leaves, change(gradient.double()), allow_unused=True)
    grads = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]
    return [part.detach() for part in (output, *grads)]


def error_of(problem: Problem, found: list[torch.Tensor]) -> float:
    """Return the largest error of any element in units of the tolerance."""
    worst = 0.0
    values, magnitudes = references(problem, False), references(problem, True)
    slack = tolerances.slack(problem.dtype)
    for part, value, magnitude in zip(found, values, magnitudes, strict=True):
        if not bool(part.isfinite().all()):
            return float("inf")
        error = ((part.double() - value).abs() - SMALLEST.get(problem.dtype, 0.0)).clamp_min(0)
        share = (error / magnitude).nan_to_num(nan=0.0, posinf=float("inf"))
        if share.numel():
            worst = max(worst, float(share.max()) / TOLERANCE[problem.dtype] / slack)
    return worst


def check(backend: Backend, device: str, problems: list[Problem]) -> Tally:
    """Run the matrix; a problem passes if its results are right and a second run repeats them."""
    import torch

    tally = Tally()
    for problem in problems:
        try:
            found = results(problem, device, backend)
            error = error_of(problem, found)
            tally.worst = max(tally.worst, error)
            again = results(problem, device, backend)
            if error > 1:
                tally.failures.append(f"{problem}: error {error:.3g} times what is allowed")
            elif not all(map(torch.equal, found, again)):
                tally.failures.append(f"{problem}: another result when run again")
            else:
                tally.passed += 1
        except RuntimeError as failure:
            tally.failures.append(f"{problem}: {str(failure).splitlines()[0]}")
    return tally


def prediction_error(problem: FilterProblem, device: str, backend: Backend) -> float:
    """Return predict_and_fuse's largest error in units of the tolerance; infinity if a second run differs."""
    import torch

    from ffmef.ops import predict_and_fuse, reference

    (images, *hidden, alphas), _ = inputs(problem, "cpu")
    random = torch.Generator().manual_seed(11)
    weight = [torch.randn(k * k, k * k, generator=random, dtype=torch.float64).to(images.dtype) for k in problem.sizes]
    bias = [torch.randn(k * k, generator=random, dtype=torch.float64).to(images.dtype) for k in problem.sizes]

    def run() -> torch.Tensor:
        h, w, b = ([t.to(device) for t in tensors] for tensors in (hidden, weight, bias))
        return predict_and_fuse(
            h, w, b, images.to(device), alphas.to(device), padding_mode=problem.padding, backend=backend
        ).cpu()

    def expected(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        wide = [[change(t.double()) for t in tensors] for tensors in (hidden, weight, bias)]
        filters = [
            torch.einsum("ji,bnihw->bnjhw", w, h) + b.view(1, 1, -1, 1, 1) for h, w, b in zip(*wide, strict=True)
        ]
        return reference.adaptive_fuse(change(images.double()), filters, change(alphas.double()), problem.padding)

    with torch.inference_mode():
        found = run()
        if not bool(found.isfinite().all()) or not torch.equal(found, run()):
            return float("inf")
        error = ((found.double() - expected(torch.clone)).abs() - SMALLEST.get(problem.dtype, 0.0)).clamp_min(0)
        slack = tolerances.slack(problem.dtype)
        return float((error / expected(torch.abs)).nan_to_num(nan=0.0).max()) / TOLERANCE[problem.dtype] / slack


def network_error(height: int, width: int, device: str, backend: Backend) -> float:
    """Return the whole network's largest error in units of the tolerance, against float64 layers on the CPU."""
    import torch

    from ffmef.models import FFMEF
    from ffmef.ops import ffmef_forward

    torch.manual_seed(5)
    model = FFMEF(backend="eager").eval()
    luminance = torch.rand(1, 2, height, width)
    with torch.inference_mode():
        parameters = [p.to(device) for p in model.parameters()]
        found = ffmef_forward(luminance.to(device), parameters, backend=backend).cpu()
        if not torch.equal(found, ffmef_forward(luminance.to(device), parameters, backend=backend).cpu()):
            return float("inf")
        expected = model.double()(luminance.double())
        scale = max(1.0, float(expected.abs().max()))  # random weights may leave the range of pictures
        return float((found - expected).abs().max()) / scale / tolerances.NETWORK


def check_others(backend: Backend, device: str, interpreted: bool) -> tuple[list[str], bool]:
    """Return lines about the other operators that ``backend`` has, and whether one of them failed."""
    checks: list[tuple[str, Callable[[], float]]] = []
    if backend in ("triton", "cuda"):
        for problem in predictions(interpreted):
            checks.append((f"predict_and_fuse {problem}", partial(prediction_error, problem, device, backend)))
    if backend in ("triton", "cuda", "cpu"):
        for height, width in ((3, 5),) if interpreted else ((1, 2), (67, 150), (300, 401)):
            check = partial(network_error, height, width, device, backend)
            checks.append((f"ffmef_forward {height} x {width}", check))
    return judged(checks, "problems of predict_and_fuse and ffmef_forward")


def check_pictures(backend: Backend, device: str) -> tuple[list[str], bool]:
    """Return lines about fusions of pictures, if ``backend`` has the pyramid model's, and whether one failed."""
    if backend not in ("cuda", "cpu"):
        return [], False
    import torch

    from ffmef import models
    from ffmef.checks import pictures
    from ffmef.models.pyramid import PyramidFFMEF

    model = models.load("mef-pyramid").to(device)
    assert isinstance(model, PyramidFFMEF)
    with torch.inference_mode():
        reason = model.why_not_native()
    if reason:
        return [f"  FAILED pictures: {reason}"], True
    checks: list[tuple[str, Callable[[], float]]] = [
        (str(problem), partial(pictures.picture_error, model, problem)) for problem in pictures.problems(device)
    ]
    checks += [(str(fusion), partial(pictures.fusion_error, fusion, device)) for fusion in pictures.fusions()]
    return judged([*checks, ("fuse_many", partial(pictures.stream_error, device))], "fusions of pictures")


def judged(checks: list[tuple[str, Callable[[], float]]], what: str) -> tuple[list[str], bool]:
    """Return lines about named checks, which return errors in units of the tolerance, and whether one failed."""
    failures = []
    for name, error_of_check in checks:
        try:
            error = error_of_check()
            if not error <= 1:
                failures.append(f"{name}: error {error:.3g} times what is allowed, or another result when run again")
        except RuntimeError as failure:
            failures.append(f"{name}: {str(failure).splitlines()[0]}")
    if not checks:
        return [], False
    passed = len(checks) - len(failures)
    lines = [f"  {passed} of {len(checks)} {what} right and repeatable"]
    return lines + [f"  FAILED {failure}" for failure in failures], bool(failures)
