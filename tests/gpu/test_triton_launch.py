"""How Triton kernels are launched: which tile, through which compiled kernel, and what of it the result depends on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triton_guard import inside, needs_triton

pytestmark = needs_triton


@pytest.mark.parametrize(
    ("text", "meaning"), [("8x64x4", (8, 64, 4)), ("1x128x1", (1, 128, 1)), ("tune", "tune")], ids=lambda v: str(v)
)
def test_environment_names_a_tile(text: str, meaning: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffmef.kernels import launch

    assert launch.asked_tile() is None
    assert launch.fixed_tile((4, 32, 2)) == (4, 32, 2)
    monkeypatch.setenv("FFMEF_TRITON_TILE", text)
    assert launch.asked_tile() == meaning
    assert launch.fixed_tile((4, 32, 2)) == ((4, 32, 2) if meaning == "tune" else meaning)
    with launch.tiled((16, 32, 8)):  # a block of code knows better than the environment
        assert launch.asked_tile() == (16, 32, 8)
    assert launch.asked_tile() == meaning


@pytest.mark.parametrize("text", ("8x64", "8x60x4", "0x64x4", "8x64x64", "512x512x4", "fast", "8x64x-4"))
def test_environment_without_a_tile_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffmef.kernels import launch

    monkeypatch.setenv("FFMEF_TRITON_TILE", text)
    with pytest.raises(ValueError, match=f"FFMEF_TRITON_TILE must be ROWSxCOLUMNSxWARPS.*got '{text}'"):
        launch.asked_tile()


# ---- in a process whose GPU is only compiled for ----


@pytest.mark.slow
def test_launches_without_a_gpu() -> None:
    root = Path(__file__).resolve().parents[2]
    script = root / "tests/support/triton_launches.py"
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FFMEF_TRITON_TILE")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "every form as Triton chooses it" in done.stdout


# ---- in the interpreter ----


@inside
def test_results_do_not_depend_on_the_tile() -> None:
    from ffmef.kernels import adaptive_fuse as kernels
    from ffmef.kernels import launch

    random = torch.Generator().manual_seed(3)
    images = torch.randn(1, 1, 1, 5, 35, generator=random)
    filters = [torch.randn(1, 1, 9, 5, 35, generator=random), torch.randn(1, 1, 1, 3, 18, generator=random)]
    alphas, gradient = torch.tensor([0.7, -1.3]), torch.randn(1, 1, 5, 35, generator=random)
    found = []
    for tile in ((8, 32, 1), (2, 64, 2)):
        with launch.tiled(tile):
            output = kernels.forward(images, filters, alphas, "replicate")
            grads = kernels.backward(gradient, images, filters, alphas, "zeros", True, [1, 1], True)
        found.append([output, grads[0], *grads[1], grads[2]])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
