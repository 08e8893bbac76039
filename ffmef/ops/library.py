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


def native_missing(name: str) -> str | None:
    """Return why the native library does not offer ``ffmef::name``, or None."""
    if _loader.cpu_missing is None and not hasattr(torch.ops.ffmef, name):
        return "the native library is older than this package: build it again"
    return _loader.cpu_missing


def not_plain_float32(**tensors: Tensor) -> str | None:
    """Return why native kernels of float32 alone cannot run the tensors, or None."""
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return f"{name} must be float32 on the CPU, got {str(tensor.dtype)[6:]} on {tensor.device}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is enabled, and the kernels compute in float32"
    return None


def operator(name: str):
    """Return ``torch.ops.ffmef.name.default``."""
    return getattr(torch.ops.ffmef, name).default


def carries_tangent(*tensors: Tensor) -> bool:
    """Return whether a tensor is differentiated forward, for which torch would give zeros at operators like ours."""
    if torch.compiler.is_compiling():
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


@torch.compiler.assume_constant_result
def autocast_available(device_type: str) -> bool:
    """Return ``torch.amp.is_autocast_available``, which torch 2.11's compiler cannot trace."""
    return torch.amp.is_autocast_available(device_type)
