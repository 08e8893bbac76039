"""Which backends can run an operator here, and which one a call gets."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch

from ffmef import _loader

NAMES = ("reference", "cpu", "triton", "cuda")


def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available():
        return "no GPU is visible to torch (TRITON_INTERPRET=1 runs the kernels in Triton's interpreter)"
    return None


def _cuda_missing() -> str | None:
    if _loader.cuda_missing is not None:
        return _loader.cuda_missing
    if not torch.cuda.is_available():
        return "no GPU is visible to torch"
    return None


def backends() -> dict[str, str | None]:
    """Return every backend's name with None where it can run here, else the reason why it cannot.

    Example:
        >>> import ffmef
        >>> ffmef.ops.backends()["reference"] is None
        True
    """
    return {
        "reference": None,
        "cpu": _loader.cpu_missing,
        "triton": _triton_missing(),
        "cuda": _cuda_missing(),
    }


def check_backend(backend: str | None, device: torch.device) -> None:
    """Raise unless ``backend`` is None or can run tensors of ``device`` here."""
    if backend is None:
        return
    if backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)} or None, got {backend!r}")
    reason = backends()[backend]
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} is not available: {reason}")
    if backend == "cpu" and device.type != "cpu":
        raise RuntimeError(f"backend 'cpu' needs tensors on the CPU, got {device}")
    if backend == "cuda" and device.type != "cuda":
        raise RuntimeError(f"backend 'cuda' needs tensors on a GPU, got {device}")
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"backend 'triton' needs tensors on a GPU, got {device}")


@functools.cache
def warn_of_reference(device: str) -> None:
    """Say once for each kind of device that calls fall back to plain torch."""
    reason = _loader.cpu_missing if device == "cpu" else f"it has no kernels for {device} tensors"
    warnings.warn(f"ffmef runs its plain torch reference, which is slow: {reason}", RuntimeWarning, stacklevel=3)
