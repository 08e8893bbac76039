"""Memory bandwidth of the machine in this run: the roof under which the operator's speed is drawn."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks import harness


def cases(mode: str) -> list[str]:
    return [f"{kind}-{threads}" for kind in ("copy", "read") for threads in sorted({1, os.cpu_count()})]


@pytest.mark.cases(of=cases)
def test_bandwidth(case, compare, mode, device):
    kind, threads = case.split("-")
    elements = (1 if mode == "smoke" else 64) * harness.MIB // 4 * 4  # four times the last cache of a large processor
    source, target = torch.ones(elements, device=device), torch.empty(elements, device=device)
    run = (lambda: target.copy_(source)) if kind == "copy" else source.sum
    moved = harness.nbytes([source, target] if kind == "copy" else [source])
    record = compare(run, subject="bandwidth", provider=kind, threads=int(threads), memory=False, bytes_moved=moved)
    record["bytes_per_s"] = moved / record["median_s"]
    assert torch.equal(target, source) if kind == "copy" else source.sum() == elements
