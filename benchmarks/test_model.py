"""One pair through the whole network: the release's formulation, ours in each form; cost against size."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from benchmarks import harness, methods
from ffmef import measure
from ffmef.ops._backends import why_not
from ffmef.ops.ffmef_forward import backend_of

SIZES = {
    "tiny": (2, 40, 56),
    "128x128": (2, 128, 128),
    "551x707": (1, 551, 707),
    "1080p": (1, 1080, 1920),
    "12mp": (1, 3000, 4000),
    "24mp": (1, 4000, 6000),
}
EAGER_BYTES = 900  # per pixel, what the eager forms keep at their peak; a case that cannot fit is skipped
BASELINE = "unfold"
TOLERANCE = 1e-4  # absolute, on luminance in [0, 1]


@dataclass(frozen=True)
class Case:
    provider: str
    size: str
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.size}-t{self.threads}-{self.provider}"


def cases(mode: str) -> list[Case]:
    forms = list(FORMS)
    if mode == "smoke":
        return [Case(provider, "tiny") for provider in forms]
    threads = sorted({1, os.cpu_count()})
    if mode == "full":
        return [
            Case(provider, size, count) for size in SIZES if size != "tiny" for count in threads for provider in forms
        ]
    chosen = [Case(provider, "128x128") for provider in forms]
    chosen += [Case(provider, "551x707", count) for count in threads for provider in (BASELINE, "eager", *LIGHT)]
    return chosen + [Case(provider, size) for size in ("1080p", "12mp") for provider in LIGHT]


def compiled(mode: str, device: str) -> torch.nn.Module:
    torch.compiler.reset()
    return torch.compile(methods.model("eager", device=device), backend="eager" if mode == "smoke" else "inductor")


FORMS: dict[str, Callable[[str, str], torch.nn.Module]] = {
    BASELINE: lambda mode, device: methods.model("eager", unfold=True, device=device),
    "eager": lambda mode, device: methods.model("eager", device=device),
    "compiled": compiled,
    "fused": lambda mode, device: methods.model("fused", device=device),
    "pyramid": lambda mode, device: methods.pyramid(device),
}
LIGHT = ("fused", "pyramid")  # forms whose memory allows large pictures


@pytest.mark.cases(of=cases)
def test_model(case, compare, mode, device):
    batch, height, width = SIZES[case.size]
    pixels = batch * height * width
    with_baseline = case.provider != BASELINE and pixels <= (1080 * 1920 if mode == "full" else 551 * 707)
    needed = pixels * (EAGER_BYTES if with_baseline or case.provider not in LIGHT else 300)
    if needed > 0.7 * (measure.available_memory(device) or float("inf")):
        pytest.skip(f"needs about {needed / 2**30:.0f} GiB of free memory")
    if case.provider == "fused" and (reason := why_not("ffmef_forward", backend_of(torch.device(device)))):
        pytest.skip(reason)
    network, release = FORMS[case.provider](mode, device), FORMS[BASELINE](mode, device)
    options = {"generator": harness.generator(0, device), "device": device}
    luminance = torch.rand(batch, 2, height, width, **options)
    # The pyramid is another network, and a compiled one would be compiled again for the corner.
    checked = case.provider != "pyramid" and (case.provider != "compiled" or pixels <= 551 * 707)
    if checked:
        corner = luminance if case.provider == "compiled" else luminance[..., :160, :200]
        exact = release.double()(corner.double()).float()
        torch.testing.assert_close(network(corner), exact, atol=TOLERANCE, rtol=0)
        release.float()
    compare(
        lambda: network(luminance),
        subject=f"model {case.size} t{case.threads}",
        provider=case.provider,
        baseline=(lambda: release(luminance)) if with_baseline else None,
        baseline_name=BASELINE,
        threads=case.threads,
        chart="size",
        batch=batch,
        height=height,
        width=width,
        dtype="float32",
        checked=checked,
        title=f"The network at {height} x {width}, batch {batch}, {case.threads} thread{'s' * (case.threads > 1)}",
    )
