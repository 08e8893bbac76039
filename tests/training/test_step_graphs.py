"""Steps as CUDA graphs: what is captured, when, and that replays train as single operators do.

Without a GPU, ``support/capture.py`` records the operators of a step and repeats them at the same addresses, as a graph
would. What Python computed at the capture stays as it was, so a step that depends on anything else is found.
"""

import csv
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from capture import record

pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

from ffmef.training import graphs
from ffmef.training.config import Config
from ffmef.training.graphs import Graphs
from ffmef.training.trainer import Trainer

FFMEF = {"model_options": {"channels": 2, "kernel_sizes": [1, 3]}}
PYRAMID = {"model": "pyramid", "model_options": {"channels": [4, 4], "stem": 4}, "overlap": 9, "consistency": 2.0}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    light = np.random.default_rng(0).random((6, 60, 64, 3)) * np.linspace(0.1, 1, 64)[:, None]
    for number, scene in enumerate(light):
        (folder / f"s{number}").mkdir()
        for name, gain in (("A", 0.3), ("B", 2.5)):
            pixels = (np.clip(scene * gain, 0, 1) ** 0.5 * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"s{number}" / f"{name}.png")
    return folder


@pytest.fixture
def recorded(monkeypatch):
    """Capture on the CPU; count captures and replays."""
    counts = {"captured": 0, "replayed": 0}

    def recording(self, run):
        result, replay = record(run)
        counts["captured"] += 1

        def counted():
            counts["replayed"] += 1
            replay()

        return result, counted

    monkeypatch.setattr(Graphs, "_record", recording)
    monkeypatch.setattr(Trainer, "_captures", lambda self: self.config.graphs)
    return counts


def both(folder, **settings):
    """Train step by step and by graphs; return both losses and weights, and the number of steps."""
    found = []
    for graphs_, name in ((False, "steps"), (True, "graphs")):
        shared = {"accelerator": "cpu", "threads": 1, "clip_norm": 1.0, "ema": 0.9, "learning_rate": 5e-3, "size": 48}
        trainer = Trainer(Config(**{**shared, **settings, "graphs": graphs_}), folder / name)
        trainer.run(progress=False)
        state = load_file(folder / name / "weights.safetensors")
        with (folder / name / "losses.csv").open() as file:
            found.append((list(csv.DictReader(file)), state))
    return *found, trainer.step


@pytest.mark.parametrize("loss", ["gif", "picture", "mef-ssim", "pmgi"])
def test_replays_train_as_single_steps_do(pairs, tmp_path, recorded, loss):
    steps, replays, count = both(
        tmp_path, data=[str(pairs)], loss=loss, batch_size=1, samples_per_epoch=4, epochs=1, **FFMEF
    )
    assert_same(steps, replays)
    # The first step runs as it is; the second is captured and compared, and then replayed.
    assert recorded == {"captured": 1, "replayed": count}


def assert_same(steps, replays, *, atol=0.0):
    assert replays[0] == steps[0]
    torch.testing.assert_close(replays[1], steps[1], rtol=0, atol=atol)


def test_infrared_and_bfloat16(pairs, tmp_path, recorded):
    settings = {"task": "vif", "precision": "bf16-mixed", "batch_size": 1, "samples_per_epoch": 4, "epochs": 1}
    steps, replays, count = both(tmp_path, data=[str(pairs)], **settings, **FFMEF)
    assert_same(steps, replays, atol=1e-6)  # sums of bfloat16 depend on where memory begins
    assert recorded == {"captured": 1, "replayed": count}


def test_each_shape_has_a_graph(tmp_path, recorded, monkeypatch):
    """Brackets of several sizes, cuts at random places and borders of random width."""
    monkeypatch.setattr(graphs, "MOST", 3)
    brackets = {"weights": {"structure": 1.0, "independence": 0.1}, "brackets": {"independence": 0.0}}
    settings = {"photographs": ["examples"], "loss": "picture", "loss_options": brackets, "largest_count": 3}
    settings |= {"mirror": 2, "on_device": True, "batch_size": 1, "samples_per_epoch": 14, "epochs": 1}
    steps, replays, count = both(tmp_path, **settings, **PYRAMID)
    assert_same(steps, replays)
    assert recorded["captured"] == 3 < recorded["replayed"] < count


def test_focus_stacks(tmp_path, recorded):
    settings = {"task": "mff", "model": "focus", "loss": "truth", "photographs": ["examples"]}
    steps, replays, count = both(tmp_path, **settings, batch_size=1, samples_per_epoch=4, epochs=1)
    assert_same(steps, replays)
    assert recorded == {"captured": 1, "replayed": count}


def waits(layer, x):
    return layer(x) * layer.weight.sum().item()


def counts_steps(layer, x):
    layer.steps = getattr(layer, "steps", 0) + 1
    return layer(x) * layer.steps


@pytest.mark.parametrize(("forward", "reason"), [(waits, "cannot be captured"), (counts_steps, "other results")])
def test_what_cannot_be_repeated_is_not(recorded, caplog, forward, reason):
    """One warning, and the results of single steps."""
    layer = nn.Linear(3, 1)

    def compute(tensors):
        layer.zero_grad(set_to_none=True)
        total = forward(layer, tensors[0]).square().sum()
        total.backward()
        return ["total"], total.detach().view(1)

    steps = Graphs(compute, list(layer.parameters()), active=True)
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            given = torch.full((2, 3), number + 1.0)
            _, values = steps([given])
            found = [parameter.grad.clone() for parameter in layer.parameters()]
            layer.steps = getattr(layer, "steps", 1) - 1
            assert torch.equal(values, compute([given])[1])
            assert all(map(torch.equal, found, (parameter.grad for parameter in layer.parameters())))
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    assert not steps.active


def test_results_stay_and_gradients_belong_to_their_step(recorded):
    layer = nn.Linear(3, 1)

    def compute(tensors, factor):
        layer.zero_grad(set_to_none=True)
        total = factor * layer(tensors[0]).square().sum()
        total.backward()
        return [f"total {factor}"], total.detach().view(1)

    steps = Graphs(compute, list(layer.parameters()), active=True)
    made = []
    for number, rows in enumerate((2, 2, 3, 3, 2, 3, 2)):
        given = torch.full((rows, 3), number + 1.0)
        made.append((given, 1 + rows, *steps([given], 1 + rows), layer.weight.grad.clone()))
    assert recorded == {"captured": 2, "replayed": 7}  # two of them to compare
    for given, factor, names, values, gradient in made:
        expected = compute([given], factor)
        assert names == expected[0] and torch.equal(values, expected[1]) and torch.equal(gradient, layer.weight.grad)


def test_a_compiled_network_trains(pairs, tmp_path, monkeypatch):
    """As layer by layer, up to rounding; the weights keep their names."""
    monkeypatch.setattr("ffmef.training.trainer._COMPILER", "aot_eager")
    settings = {"data": [str(pairs)], "accelerator": "cpu", "threads": 1, "size": 16, "epochs": 1, **FFMEF}
    weights = []
    for compiled in (False, True):
        trainer = Trainer(Config(**settings, compile=compiled), tmp_path / str(compiled))
        assert isinstance(trainer.model._forward_module, torch._dynamo.OptimizedModule) == compiled
        trainer.run(progress=False)
        weights.append(load_file(tmp_path / str(compiled) / "weights.safetensors"))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)
