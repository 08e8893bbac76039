"""What pyramid_fuse's GPU kernels need of a GPU, compiled without one, against tests/gpu/gpu_budget.json."""

from __future__ import annotations

import importlib.util

import pytest

import budgets
from budgets import check_usage, cuda, triton_script

BUDGET = {name: row for name, row in budgets.BUDGET.items() if cuda.is_pyramid(name)}


@pytest.mark.slow
@pytest.mark.skipif(cuda.missing() is not None, reason=str(cuda.missing()))
@pytest.mark.parametrize("architecture", cuda.ARCHITECTURES)
def test_cuda_kernels_keep_their_budget(architecture: int) -> None:
    usages = cuda.measure(architecture, operators=("pyramid_fuse",))
    rule = "kernels and budget differ; run scripts/gpu_budget.py --operator pyramid_fuse --update"
    assert sorted(usages) == sorted(BUDGET), rule
    for name, usage in usages.items():
        check_usage(name, usage)


def test_budget_demands_wide_accesses_of_the_kernels_that_have_them() -> None:
    for name, row in BUDGET.items():
        vectors = "true" in name
        # Four rows of a patch: the thread's own, and one of the margin.
        assert row["wide_loads"] == (8 if vectors and "images_gradient" not in name else 0), name
        assert row["wide_stores"] == (4 if vectors and "weights_gradient" not in name else 0), name
        assert row["registers"] <= 128 and row["shared"] <= 32 << 10, (
            name
        )  # two blocks even of the smallest GPU's 64 KiB


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_kernels_compile_without_local_memory() -> None:
    for name in triton_script.PYRAMID_KERNELS:
        usage = triton_script.compile_kernel(name, 75)
        assert usage["stack"] == 0, f"{name} uses local memory: {usage}"
        assert usage["registers"] <= 255, f"{name}: {usage}"
        if not name.startswith("weights_gradient_kernel"):  # its results are a few cells
            assert usage["wide_stores"] >= 1, f"{name}: {usage}"
