"""What the GPU kernels need of a GPU, compiled for every architecture without one, against tests/gpu/gpu_budget.json."""

from __future__ import annotations

import importlib.util

import pytest

import budgets
from budgets import check_usage, cuda, triton_script

BUDGET = {name: row for name, row in budgets.BUDGET.items() if not cuda.is_pyramid(name)}


# Kernels whose vectors are one pixel in float64, and so the same as those without vectors.
ONE_VECTOR = ("predict_and_fuse_tiled<double, 4>",)
FLOAT32 = {name: budget for name, budget in BUDGET.items() if "<float" in name}


def check(usages: dict[str, cuda.Usage], budgets: dict[str, dict[str, float]]) -> None:
    assert sorted(usages) == sorted(budgets), "kernels and budget differ; run scripts/gpu_budget.py --all --update"
    for name, usage in usages.items():
        check_usage(name, usage)


@pytest.mark.slow
@pytest.mark.skipif(cuda.missing() is not None, reason=str(cuda.missing()))
@pytest.mark.parametrize("architecture", cuda.ARCHITECTURES)
def test_cuda_kernels_keep_their_budget(architecture: int) -> None:
    check(cuda.measure(architecture), FLOAT32)


@pytest.mark.slow
@pytest.mark.skipif(cuda.missing() is not None, reason=str(cuda.missing()))
def test_other_dtypes_keep_their_budget() -> None:
    # One architecture here: all of them, as scripts/gpu_budget.py --all does, take minutes.
    check(cuda.measure(80, flags=()), BUDGET)


def test_budget_demands_wide_loads_of_the_kernels_that_have_them() -> None:
    # One load a tap of a row, for the sizes 1, 3 (unrolled), 5 and 7: 1 + 9 + 5 + 7.
    for name in ("fuse_tiled<float, 4, 1>", "fuse_tiled<float, 4, 4>", "filters_gradient_tiled<float, 4, 1>"):
        assert BUDGET[name]["wide_loads"] >= 22
    assert max(row["registers"] for row in FLOAT32.values()) <= 128
    assert max(row["registers"] for row in BUDGET.values()) <= 168
    assert BUDGET["fuse_tiled<float, 4, 1>"]["occupancy"] >= 0.37
    # Four dtypes of every kernel; half precision has filters_gradient_tiled<T, 1, 1> in place of the shifted one.
    of_float32_alone = sum(name.startswith("filters_gradient_wide") for name in FLOAT32)
    assert len(BUDGET) == 4 * len(FLOAT32) - len(ONE_VECTOR) - 3 * of_float32_alone
    # Hidden maps are read 16 bytes at a time, and before the map that is used.
    assert BUDGET["predict_and_fuse_tiled<float, 4>"]["wide_loads"] >= 2 * 4


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("architecture", (75, 120))
def test_triton_kernels_compile_without_local_memory(architecture: int) -> None:
    for name, (operator, constants) in triton_script.KERNELS.items():
        usage = triton_script.compile_kernel(name, architecture)
        assert usage["stack"] == 0, f"{name} uses local memory: {usage}"
        # predict_and_fuse's holds a 5 x 5 neighbourhood: 208 on sm_75.
        assert usage["registers"] <= (208 if name == "level_kernel" else 192), f"{name}: {usage}"
        if name in ("forward_kernel", "forward_kernel of zeros"):
            # The first tap of 1 x 1 and a row of each other filter.
            assert usage["wide_loads"] >= 1 + 3 + 5, f"{name}: {usage}"
            assert usage["registers"] <= 160, f"{name}: {usage}"
        # Two kernels of the network write sums alone, a pair of numbers a tile or channel.
        if name != "norm_kernel" and constants.get("STORE", True):
            assert usage["wide_stores"] >= 1, f"{name}: {usage}"
        if operator == "ffmef_forward" and "C" in constants and name.startswith("convolution"):
            assert usage["wide_stores"] >= constants["C"], f"{name}: {usage}"
