"""Lets tensor-like types of torch take over a call of an operator's function, as they do with torch's own functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.overrides import handle_torch_function, has_torch_function

P = ParamSpec("P")
R = TypeVar("R")


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` with torch's protocol ``__torch_function__`` for its tensors, alone or in lists and tuples.

    A ``torch.fx.Proxy`` among them makes the call one node of the traced graph, wherever the function is called from.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors: list = []
        for argument in args:
            if isinstance(argument, (list, tuple)):
                tensors += argument
            else:
                tensors.append(argument)
        if kwargs:
            tensors += [value for value in kwargs.values() if not isinstance(value, str)]
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return call
