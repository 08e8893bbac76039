"""What the GPU kernels need of a GPU, compiled for every architecture without one, against tests/gpu_budget.json."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cuda = load_script("gpu_budget")
triton_script = load_script("triton_budget")
BUDGET = json.loads(cuda.BUDGET.read_text())


@pytest.mark.slow
@pytest.mark.skipif(cuda.missing() is not None, reason=str(cuda.missing()))
@pytest.mark.parametrize("architecture", cuda.ARCHITECTURES)
def test_cuda_kernels_keep_their_budget(architecture: int) -> None:
    usages = cuda.measure(architecture)
    assert sorted(usages) == sorted(BUDGET), "kernels and budget differ; run scripts/gpu_budget.py --update"
    for name, usage in usages.items():
        budget = BUDGET[name]
        assert usage.stack == usage.spills == usage.local == 0, f"{name} uses local memory: {usage}"
        assert usage.registers <= budget["registers"], f"{name}: {usage.registers} registers"
        assert usage.wide_loads >= budget["wide_loads"], f"{name}: {usage.wide_loads} loads of 16 bytes"
        assert usage.wide_stores >= budget["wide_stores"], f"{name}: {usage.wide_stores} stores of 16 bytes"
        assert usage.shared <= budget["shared"], f"{name}: {usage.shared} bytes of shared memory"
        assert usage.occupancy >= budget["occupancy"], f"{name}: occupancy {usage.occupancy}"


def test_budget_demands_wide_loads_of_the_kernels_that_have_them() -> None:
    # One load a tap of a row, for the sizes 1, 3 (unrolled), 5 and 7: 1 + 9 + 5 + 7.
    for name in ("fuse_tiled<float, 4, 1>", "fuse_tiled<float, 4, 4>", "filters_gradient_tiled<float, 4, 1>"):
        assert BUDGET[name]["wide_loads"] >= 22
    assert max(row["registers"] for row in BUDGET.values()) <= 128
    assert BUDGET["fuse_tiled<float, 4, 1>"]["occupancy"] >= 0.37


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("architecture", (75, 120))
def test_triton_kernels_compile_without_local_memory(architecture: int) -> None:
    for name in triton_script.KERNELS:
        usage = triton_script.compile_kernel(name, architecture)
        assert usage["stack"] == 0, f"{name} uses local memory: {usage}"
        assert usage["registers"] <= 192, f"{name}: {usage}"
        if name != "images_gradient_kernel":  # a gather is shifted by a pixel at each tap
            assert usage["wide_loads"] >= 35 * (name == "forward_kernel"), f"{name}: {usage}"
        assert usage["wide_stores"] >= 1, f"{name}: {usage}"
