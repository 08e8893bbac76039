"""What a CUDA graph does, without a GPU: records the operators of a call and repeats them at the same addresses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that make the host wait, or copy from its memory, which a stream cannot do while it is captured.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique2", "_unique2", "equal", "lift_fresh", "bincount"}


class Recording(TorchDispatchMode):
    """Runs operators and keeps each with its arguments and results.

    Raises:
        RuntimeError: an operator could not be captured on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._opname in WAITING:
            raise RuntimeError(f"{func} cannot be captured")
        results = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        given = {
            leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        if func._schema.is_mutable:
            self._calls.append(lambda: func(*args, **kwargs))
        elif any(tensor.untyped_storage().data_ptr() not in given for tensor in tensors):  # no view

            def again() -> None:
                leaves = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
                for old, new in zip(tensors, leaves, strict=True):
                    old.detach().copy_(new)

            self._calls.append(again)
        return results

    @torch.no_grad()
    def replay(self) -> None:
        for call in self._calls:
            call()


def record(run: Callable) -> tuple[object, Callable[[], None]]:
    """Stand in for ``Graphs._record``: return the call's result, and what repeats the call in place."""
    with Recording() as recording:
        result = run()
    return result, recording.replay
