"""Convolutions of few channels as the network has them, forward and backward: ours against torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from benchmarks import harness
from ffmef.ops.thin_convolution import thin_convolution

SHAPES = {"4-4-3": (4, 4, 3), "4-25-5": (4, 25, 5), "25-25-1": (25, 25, 1)}  # channels in, channels out, side
BASELINE = "conv2d"


@dataclass(frozen=True)
class Case:
    provider: str
    shape: str
    step: str
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.step}-{self.shape}-{self.size[0]}x{self.size[1]}-{self.provider}"


def cases(mode: str) -> list[Case]:
    size = (20, 30) if mode == "smoke" else (320, 320)
    steps = ("forward", "both")
    return [Case(name, shape, step, size) for step in steps for shape in SHAPES for name in (BASELINE, "ours")]


def make_run(provider: str, step: str, tensors: list[torch.Tensor], grad: torch.Tensor) -> Callable:
    def forward() -> torch.Tensor:
        pictures, weight, bias = tensors
        if provider == BASELINE:
            return F.conv2d(pictures, weight, bias, padding=weight.shape[-1] // 2)
        return thin_convolution(pictures, weight, bias)

    def both() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(forward(), tensors, grad)

    return both if step == "both" else lambda: (forward(),)


@pytest.mark.cases(of=cases)
def test_thin_convolution(case, compare, device):
    entering, leaving, side = SHAPES[case.shape]
    height, width = case.size
    options = {"generator": harness.generator(0, device), "device": device}
    shapes = (4, entering, height, width), (leaving, entering, side, side), (leaving,), (4, leaving, height, width)
    *tensors, grad = (torch.randn(shape, **options) for shape in shapes)
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    run, baseline = (make_run(name, case.step, tensors, grad) for name in (case.provider, BASELINE))
    expected = make_run(BASELINE, case.step, exact, grad.double())()
    for own, value in zip(run(), expected, strict=True):
        torch.testing.assert_close(own.double(), value, rtol=1e-4, atol=1e-5 * value.abs().max().item())
    compare(
        run,
        subject=f"thin_convolution {case.step}-{case.shape}-{height}x{width}",
        provider=case.provider,
        baseline=None if case.provider == BASELINE else baseline,
        baseline_name=BASELINE,
        batch=4,
        height=height,
        width=width,
        dtype="float32",
        checked=True,
        title=f"Convolution {side} x {side}, {entering} to {leaving} channels, {height} x {width}, {case.step}",
    )
