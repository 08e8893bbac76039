"""From 8-bit RGB pictures to the fused one, against what a user would pick instead: OpenCV's Mertens."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from benchmarks import mefb
from benchmarks.methods import METHODS

SIZES = {"tiny": (48, 64), "551x707": mefb.REFERENCE, "12mp": (3000, 4000)}
BASELINE = "Mertens (OpenCV)"


@dataclass(frozen=True)
class Case:
    provider: str
    size: str
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.size}-t{self.threads}-{self.provider}"


def cases(mode: str) -> list[Case]:
    providers = [name for name, method in METHODS.items() if method.kind == "picture"]
    if mode == "smoke":
        return [Case(name, "tiny") for name in providers]
    counts = sorted({1, os.cpu_count()})
    shapes = [("551x707", threads) for threads in counts] + [("12mp", 1)]
    if mode == "full":
        shapes += [("12mp", threads) for threads in counts[1:]]
    return [Case(name, *shape) for shape in shapes for name in providers]


@pytest.mark.cases(of=cases)
def test_pictures(case, compare, device):
    height, width = size = SIZES[case.size]
    pair = mefb.bracket(size)
    run, baseline = (METHODS[name].build(device)(pair) for name in (case.provider, BASELINE))
    fused = run()
    assert fused.shape == pair[0].shape and fused.dtype == pair[0].dtype
    compare(
        run,
        subject=f"pictures {case.size} t{case.threads}",
        provider=case.provider,
        baseline=None if case.provider == BASELINE else baseline,
        baseline_name=BASELINE,
        threads=case.threads,
        clock="wall" if device != "cpu" else None,  # pictures begin and end on the CPU
        batch=1,
        height=height,
        width=width,
        dtype="uint8",
        title=f"From pictures to picture at {height} x {width}, {case.threads} thread{'s' * (case.threads > 1)}",
    )
