"""The training losses, value and gradient of the fused picture: ours against the same in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from benchmarks import harness, plain_losses
from ffmef.losses import GIFLoss, MEFSSIMLoss, Sources

SIZES = {"tiny": (1, 48, 56), "128x128": (2, 128, 128), "256x256": (1, 256, 256), "551x707": (1, 551, 707)}
BASELINE = "plain"


@dataclass(frozen=True)
class Case:
    loss: str
    provider: str
    size: str

    def __str__(self) -> str:
        return f"{self.loss}-{self.size}-{self.provider}"


def cases(mode: str) -> list[Case]:
    # The explicit patches of MEF-SSIM take gigabytes at 551 x 707.
    sizes = {"GIF": ("128x128", "551x707"), "MEF-SSIM": ("128x128", "256x256")}
    if mode == "smoke":
        sizes = dict.fromkeys(sizes, ("tiny",))
    return [Case(loss, provider, size) for loss, forms in FORMS.items() for size in sizes[loss] for provider in forms]


def gif(sources: Sources):
    loss = GIFLoss()
    return lambda fused: loss(fused, sources)[0]


def gif_with_maps(sources: Sources):
    loss = GIFLoss()
    maps = loss.source_maps(sources)
    return lambda fused: loss(fused, sources, maps)[0]


def mef_ssim(sources: Sources):
    loss = MEFSSIMLoss()
    return lambda fused: loss(fused, sources)[0]


FORMS = {
    "GIF": {
        BASELINE: lambda sources: lambda fused: plain_losses.gif(fused, sources),
        "ours": gif,
        "ours, source maps kept": gif_with_maps,
    },
    "MEF-SSIM": {BASELINE: lambda sources: lambda fused: plain_losses.mef_ssim(fused, sources), "ours": mef_ssim},
}


def step(loss, fused: torch.Tensor):
    """Return a callable that gives the loss and its gradient."""

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            value = loss(fused)
            return value, torch.autograd.grad(value, fused)[0]

    return run


@pytest.mark.cases(of=cases)
def test_losses(case, compare, device):
    batch, height, width = SIZES[case.size]
    options = {"generator": harness.generator(0, device), "device": device}
    rgb = torch.rand(batch, 2, 3, height, width, **options)
    for _ in range(2):  # smooth enough to have steep and flat regions
        rgb = torch.nn.functional.avg_pool2d(rgb.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(rgb)
    sources = Sources.from_rgb(rgb)
    fused = (
        sources.luminance.mean(1, keepdim=True) + 0.05 * torch.rand(batch, 1, height, width, **options)
    ).requires_grad_()
    run, baseline = (step(FORMS[case.loss][name](sources), fused) for name in (case.provider, BASELINE))
    exact = Sources(*(None if tensor is None else tensor.double() for tensor in vars(sources).values()))
    value, gradient = step(FORMS[case.loss][BASELINE](exact), fused.detach().double().requires_grad_())()
    own_value, own_gradient = run()
    torch.testing.assert_close(own_value.double(), value, rtol=1e-4, atol=1e-6)
    worst = (own_gradient.double() - gradient).norm() / gradient.norm()
    assert worst < 1e-2, f"the gradient is off by {worst:.2g} from the float64 one"
    compare(
        run,
        subject=f"{case.loss} {case.size}",
        provider=case.provider,
        baseline=None if case.provider == BASELINE else baseline,
        baseline_name=BASELINE,
        batch=batch,
        height=height,
        width=width,
        dtype="float32",
        checked=True,
        title=f"{case.loss} loss and gradient at {height} x {width}, batch {batch}",
    )
