"""The prediction head's last convolution and the fusion in one step, for training: time and memory against storing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from benchmarks import harness
from ffmef.ops import adaptive_fuse, predict_and_fuse

SIZES = {"tiny": (24, 30), "320x320": (320, 320), "551x707": (551, 707)}
KERNEL_SIZES = (1, 3, 5)
BASELINE = "filters stored"


@dataclass(frozen=True)
class Case:
    provider: str
    size: str
    step: str

    def __str__(self) -> str:
        return f"{self.step}-{self.size}-{self.provider}"


def cases(mode: str) -> list[Case]:
    sizes = {"smoke": ("tiny",), "quick": ("551x707",), "full": ("320x320", "551x707")}[mode]
    steps = ("forward", "both")
    return [Case(name, size, step) for size in sizes for step in steps for name in (BASELINE, "ours")]


def stored(hidden, weight, bias, images, alphas) -> torch.Tensor:
    """Predict all filters, then fuse by them."""
    filters = []
    for maps, matrix, offset in zip(hidden, weight, bias, strict=True):
        taps = torch.nn.functional.conv2d(maps.flatten(0, 1), matrix[..., None, None], offset)
        filters.append(taps.unflatten(0, maps.shape[:2]))
    return adaptive_fuse(images, filters, alphas)


def make_run(provider: str, step: str, arguments: tuple, grad: torch.Tensor) -> Callable:
    function = stored if provider == BASELINE else predict_and_fuse
    hidden, weight, bias, _, alphas = arguments
    wanted = [*hidden, *weight, *bias, alphas]

    def both() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(function(*arguments), wanted, grad)

    return both if step == "both" else lambda: (function(*arguments),)


def make_arguments(height: int, width: int, dtype: torch.dtype, device: str) -> tuple:
    random = harness.generator(0, device)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=random, device=device).to(dtype).requires_grad_()

    taps = [size * size for size in KERNEL_SIZES]
    hidden = [draw(1, 2, count, height, width) for count in taps]
    alphas = torch.tensor([0.6, 0.3, 0.1], device=device, dtype=dtype).requires_grad_()
    images = draw(1, 2, height, width).detach()
    return hidden, [draw(count, count) for count in taps], [draw(count) for count in taps], images, alphas


@pytest.mark.cases(of=cases)
def test_predict_and_fuse(case, compare, device):
    height, width = SIZES[case.size]
    arguments = make_arguments(height, width, torch.float32, device)
    grad = torch.rand(1, height, width, generator=harness.generator(1, device), device=device)
    run, baseline = (make_run(name, case.step, arguments, grad) for name in (case.provider, BASELINE))
    exact = make_run(BASELINE, case.step, make_arguments(height, width, torch.float64, device), grad.double())()
    for own, value in zip(run(), exact, strict=True):
        torch.testing.assert_close(own.double(), value, rtol=1e-3, atol=1e-5 * value.abs().max().item())
    del exact
    compare(
        run,
        subject=f"predict_and_fuse {case.step}-{case.size}",
        provider=case.provider,
        baseline=None if case.provider == BASELINE else baseline,
        baseline_name=BASELINE,
        batch=1,
        height=height,
        width=width,
        images=2,
        dtype="float32",
        checked=True,
        title=f"predict_and_fuse at {height} x {width}, {'forward and backward' if case.step == 'both' else 'forward'}",
    )
