"""The coarse-pyramid operator: our kernels against the plain torch reference and the floor of reading the images."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch

from benchmarks import harness
from ffmef import measure
from ffmef.ops import pyramid_fuse

SIZES = {"tiny": (33, 47), "551x707": (551, 707), "12mp": (3000, 4000)}
BANDS, SCALE = 3, 8
BASELINE = "reference"


@dataclass(frozen=True)
class Case:
    provider: str
    size: str
    step: str = "forward"
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.step}-{self.size}-t{self.threads}-{self.provider}"


def cases(mode: str) -> list[Case]:
    providers = ("floor", BASELINE, *harness.native_backends())
    if mode == "smoke":
        return [
            Case(name, "tiny", step) for step in ("forward", "both") for name in providers if measurable(name, step)
        ]
    chosen = [
        Case(name, "551x707", step, threads)
        for step in ("forward", "both")
        for threads in sorted({1, os.cpu_count()})
        for name in providers
        if measurable(name, step)
    ]
    return chosen + [Case(name, "12mp") for name in providers]


def measurable(provider: str, step: str) -> bool:
    return provider != "floor" or step == "forward"


def make_run(provider: str, step: str, images: torch.Tensor, weights: torch.Tensor, base: torch.Tensor):
    """Return a callable for one step; "both" ends with the gradients of weights and base."""
    if provider == "floor":
        return lambda: (images.sum(),)
    if step == "forward":
        return lambda: (pyramid_fuse(images, weights, base, scale=SCALE, backend=provider),)
    wanted = weights.requires_grad_(), base.requires_grad_()
    grad = images[:, 0].contiguous()

    def both() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            fused = pyramid_fuse(images, weights, base, scale=SCALE, backend=provider)
            return torch.autograd.grad(fused, wanted, grad)

    return both


@pytest.mark.cases(of=cases)
def test_pyramid_fuse(case, compare, device):
    if reason := harness.unusable(case.provider, device):
        pytest.skip(reason)
    height, width = SIZES[case.size]
    if height * width * 400 > 0.7 * (measure.available_memory(device) or float("inf")):
        pytest.skip(f"needs about {height * width * 400 / 2**30:.0f} GiB of free memory")
    options = {"generator": harness.generator(0, device), "device": device}
    cells = -(-height // SCALE), -(-width // SCALE)
    inputs = [torch.rand(shape, **options) for shape in ((1, 2, height, width), (1, BANDS, 2, *cells), (1, 2, *cells))]
    run, baseline, floor = (make_run(name, case.step, *inputs) for name in (case.provider, BASELINE, "floor"))
    checked = case.provider != "floor" and height * width < 10**6
    if checked:
        exact = make_run(BASELINE, case.step, *(tensor.detach().double() for tensor in inputs))()
        for own, value in zip(run(), exact, strict=True):
            torch.testing.assert_close(own.double(), value, rtol=1e-4, atol=1e-5 * value.abs().max().item())
    planes = {"forward": 3, "both": 3 + 3}[case.step]  # two images in, one out; then the gradient and both images again
    compare(
        run,
        subject=f"pyramid_fuse {case.step}-{case.size}-t{case.threads}",
        provider=case.provider,
        baseline=None if case.provider == BASELINE else baseline,
        baseline_name=BASELINE,
        floor=None if case.provider == "floor" else floor,
        threads=case.threads,
        operator="pyramid_fuse",
        step=case.step,
        batch=1,
        height=height,
        width=width,
        images=2,
        dtype="float32",
        bytes_moved=planes * height * width * 4,
        checked=checked,
    )
