"""Repeats the computation of gradients on a GPU as CUDA graphs: one launch in place of a thousand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MOST = 64  # graphs of one run; steps of further shapes run as they are
_TOLERANCE = 1e-2  # of gradients, relative to their norm: some of cuDNN's sums depend on the order of additions

Result = tuple[list[str], Tensor]  # names and values


@dataclass(frozen=True)
class _Captured:
    inputs: list[Tensor]
    names: list[str]
    values: Tensor
    gradients: list[Tensor | None]
    replay: Callable[[], None]


class Graphs:
    """Calls a function that fills the gradients of a network, and captures it for each shape that comes twice.

    A step of FFMEF launches some 730 small kernels, for which the CPU needs three times as long as the GPU for their
    work. A graph launches them all at once. It holds the addresses of its tensors: inputs are copied to where they were
    at the capture, and gradients appear where they were then.

    The second step of a shape computes, captures and replays, and compares both results. Where they differ or capturing
    fails, all further steps run as they are, after one warning.

    Args:
        compute: takes tensors and options, sets the gradients of all parameters anew and returns the names and values
            (V,) of losses. Nothing but the tensors may differ between calls of the same shapes and options.
        parameters: of the network.
        active: False never captures.
    """

    def __init__(self, compute: Callable[..., Result], parameters: Sequence[Tensor], *, active: bool):
        self._compute, self._parameters, self.active = compute, list(parameters), active
        self._captured: dict[tuple, _Captured | None] = {}
        self._pool: Any = None
        self._count = 0

    def __call__(self, inputs: Sequence[Tensor], *options: Hashable) -> Result:
        """Return what ``compute(inputs, *options)`` does, and leave its gradients in the parameters."""
        captured = self._find(inputs, options) if self.active else None
        if captured is None:
            return self._compute(inputs, *options)
        for place, given in zip(captured.inputs, inputs, strict=True):
            place.copy_(given, non_blocking=True)
        captured.replay()
        for parameter, gradient in zip(self._parameters, captured.gradients, strict=True):
            parameter.grad = gradient
        return captured.names, captured.values.clone()  # the next replay overwrites it

    def _find(self, inputs: Sequence[Tensor], options: tuple[Hashable, ...]) -> _Captured | None:
        """Return the graph of these shapes and options; None if there is none and none is made now."""
        key = options, *((tuple(one.shape), one.dtype) for one in inputs)
        if key not in self._captured:
            self._captured[key] = None
        elif self._captured[key] is None and self._count < MOST:
            self._captured[key] = self._checked(inputs, options)
            self._count += 1
        return self._captured.get(key)

    def _checked(self, inputs: Sequence[Tensor], options: tuple[Hashable, ...]) -> _Captured | None:
        """Return a graph that computes what ``compute`` does, or None."""
        _, expected = self._compute(inputs, *options)  # its own errors are no errors of capturing
        gradients = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        try:
            captured = self._capture(inputs, options)
            captured.replay()
            _compare(captured, expected, gradients)
        except RuntimeError as error:
            self.active = False
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            log.warning("steps run without CUDA graphs, which may be slower: %s", reason)
            return None
        return captured

    def _capture(self, inputs: Sequence[Tensor], options: tuple[Hashable, ...]) -> _Captured:
        static = [one.clone() for one in inputs]
        for parameter in self._parameters:
            parameter.grad = None  # so that the graph allocates gradients, and every replay sets them
        (names, values), replay = self._record(lambda: self._compute(static, *options))
        return _Captured(static, names, values, [parameter.grad for parameter in self._parameters], replay)

    def _record(self, run: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Capture a call that runs on the GPU; return its result, and what repeats it in place."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Replays follow each other, so all graphs may share the memory of what lives within one.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        self._pool = graph.pool()
        return result, graph.replay


def _compare(captured: _Captured, values: Tensor, gradients: Sequence[Tensor | None]) -> None:
    """Raise RuntimeError if a graph has computed anything else."""
    pairs = [(captured.values, values)]
    for own, other in zip(captured.gradients, gradients, strict=True):
        if (own is None) != (other is None):
            raise RuntimeError("a captured step does not reach the same parameters")
        if own is not None and other is not None:
            pairs.append((own, other))
    norms = [torch.stack([(own - other).norm(), other.norm()]) for own, other in pairs]
    distance, size = torch.stack(norms).double().T.tolist()
    # Gradients that are 0 but for rounding, as of biases before a norm, are judged by the others' size.
    largest = max(size[1:], default=0.0)
    for apart, whole in zip(distance, [size[0], *(one + 1e-2 * largest for one in size[1:])], strict=True):
        if apart > _TOLERANCE * whole:  # false for a loss that is no number, which the trainer reports
            raise RuntimeError(f"a captured step gave other results, by {apart:.2g} of {whole:.2g}")
