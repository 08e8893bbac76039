"""Inputs of the benchmarks: seeded, and rotated where a GPU's cache could hold them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch

from ffmef import ops
from ffmef.ops._backends import check_device

MIB = 2**20


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def input_copies(bytes_each: int, device: str) -> int:
    """Return how many copies of the inputs to rotate so that a GPU's L2 cache cannot hold them; 1 on the CPU."""
    if device == "cpu":
        return 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, 1 + -(-2 * cache // bytes_each))


def unusable(provider: str, device: str) -> str | None:
    """Return why a backend cannot run tensors of the device here, or None; providers that are no backends can."""
    if provider not in ops.backends():
        return None
    try:
        check_device(provider, torch.device(device))
    except RuntimeError as error:
        return str(error)
    return None


def native_backends() -> list[str]:
    """Return the backends other than the reference that run somewhere on this machine."""
    return [name for name, missing in ops.backends().items() if missing is None and name != "reference"]


def rotating(runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a callable that calls the next of ``runs`` each time."""
    if len(runs) == 1:
        return runs[0]
    cycle = itertools.cycle(runs)
    return lambda: next(cycle)()
