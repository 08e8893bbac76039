"""Memory of a training step in a process of its own, as its user sees it, and what the trainer changes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import ffmef
from ffmef.training.memory import return_large_blocks

ROOT = Path(ffmef.__file__).parent.parent

PEAK = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
import ffmef
from ffmef.losses import GIFLoss, Sources
from ffmef.training.memory import return_large_blocks
model = ffmef.models.FFMEF(backend=sys.argv[1])
if model.backend == "recompute":
    assert return_large_blocks()
loss = GIFLoss()
def step(h, w):
    sources = Sources.from_rgb(torch.rand(1, 2, 3, h, w))
    loss(model(sources.luminance), sources)[0].backward()
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
step(8, 8)
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of importing
before = memory("VmRSS:")
step(400, 500)
print((memory("VmHWM:") - before) / (400 * 500))
"""

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="needs glibc on Linux"
)


@needs_glibc
def test_recomputing_takes_at_most_half_of_the_process_memory():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    peaks = []
    for kind in ("eager", "recompute"):
        command = [sys.executable, "-c", PEAK, kind]
        run = subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True, text=True)
        peaks.append(float(run.stdout))
    print(f"bytes per pixel: eager {peaks[0]:.0f}, recomputed {peaks[1]:.0f}")
    assert peaks[1] <= peaks[0] / 2


def test_a_missing_setting_is_no_error(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert return_large_blocks() is False


def test_the_command_asks_for_it_where_the_model_recomputes(monkeypatch, tmp_path):
    from ffmef import cli

    asked = []
    monkeypatch.setattr("ffmef.training.memory.return_large_blocks", lambda: asked.append(True))
    missing = str(tmp_path / "missing")
    for options, expected in (("{}", []), ('{"backend": "recompute"}', [True])):
        assert cli.main(["train", "--data", missing, "-o", str(tmp_path / "run"), "--model-options", options]) == 2
        assert asked == expected
