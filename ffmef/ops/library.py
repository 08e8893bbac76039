"""The dispatcher's namespace ``ffmef``: schemas from the native library, or the same ones from here without it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ffmef import _loader

library = torch.library.Library("ffmef", "FRAGMENT")


def define(schema: str) -> None:
    """Define an operator that the native library defines too, when it has one: ``name(arguments) -> results``."""
    if _loader.cpu_missing is not None:
        library.define(schema)


def implement(name: str, function, key: str) -> None:
    """Register ``function`` as the kernel of ``ffmef::name`` for a dispatch key such as ``"CPU"``."""
    library.impl(name, function, key)


def operator(name: str):
    """Return ``torch.ops.ffmef.name.default``."""
    return getattr(torch.ops.ffmef, name).default


def carries_tangent(*tensors: Tensor) -> bool:
    """Return whether a tensor is differentiated forward, for which torch would give zeros at operators like ours."""
    if torch.compiler.is_compiling():
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
