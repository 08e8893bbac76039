"""CUDA graphs for inference: the launches of a model are recorded once for each shape and replayed by one call.

A small picture's network is many short kernels; enqueueing them takes the CPU longer than running them takes the GPU.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

Replay = Callable[[Tensor], Tensor]


class Graphed:
    """Calls a model through CUDA graphs: the first call of a shape records one, later calls replay it.

    Results are those of the model. Parameters may change in place between calls; if they are replaced or moved, or
    the model's ``backend`` changes, a new graph is recorded. On the CPU, in training mode and where gradients are
    needed, the model is called directly. Each graph keeps the memory of one call, so only the ``most`` latest are kept.

    Args:
        model: takes one tensor and returns one.
        most: graphs to keep, at least 1.
        record: makes a replay from the model and an input; for tests.

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

    def __init__(self, model: nn.Module, most: int = 4, record: Callable[[nn.Module, Tensor], Replay] | None = None):
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self.model, self.most = model, most
        self.record = record or record_cuda_graph
        self._replays: OrderedDict[tuple, Replay] = OrderedDict()

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.record is record_cuda_graph and not tensor.is_cuda:
            return self.model(tensor)
        parameters = list(self.model.parameters())
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (tensor, *parameters))
        if self.model.training or needs_grad:
            return self.model(tensor)
        key = (
            tensor.shape, tensor.dtype, tensor.device, getattr(self.model, "backend", None),
            torch.is_inference_mode_enabled(),
            *(parameter.data_ptr() for parameter in parameters),
        )  # fmt: skip
        replay = self._replays.pop(key, None)
        if replay is None:
            replay = self.record(self.model, tensor)
        self._replays[key] = replay
        while len(self._replays) > self.most:
            self._replays.popitem(last=False)
        return replay(tensor)


def record_cuda_graph(model: nn.Module, example: Tensor) -> Replay:
    """Return what runs the model on tensors like ``example`` by replaying one graph."""
    static = example.clone()
    side = torch.cuda.Stream(example.device)
    side.wait_stream(torch.cuda.current_stream(example.device))
    with torch.cuda.stream(side):
        for _ in range(2):  # compiles kernels and chooses algorithms, which a recording may not
            model(static)
    torch.cuda.current_stream(example.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(example.device), torch.cuda.graph(graph):
        result = model(static)

    def replay(tensor: Tensor) -> Tensor:
        static.copy_(tensor)
        graph.replay()
        return result.clone()  # the next replay writes over it

    return replay


_graphed: weakref.WeakKeyDictionary[nn.Module, Graphed] = weakref.WeakKeyDictionary()


def through_graphs(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the model behind graphs that are kept as long as it is, where ``FFMEF_CUDA_GRAPHS=1`` asks for them."""
    if os.environ.get("FFMEF_CUDA_GRAPHS") != "1" or not isinstance(model, nn.Module):
        return model
    if model not in _graphed:
        # A proxy, or the graphs would keep the model that keeps them.
        _graphed[model] = Graphed(weakref.proxy(model))
    return _graphed[model]
