"""Models behind CUDA graphs: what is recorded anew and what is replayed. A GPU is not needed to see that."""

from __future__ import annotations

import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from ffmef import graphs
from ffmef.models import PyramidFFMEF


class Doubling(nn.Module):
    backend: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, values: Tensor) -> Tensor:
        self.calls += 1
        return self.factor * values


class Recorder:
    """Records as a graph does: one input and one result, whose memory every replay uses."""

    def __init__(self) -> None:
        self.recorded: list[torch.Size] = []

    def __call__(self, model: nn.Module, example: Tensor) -> graphs.Replay:
        self.recorded.append(example.shape)
        static, result = example.clone(), torch.empty_like(example)

        def replay(tensor: Tensor) -> Tensor:
            static.copy_(tensor)
            result.copy_(model.factor * static)
            return result.clone()

        return replay


def test_each_shape_is_recorded_once_and_the_latest_are_kept() -> None:
    recorder = Recorder()
    model = graphs.Graphed(Doubling().eval(), most=2, record=recorder)
    with torch.inference_mode():
        first, second = model(torch.ones(3)), model(torch.full((3,), 5.0))
        assert (first.tolist(), second.tolist()) == ([2.0] * 3, [10.0] * 3)  # a later call leaves a result alone
        model(torch.ones(4))
        model(torch.ones(3))
        assert recorder.recorded == [torch.Size([3]), torch.Size([4])]
        model(torch.ones(5))  # the third; four's is the oldest
        model(torch.ones(3))
        assert len(recorder.recorded) == 3
        model(torch.ones(4))
        assert len(recorder.recorded) == 4


def test_parameters_may_change_in_place_and_are_recorded_again_when_replaced() -> None:
    recorder = Recorder()
    module = Doubling().eval()
    model = graphs.Graphed(module, record=recorder)
    with torch.inference_mode():
        model(torch.ones(3))
        module.factor.data.fill_(3.0)
        assert model(torch.ones(3)).tolist() == [3.0] * 3
        assert len(recorder.recorded) == 1
        module.factor = nn.Parameter(torch.tensor(4.0))
        assert model(torch.ones(3)).tolist() == [4.0] * 3
        assert len(recorder.recorded) == 2
        module.backend = "cuda"
        model(torch.ones(3))
        assert len(recorder.recorded) == 3


def test_gradients_training_and_the_cpu_take_the_model_itself() -> None:
    recorder = Recorder()
    module = Doubling().eval()
    model = graphs.Graphed(module, record=recorder)
    model(torch.ones(3)).sum().backward()
    assert module.factor.grad.item() == 3.0
    with torch.inference_mode():
        module.train()
        model(torch.ones(3))
        module.eval()
        graphs.Graphed(module)(torch.ones(3))
    assert (module.calls, recorder.recorded) == (3, [])


def test_switch_wraps_modules_alone_and_keeps_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Doubling().eval()
    monkeypatch.delenv("FFMEF_CUDA_GRAPHS", raising=False)
    assert graphs.through_graphs(module) is module  # not one of this package, whose recording is known to work
    monkeypatch.setenv("FFMEF_CUDA_GRAPHS", "1")
    assert graphs.through_graphs(len) is len
    wrapped = graphs.through_graphs(module)
    assert isinstance(wrapped, graphs.Graphed)
    assert graphs.through_graphs(module) is wrapped
    with torch.inference_mode():
        assert wrapped(torch.ones(2)).tolist() == [2.0, 2.0]
    alive = weakref.ref(module)
    del module, wrapped
    gc.collect()
    assert alive() is None


def test_by_default_models_of_the_package_are_recorded_at_the_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.delenv("FFMEF_CUDA_GRAPHS", raising=False)
    model = PyramidFFMEF().eval()
    default = graphs.through_graphs(model)
    assert (default.after, default.largest) == (1, 2**22)
    assert graphs.through_graphs(model) is default
    stacked = graphs.through_graphs(model, _sum_of_both)
    assert stacked is not default
    monkeypatch.setenv("FFMEF_CUDA_GRAPHS", "0")
    assert graphs.through_graphs(model) is model
    assert graphs.through_graphs(model, _sum_of_both)(torch.ones(1)) == 2
    module = Doubling().eval()
    late = graphs.Graphed(module, record=recorder, after=1, largest=4)
    with torch.inference_mode():
        late(torch.ones(3)), late(torch.ones(4))
        assert (module.calls, recorder.recorded) == (2, [])
        late(torch.ones(3)), late(torch.ones(3))
        assert (module.calls, recorder.recorded) == (2, [torch.Size([3])])
        late(torch.ones(5)), late(torch.ones(5))  # too large
        assert (module.calls, recorder.recorded) == (4, [torch.Size([3])])


def _sum_of_both(model: nn.Module, values: Tensor) -> Tensor:
    return values + 1


def test_a_model_that_cannot_be_recorded_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []

    def refuse(model, example, before):
        raise torch.OutOfMemoryError("full") if not freed else RuntimeError("out of memory\nand more")

    monkeypatch.setattr(graphs, "record_cuda_graph", refuse)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    module = Doubling().eval()
    with pytest.warns(RuntimeWarning, match="no CUDA graph was recorded: out of memory$"):
        replay = graphs._record_if_possible(module, torch.ones(2))
    assert replay(torch.ones(2)).tolist() == [2.0, 2.0] and freed == [True]


def test_threads_take_turns_with_the_memory_of_a_graph() -> None:
    def slowly(model: nn.Module, example: Tensor) -> graphs.Replay:
        static = example.clone()

        def replay(tensor: Tensor) -> Tensor:
            static.copy_(tensor)
            time.sleep(1e-4)  # another thread's turn
            return model.factor * static

        return replay

    model = graphs.Graphed(Doubling().eval(), record=slowly)

    def doubled(number: int) -> bool:
        with torch.inference_mode():
            return all(model(torch.full((9,), float(number))).eq(2 * number).all() for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(doubled, range(8)))


class Stream:
    """Of a GPU that is not there: what it was given."""

    def __init__(self) -> None:
        self.given: list[object] = []

    def wait_event(self, event: Event) -> None:
        self.given.append(event.recorded)


class Event:
    def record(self, stream: Stream) -> None:
        stream.given.append(self)
        self.recorded = (stream, len(stream.given))  # what lies before it


class Memory:
    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def record_stream(self, stream: Stream) -> None:
        self.streams.append(stream)


def test_streams_take_turns_with_the_memory_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, memory = Stream(), Stream(), Memory()
    current = [first]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    turn = graphs.InTurn(memory)

    def use(stream: Stream) -> None:
        current[0] = stream
        with turn:
            stream.given.append("use")

    use(first)
    assert len(first.given) == 3 and memory.streams == []  # a stream need not wait for itself
    use(second)
    assert second.given[0] == (first, 3) and memory.streams == [second]
    use(second)
    use(first)
    assert second.given.count("use") == 2 and first.given[3] == (second, len(second.given))
    assert memory.streams == [second, first]


def test_at_least_one_graph_is_kept() -> None:
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        graphs.Graphed(Doubling(), most=0)
