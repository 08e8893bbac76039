"""Which backends have kernels for an operator, why a backend cannot run given tensors, and what a call falls back to.

Each operator's file declares its kernels once, with :func:`declare`. All other code asks :func:`why_not`.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ffmef import _loader

NAMES = ("reference", "cpu", "triton", "cuda")


@dataclass(frozen=True)
class Kernels:
    """What the kernels of one operator on one backend need beyond the rules of the operator itself.

    Attributes:
        entry: the operator of the native library that they need; a library built before it existed lacks it.
        float32: tensors must be float32.
        autocast: the kernels may run while autocast is on.
        derivatives: the kernels have derivatives; otherwise nothing may ask for any.
        transforms: the kernels may run in forward mode and under torch.func.
        sizes: a function of the call's sizes, by name, that returns why no kernel exists for them, or None.
        limits: ``sizes`` in words.
        size_names: the arguments of ``sizes``.
        stale: whether the native library lacks ``entry``. :func:`declare` sets this and ``size_names``.
    """

    entry: str | None = None
    float32: bool = False
    autocast: bool = True
    derivatives: bool = True
    transforms: bool = True
    sizes: Callable[..., str | None] | None = None
    limits: str = ""
    size_names: tuple[str, ...] = ()
    stale: bool = False


_declared: dict[str, dict[str, Kernels]] = {}


def declare(operator: str, **kernels: Kernels) -> None:
    """Say which backends have kernels for an operator: ``declare("norm_activation", cpu=Kernels(float32=True))``."""

    def complete(one: Kernels) -> Kernels:
        names = () if one.sizes is None else tuple(inspect.signature(one.sizes).parameters)
        stale = one.entry is not None and _loader.cpu_missing is None and not hasattr(torch.ops.ffmef, one.entry)
        return replace(one, size_names=names, stale=stale)

    _declared[operator] = {name: complete(one) for name, one in kernels.items()}


def declared() -> dict[str, dict[str, Kernels]]:
    """Return every operator's kernels by backend."""
    return _declared


def why_not(operator: str, backend: str, **arguments: Any) -> str | None:
    """Return why a backend cannot run an operator here and now on these arguments, or None.

    Args:
        operator: its name in ``torch.ops.ffmef``.
        backend: "reference", "cpu", "triton" or "cuda".
        arguments: the call's arguments, by name: tensors, lists of tensors, and what :attr:`Kernels.sizes` asks for.
            Without any, the answer is about this machine alone.

    Example:
        >>> import torch, ffmef
        >>> why_not("ffmef_forward", "cpu", channels=6, kernel_sizes=(1, 3, 5))
        'channels must be 4, 8 or 16, got 6'
        >>> why_not("norm_activation", "cuda")
        'norm_activation has no kernel for it'
    """
    kernels = _declared[operator].get(backend)
    if kernels is None:
        return f"{operator} has no kernel for it"
    tensors: list[tuple[str, Tensor]] = []
    for name, value in arguments.items():
        values = value if isinstance(value, list) else [value]
        tensors += [(name, one) for one in values if isinstance(one, Tensor)]
    numbers = {name: arguments[name] for name in kernels.size_names if name in arguments}
    if kernels.sizes is not None and numbers and (reason := kernels.sizes(**numbers)) is not None:
        return reason
    on_gpu = any(tensor.device.type == "cuda" for _, tensor in tensors)
    return (
        _unavailable(backend, on_gpu)
        or (kernels.stale and "the native library is older than this package: build it again")
        or _unsuited(kernels, backend, tensors)
    ) or None


def _unsuited(kernels: Kernels, backend: str, tensors: list[tuple[str, Tensor]]) -> str | None:
    """Return why kernels that this machine has cannot run the tensors now, or None."""
    right = None  # a network has 145 parameters, and every call asks about all of them
    for name, tensor in tensors:
        device = tensor.device
        if device != right:
            if (place := _place(backend, device)) is not None:
                return f"{name} must be on {place}, got {device}"
            if right is not None:
                return f"{name} must be on {right} like {tensors[0][0]}, got {device}"
            right = device
        if kernels.float32 and tensor.dtype != torch.float32:
            return f"{name} must be float32, got {str(tensor.dtype)[6:]}"
    if not kernels.derivatives and torch.is_grad_enabled() and any(tensor.requires_grad for _, tensor in tensors):
        return "gradients are enabled (torch.inference_mode() or torch.no_grad() switches them off)"
    if tensors and not (kernels.derivatives and kernels.transforms):
        transformed = torch._C._are_functorch_transforms_active()
        if forward_ad._current_level >= 0 or transformed:
            return "forward-mode derivatives or torch.func transforms are enabled"
    if tensors and not kernels.autocast and torch.is_autocast_enabled(tensors[0][1].device.type):
        return "autocast is enabled, and the kernels compute in float32"
    return None


def _place(backend: str, device: torch.device) -> str | None:
    """Return where a backend's tensors must be if ``device`` is not there, or None."""
    if backend == "cpu" and device.type != "cpu":
        return "the CPU"
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if backend in ("cuda", "triton") and device.type != "cuda" and not interpreted:
        return "a GPU"
    return None


def _unavailable(backend: str, on_gpu: bool = False) -> str | None:
    """Return what this machine lacks for a backend, or None; ``on_gpu``: tensors prove that there is a GPU."""
    if backend == "cpu":
        return _loader.cpu_missing
    if backend == "triton":
        if not has_triton():
            return "triton is not installed"
        if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
            return "no GPU is visible to torch (TRITON_INTERPRET=1 runs the kernels in Triton's interpreter)"
    if backend == "cuda":
        if _loader.cuda_missing is not None:
            return _loader.cuda_missing
        if not on_gpu and not torch.cuda.is_available():
            return "no GPU is visible to torch"
    return None


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def backends() -> dict[str, str | None]:
    """Return every backend's name with None where it can run here, else the reason why it cannot.

    Example:
        >>> import ffmef
        >>> ffmef.ops.backends()["reference"] is None
        True
    """
    return {name: _unavailable(name) for name in NAMES}


def check_name(backend: str | None) -> None:
    """Raise ValueError unless ``backend`` is a backend's name or None."""
    if backend is not None and backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)} or None, got {backend!r}")


def check_device(backend: str | None, device: torch.device) -> None:
    """Raise unless ``backend`` is None or can run operators on tensors of ``device`` here."""
    check_name(backend)
    if backend is None:
        return
    reason = _unavailable(backend)
    if reason is None and (place := _place(backend, device)) is not None:
        reason = f"tensors must be on {place}, got {device}"
    _raise(backend, reason)


def check_backend(operator: str, backend: str | None, **arguments: Any) -> None:
    """Raise unless ``backend`` is None or can run the operator on these arguments, as :func:`why_not` says."""
    check_name(backend)
    if backend is not None:
        _raise(backend, why_not(operator, backend, **arguments))


def _raise(backend: str, reason: str | None) -> None:
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} is not available: {reason}")


@functools.cache
def warn_of_reference(device: str) -> None:
    """Say once for each kind of device that calls fall back to plain torch."""
    reason = _loader.cpu_missing if device == "cpu" else f"it has no kernels for {device} tensors"
    warnings.warn(f"ffmef runs its plain torch reference, which is slow: {reason}", RuntimeWarning, stacklevel=3)
