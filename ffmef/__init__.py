"""Image fusion by predicted filters: a fused operator, the FFMEF networks, their losses, metrics and tools.

Importing builds nothing, prints nothing, touches no GPU and does not load torch: modules are loaded on first use.
To call ``torch.ops.ffmef`` directly, import :mod:`ffmef.ops` first: it registers the operators.
"""

from __future__ import annotations

import importlib

from ffmef.errors import InputError
from ffmef.version import __version__

TYPE_CHECKING = False  # type checkers know the name; importing typing would take most of this module's time
if TYPE_CHECKING:
    from typing import Any

    from ffmef import (
        adjust,
        data,
        deghost,
        evaluation,
        faults,
        focus,
        glare,
        graphs,
        imaging,
        losses,
        metrics,
        models,
        nn,
        onnx,
        ops,
        training,
    )
    from ffmef.pipeline import fuse, fuse_many

_LAZY_MODULES = (
    "adjust", "data", "deghost", "evaluation", "faults", "focus", "glare", "graphs", "imaging", "losses", "metrics",
    "models", "nn", "onnx", "ops", "training",
)  # fmt: skip

__all__ = ["InputError", "__version__", "fuse", "fuse_many", *_LAZY_MODULES]


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"ffmef.{name}")
    if name in ("fuse", "fuse_many"):
        return getattr(importlib.import_module("ffmef.pipeline"), name)
    raise AttributeError(f"module 'ffmef' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
