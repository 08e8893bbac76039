"""One training step, from RGB pictures to updated weights: the release's formulation against ours.

"eager" has the fused operator, "trainer" is what ``ffmef train`` does, "recompute" also keeps no activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from benchmarks import harness, methods, plain_losses
from ffmef.losses import GIFLoss, Sources

SIZES = {"tiny": (1, 24, 32), "128x128": (2, 128, 128), "320x320": (2, 320, 320), "551x707": (1, 551, 707)}
BASELINE = "unfold"


@dataclass(frozen=True)
class Case:
    provider: str
    size: str

    def __str__(self) -> str:
        return f"{self.size}-{self.provider}"


def cases(mode: str) -> list[Case]:
    sizes = {"smoke": ["tiny"], "quick": ["128x128", "320x320"], "full": ["128x128", "320x320", "551x707"]}[mode]
    providers = [BASELINE, "eager", "trainer", "trainer, recompute"]
    if mode == "full":  # compiling forward and backward takes minutes
        providers.append("eager, compiled")
    return [Case(provider, size) for size in sizes for provider in providers]


def make_loss(provider: str) -> Callable[[torch.Tensor, Sources], torch.Tensor]:
    if provider == BASELINE:
        return plain_losses.gif
    loss = GIFLoss()
    return lambda fused, sources: loss(fused, sources)[0]


def make_step(provider: str, rgb: torch.Tensor, device: str) -> tuple[torch.nn.Module, Callable]:
    """Return the network and a callable that trains it by one step and returns the loss."""
    network = methods.model("eager", unfold=provider == BASELINE, device=device).train().requires_grad_()
    forward = network
    trainer = provider.startswith("trainer")
    if trainer:
        network.backend = "recompute" if provider.endswith("recompute") else "native"
    if provider == "eager, compiled":
        torch.compiler.reset()
        forward = torch.compile(network)
    loss = make_loss(provider)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=trainer)

    def step() -> torch.Tensor:
        with torch.enable_grad():
            sources = Sources.from_rgb(rgb)
            value = loss(forward(sources.luminance), sources)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
        optimizer.step()
        return value.detach()

    return network, step


@pytest.mark.cases(of=cases)
def test_training_step(case, compare, device):
    batch, height, width = SIZES[case.size]
    rgb = torch.rand(batch, 2, 3, height, width, generator=harness.generator(0, device), device=device)
    network, run = make_step(case.provider, rgb, device)
    reference, baseline = make_step(BASELINE, rgb, device)
    torch.testing.assert_close(run(), baseline(), rtol=1e-4, atol=1e-5)
    for (name, own), other in zip(network.named_parameters(), reference.parameters(), strict=True):
        distance = (own.grad - other.grad).norm()
        assert distance <= 1e-2 * other.grad.norm() + 1e-6, f"the gradient of {name} is off by {distance:.2g}"
    compare(
        run,
        subject=f"training step {case.size}",
        provider=case.provider,
        baseline=None if case.provider == BASELINE else baseline,
        baseline_name=BASELINE,
        batch=batch,
        height=height,
        width=width,
        dtype="float32",
        checked=True,
        title=f"One training step (AdamW, GIF loss) at {height} x {width}, batch {batch}",
    )
