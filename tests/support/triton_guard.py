"""Triton kernels in the interpreter: memory that reveals stray accesses, and planted faults."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from interpreter import INTERPRETED

__all__ = ["INTERPRETED", "Mutant", "error_allowed", "guarded", "in_nan", "inside", "needs_triton", "plant"]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
inside = pytest.mark.interpreter

ZONE = 4096  # elements on both sides of a tensor
SENTINEL = 7777.0  # around outputs, where a NaN written over a NaN would go unseen


def _span(tensor: torch.Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))


def in_nan(tensor: torch.Tensor) -> torch.Tensor:
    """Return an equal tensor of the same strides whose surroundings, and the gaps between its elements, are NaN."""
    memory = torch.full((_span(tensor) + 2 * ZONE,), float("nan"), dtype=tensor.dtype)
    view = memory.as_strided(tensor.shape, tensor.stride(), ZONE)
    if 0 in tensor.stride():
        view.as_strided([1 if s == 0 else n for n, s in zip(tensor.shape, tensor.stride())], tensor.stride()).copy_(
            tensor[tuple(slice(0, 1) if s == 0 else slice(None) for s in tensor.stride())]
        )
    else:
        view.copy_(tensor)
    return view


def error_allowed(dtype: torch.dtype, tolerance: dict[torch.dtype, float]) -> float:
    """Return the relative error allowed here: the interpreter truncates to bfloat16, while GPUs round."""
    return tolerance[dtype] * (2 if dtype == torch.bfloat16 else 1)


@contextmanager
def guarded(monkeypatch: pytest.MonkeyPatch, tensors: list[torch.Tensor]) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether kernels read outside ``tensors`` or wrote outside new ones."""
    with _guarded_outputs(monkeypatch, tensors) as writes, _watched(monkeypatch, tensors) as reads:
        yield lambda: bool(writes() or reads())


@contextmanager
def _guarded_outputs(monkeypatch: pytest.MonkeyPatch, known: list[torch.Tensor]) -> Iterator[Callable[[], int]]:
    """Have new tensors made inside sentinels and added to ``known``; yield a count of the sentinels written over."""
    memories: list[tuple[torch.Tensor, int]] = []

    def new(fill: float, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def make(self: torch.Tensor, *shape: object, dtype: torch.dtype | None = None, **rest: object) -> torch.Tensor:
            if rest:  # the interpreter's own
                return original(self, *shape, dtype=dtype, **rest)
            sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
            count = torch.Size(sizes).numel()
            memory = torch.full((count + 2 * ZONE,), SENTINEL, dtype=dtype or self.dtype)
            memory[ZONE : ZONE + count] = fill
            memories.append((memory, count))
            known.append(memory[ZONE : ZONE + count].view(tuple(sizes)))
            return known[-1]

        return make

    def strays() -> int:
        total = 0
        for memory, count in memories:
            sentinel = torch.tensor(SENTINEL, dtype=memory.dtype)
            total += int((memory[:ZONE] != sentinel).sum() + (memory[ZONE + count :] != sentinel).sum())
        return total

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", new(float("nan"), torch.Tensor.new_empty))
        patch.setattr(torch.Tensor, "new_zeros", new(0.0, torch.Tensor.new_zeros))
        yield strays


@contextmanager
def _watched(monkeypatch: pytest.MonkeyPatch, tensors: list[torch.Tensor]) -> Iterator[Callable[[], int]]:
    """Watch every address that the interpreter reads; yield a function that counts those outside ``tensors``.

    A value read outside may be masked out later and so change no result; on a GPU it may still end the program.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    original, strays = InterpreterBuilder.create_masked_load, [0]

    def watched_load(self: object, pointers: object, mask: object, *rest: object, **more: object) -> object:
        ends = [(t.data_ptr(), t.data_ptr() + t.element_size() * _span(t)) for t in tensors if t.numel()]
        extents = np.array(ends, dtype=np.uint64)
        addresses = pointers.data[mask.data.astype(bool)]
        known = (addresses[:, None] >= extents[:, 0]) & (addresses[:, None] < extents[:, 1])
        strays[0] += int((~known.any(1)).sum())
        return original(self, pointers, mask, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_masked_load", watched_load)
        yield lambda: strays[0]


@dataclass(frozen=True)
class Mutant:
    """A fault planted in a copy of the kernels."""

    name: str
    right: str
    wrong: str
    backward: bool = False


def plant(mutant: Mutant, source: Path, folder: Path) -> ModuleType:
    """Return the module of kernels with the fault in it."""
    text = source.read_text()
    assert text.count(mutant.right) == 1, "the line that the fault replaces has changed"
    path = folder / "changed_kernels.py"
    path.write_text(text.replace(mutant.right, mutant.wrong))
    spec = importlib.util.spec_from_file_location("changed_kernels", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
