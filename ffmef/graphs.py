"""CUDA graphs for inference: a model's launches are recorded once per shape and replayed by one call.

For a small picture, a network is many short kernels, which the CPU takes longer to enqueue than the GPU to run.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ffmef.models import registry
from ffmef.models.layers import parameters_of

Replay = Callable[[Tensor], Tensor]


class Graphed:
    """Calls a model through CUDA graphs: the first call of a shape records one, later calls replay it.

    Results are those of the model. Parameters may change in place between calls; if they are replaced or moved, or
    the model's ``backend`` or ``octaves`` change, a new graph is recorded. On the CPU, in training mode and if
    gradients are needed, the model is called directly. Each graph keeps the memory of one call, so only the ``most``
    latest are kept.

    Args:
        model: takes one tensor and returns one.
        most: graphs to keep, at least 1.
        record: makes a replay from the model and an input; for tests.
        call: called with the model and the tensor; None calls the model.
        after: calls of a shape that go to the model before one is recorded.
        largest: elements of the largest tensor that is recorded; None means any.

    Raises:
        ValueError: ``most`` is less than 1.

    Example:
        >>> import torch
        >>> from ffmef.models import FFMEF
        >>> fast = Graphed(FFMEF().eval())
        >>> with torch.inference_mode():
        ...     fast(torch.rand(1, 2, 20, 30)).shape  # on the CPU: the model itself
        torch.Size([1, 1, 20, 30])
    """

    def __init__(
        self,
        model: nn.Module,
        most: int = 4,
        record: Callable[[Callable[[Tensor], Tensor], Tensor], Replay] | None = None,
        *,
        call: Callable[[nn.Module, Tensor], Tensor] | None = None,
        after: int = 0,
        largest: int | None = None,
    ) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self.model, self.most, self.after, self.largest = model, most, after, largest
        self.record = record or record_cuda_graph
        self._call = model if call is None else functools.partial(call, model)
        self._replays: OrderedDict[tuple, Replay] = OrderedDict()
        self._seen: OrderedDict[tuple, int] = OrderedDict()  # calls of shapes not recorded yet
        self._lock = threading.Lock()  # calls that replay one graph share its memory

    def __call__(self, tensor: Tensor) -> Tensor:
        too_large = self.largest is not None and tensor.numel() > self.largest
        if too_large or (self.record in (record_cuda_graph, _record_if_possible) and not tensor.is_cuda):
            return self._call(tensor)
        parameters = parameters_of(self.model)
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (tensor, *parameters))
        if self.model.training or needs_grad:
            return self._call(tensor)
        key = (
            tensor.shape, tensor.dtype, tensor.device, getattr(self.model, "backend", None),
            getattr(self.model, "octaves", None), torch.is_inference_mode_enabled(),
            *(parameter.data_ptr() for parameter in parameters),
        )  # fmt: skip
        with self._lock:
            replay = self._replay_of(key, tensor)
            if replay is not None:
                return replay(tensor)
        return self._call(tensor)

    def _replay_of(self, key: tuple, tensor: Tensor) -> Replay | None:
        """Return the replay for calls of this kind, recorded now if it is due, or None."""
        replay = self._replays.pop(key, None)
        if replay is None:
            seen = self._seen.pop(key, 0)
            if seen < self.after:
                self._seen[key] = seen + 1
                while len(self._seen) > 4 * self.most:
                    self._seen.popitem(last=False)
                return None
            replay = self.record(self._call, tensor)
        self._replays[key] = replay
        while len(self._replays) > self.most:
            self._replays.popitem(last=False)
        return replay


class InTurn:
    """Lets uses of one memory follow each other, whichever streams they are on."""

    def __init__(self, *memory: Tensor) -> None:
        self._memory = memory
        self._stream = torch.cuda.current_stream(memory[0].device)
        self._done = torch.cuda.Event()
        self._done.record(self._stream)

    def __enter__(self) -> None:
        stream = torch.cuda.current_stream(self._memory[0].device)
        if stream != self._stream:
            stream.wait_event(self._done)
            for tensor in self._memory:
                tensor.record_stream(stream)  # or it could be used again when this is deleted but not finished there
            self._stream = stream

    def __exit__(self, *_: object) -> None:
        self._done.record(self._stream)


_one_at_a_time = threading.Lock()


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def record_cuda_graph(model: Callable[[Tensor], Tensor], example: Tensor, before: int = 2) -> Replay:
    """Return a replay that runs the model on tensors like ``example`` by one graph, on any stream.

    ``before`` calls, at least 1, compile kernels and choose algorithms, which is not allowed while recording.
    """
    static, graph = example.clone(), torch.cuda.CUDAGraph()
    with _one_at_a_time, torch.cuda.device(example.device):
        current, side = torch.cuda.current_stream(), _recording_stream(example.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(before):
                model(static)
            # Not torch.cuda.graph, which waits for the GPU and empties the caches of its memory and of pinned memory:
            # this call and the next ones would take milliseconds more. Other threads may go on allocating meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                result = model(static)
            finally:
                graph.capture_end()
        current.wait_stream(side)
        turn = InTurn(static)

    def replay(tensor: Tensor) -> Tensor:
        with turn:
            static.copy_(tensor)
            graph.replay()
            return result.clone()  # the next replay overwrites it

    return replay


def _record_if_possible(model: Callable[[Tensor], Tensor], example: Tensor) -> Replay:
    """Record a graph, or return the model if that fails, for example for lack of memory."""
    try:
        try:
            return record_cuda_graph(model, example, before=1)
        except torch.OutOfMemoryError:  # nothing is freed while recording
            torch.cuda.empty_cache()
            return record_cuda_graph(model, example, before=1)
    except RuntimeError as error:
        warnings.warn(f"no CUDA graph was recorded: {str(error).splitlines()[0]}", RuntimeWarning, stacklevel=2)
        return model


_graphed: weakref.WeakKeyDictionary[nn.Module, dict[tuple, Graphed]] = weakref.WeakKeyDictionary()
# Elements above which launches take a small part of the time, and graphs much memory.
LARGEST_LUMINANCE, LARGEST_PICTURES = 1 << 22, 1 << 24


def through_graphs(
    model: Callable[[Tensor], Tensor],
    call: Callable[[nn.Module, Tensor], Tensor] | None = None,
    largest: int = LARGEST_LUMINANCE,
) -> Callable[[Tensor], Tensor]:
    """Return ``model``, or ``call`` with it, behind graphs that are kept as long as the model is.

    The variable ``FFMEF_CUDA_GRAPHS`` decides. Not set: the models of this package are recorded at the second call of
    a shape of at most ``largest`` elements. 1: every module at the first call of every shape. 0: none.
    """
    wish = os.environ.get("FFMEF_CUDA_GRAPHS", "")
    ours = isinstance(model, nn.Module) and registry.of(model) is not None
    if wish == "0" or not isinstance(model, nn.Module) or not (ours or wish == "1"):
        return model if call is None else functools.partial(call, cast(nn.Module, model))
    kept = _graphed.setdefault(model, {})
    if (call, wish) not in kept:
        # A proxy, or the graphs would keep the model that keeps them.
        options: dict = {} if wish == "1" else {"after": 1, "largest": largest, "record": _record_if_possible}
        kept[call, wish] = Graphed(cast(nn.Module, weakref.proxy(model)), call=call, **options)
    return kept[call, wish]
