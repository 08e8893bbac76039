"""The dispatcher's namespace ``ffmef``: schemas from the native library, or without it the same ones from here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from ffmef import _loader
from ffmef.ops._backends import warn_of_reference

library = torch.library.Library("ffmef", "FRAGMENT")

# Asked once: torch 2.11's compiler cannot trace the question.
_KINDS = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla", torch._C._get_privateuse1_backend_name())
_AUTOCASTS = frozenset(kind for kind in _KINDS if torch.amp.is_autocast_available(kind))


PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def define(schema: str) -> None:
    """Define an operator unless the native library already does: ``name(arguments) -> results``."""
    if _loader.cpu_missing is not None:
        library.define(schema, tags=torch.Tag.pt2_compliant_tag)


def implement(name: str, function: Callable, key: str, *, with_keyset: bool = False) -> None:
    """Register ``function`` as the kernel of ``ffmef::name`` for a dispatch key such as ``"CPU"``."""
    library.impl(name, function, key, with_keyset=with_keyset)


def fallback(name: str, function: Callable) -> None:
    """Register ``function``, in plain torch, for every device without a kernel of ``ffmef::name``; it says so once."""

    def run(*arguments):
        warn_of_reference(_first_tensor(arguments).device.type)
        return function(*arguments)

    implement(name, run, "CompositeExplicitAutograd")


def _first_tensor(arguments) -> Tensor:
    first = arguments[0]
    return first if isinstance(first, Tensor) else _first_tensor(first)


def operator(name: str):
    """Return ``torch.ops.ffmef.name.default``."""
    return getattr(torch.ops.ffmef, name).default


# Operator to what its part of autograd does with the operator's arguments.
direct_autograd: dict[torch._ops.OpOverload, Callable] = {}


def _are_plain(tensors: list[Tensor]) -> bool:
    """Return whether nothing comes before autograd, such as tracing, autocast or another type of tensors."""
    return (
        torch._C._get_tracing_state() is None
        and not autocasts(tensors[0].device)
        and all(type(t) in PLAIN_TYPES and not torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)
    )


def call(op, tensors: list[Tensor], *arguments):
    """Call ``op`` without the dispatcher's part of autograd where nothing watches the dispatcher.

    These operators' part of autograd is in Python, so going through it takes a third of a small call's time.
    """
    if (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    ):
        return op(*arguments)
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors):
        function = direct_autograd.get(op)
        return op(*arguments) if function is None or not _are_plain(tensors) else function(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def autocasts(device: torch.device) -> bool:
    """Return whether autocast is on for tensors of ``device``; it does not exist for every kind of device."""
    return device.type in _AUTOCASTS and torch.is_autocast_enabled(device.type)


def autograd_inside():
    """Return a guard under which a kernel, which runs below autograd, may itself use it."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    above = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    return torch._C._ForceDispatchKeyGuard(included, excluded - keys - above)


@contextlib.contextmanager
def plain_tensors():
    """Make tensors that may be kept for other calls: outside inference mode and all transforms of torch.func."""
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        yield


def forward_mode_inside():
    """Return a guard under which the tangent of a function has tangents of its own, in nested forward mode.

    torch switches them off there, and nested derivatives would be wrong (pytorch/pytorch#197867).
    """
    return forward_ad._set_fwd_grad_enabled(True)


def flop_counters() -> list:
    """Return the instances of ``torch.utils.flop_counter.FlopCounterMode`` that are counting now."""
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() == 0:
        return []
    modes = (getattr(mode, "counter", None) for mode in _get_current_dispatch_mode_stack())
    return [counter for counter in modes if isinstance(counter, module.FlopCounterMode)]


def refuse_derivatives(name: str, instead: str, *, counted: Callable | None = None) -> None:
    """Make derivatives of ``ffmef::name`` errors, in forward mode too, where torch would return zeros.

    Args:
        name: of the operator.
        instead: what to do for derivatives.
        counted: the same in torch's operators; runs while a ``FlopCounterMode`` counts.
    """
    op = operator(name)

    class Refusal(torch.autograd.Function):
        @staticmethod
        def forward(ctx, run, *tensors):
            result = run()
            return tuple(result) if isinstance(result, list) else result  # autograd does not take lists

        @staticmethod
        def backward(ctx, *grads):
            raise NotImplementedError(f"ffmef::{name} has no derivatives: {instead}")

        jvp = backward

    def autograd(keyset, *arguments):
        def run():
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

        if forward_ad._current_level >= 0 or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            result = Refusal.apply(run, *tree_leaves(arguments))
            return list(result) if op._schema.returns[0].type.kind() == "ListType" else result
        if counted is not None and flop_counters():
            return counted(*arguments)
        return run()

    implement(name, autograd, "Autograd", with_keyset=True)
