"""Models without values, to learn what their parameters are called and how large they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode


class _NoRandomStart(TorchFunctionMode):
    """Leaves out random numbers: on the meta device they would import torch's compiler, which takes seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        starts = func in (torch.Tensor.normal_, torch.Tensor.uniform_)
        if starts or getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the meta device inside the block: they have shapes, but no values and take no memory.

    Example:
        >>> with shapes_only():
        ...     torch.nn.Linear(1000, 1000).weight.is_meta
        True
    """
    with torch.device("meta"), _NoRandomStart():
        yield
