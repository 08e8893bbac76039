"""Loads the native libraries once, and remembers why one is missing."""

from __future__ import annotations

from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent


def _load(name: str, absent: str) -> str | None:
    """Load one library of operators; return None, or the reason why it cannot be used."""
    path = _FOLDER / name
    if not path.is_file():
        return absent
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{name} does not load under torch {torch.__version__}: {error.__cause__ or error}"
    return None


# Reasons, None where the library is loaded. The CPU library also holds the schemas.
cpu_missing = _load("_cpu.so", "the native library was not built (no C++ compiler at install time?)")
if torch.version.cuda is None:
    cuda_missing: str | None = f"torch {torch.__version__} is built without CUDA"
elif cpu_missing is not None:
    cuda_missing = "it needs the CPU library, which holds the schemas"
else:
    cuda_missing = _load("_cuda.so", "the CUDA library was not built (no nvcc at install time?)")
