"""Image fusion by predicted filters: a fused operator, the FFMEF networks, their losses, metrics and tools.

Importing builds nothing, prints nothing and touches no GPU.
"""

from __future__ import annotations

import importlib

from ffmef import ops
from ffmef.errors import InputError
from ffmef.version import __version__

_LAZY_MODULES = ("data", "evaluation", "imaging", "losses", "metrics", "models", "nn", "training")

__all__ = ["InputError", "__version__", "fuse", "ops", *_LAZY_MODULES]


def __getattr__(name: str):
    if name in _LAZY_MODULES:
        return importlib.import_module(f"ffmef.{name}")
    if name == "fuse":
        from ffmef.pipeline import fuse

        return fuse
    raise AttributeError(f"module 'ffmef' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
