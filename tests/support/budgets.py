"""The scripts that measure what GPU kernels need, as modules."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cuda = load_script("gpu_budget")
triton_script = load_script("triton_budget")
BUDGET: dict[str, dict[str, float]] = json.loads(cuda.BUDGET.read_text())


def check_usage(name: str, usage: cuda.Usage) -> None:
    """Assert that a compiled kernel keeps to its row of the budget, and everything in registers and shared memory."""
    assert usage.stack == usage.spills == usage.local == 0, f"{name} uses local memory: {usage}"
    if (budget := BUDGET.get(name)) is None:
        return
    assert usage.registers <= budget["registers"], f"{name}: {usage.registers} registers"
    assert usage.wide_loads >= budget["wide_loads"], f"{name}: {usage.wide_loads} loads of 16 bytes"
    assert usage.wide_stores >= budget["wide_stores"], f"{name}: {usage.wide_stores} stores of 16 bytes"
    assert usage.shared <= budget["shared"], f"{name}: {usage.shared} bytes of shared memory"
    assert usage.occupancy >= budget["occupancy"], f"{name}: occupancy {usage.occupancy}"
