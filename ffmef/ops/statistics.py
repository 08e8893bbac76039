"""What the native library computes for metrics: operators on float64 tensors, without derivatives."""

from __future__ import annotations

from ffmef.ops._backends import Kernels, declare, why_not

NAMES = ("phase_congruency", "spectral_filter", "window_moments")


def declare_all() -> None:
    for name in NAMES:
        declare(name, cpu=Kernels(name, derivatives=False))


def is_native(name: str) -> bool:
    """Return whether the native library offers this operator."""
    return why_not(name, "cpu") is None
