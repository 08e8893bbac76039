"""The trainer: settings, files of a run, a kill at any moment, several processes, and mistakes that users make."""

import csv
import dataclasses
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

from ffmef.cli import main
from ffmef.errors import InputError
from ffmef.models import load as load_weights
from ffmef.training import checkpoint
from ffmef.training.config import Config, resolve
from ffmef.training.schedules import rate_factor
from ffmef.training.trainer import DivergedError, Trainer, _border_change, _disagreement

SMALL = {
    "size": 16,
    "accelerator": "cpu",
    "threads": 1,
    "model_options": {"channels": 2, "kernel_sizes": [1, 3]},
    "schedule": "cosine",
    "warmup": 3,
    "clip_norm": 1.0,
    "ema": 0.9,
    "learning_rate": 5e-3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in range(6):
        light = rng.random((24, 30, 3)) * np.linspace(0.1, 1, 30)[:, None]
        (folder / f"s{number}").mkdir()
        for name, gain in (("A", 0.3), ("B", 2.5)):
            pixels = (np.clip(light * gain, 0, 1) ** 0.5 * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"s{number}" / f"{name}.png")
    return folder


def config(data, **changes):
    return Config(**{**SMALL, "data": [str(data)], "epochs": 3, **changes})


def train(data, folder, **changes):
    trainer = Trainer(config(data, **changes), folder)
    trainer.run(progress=False)
    return trainer


def weights(folder):
    """Names and bytes of all tensors."""
    state = load_file(Path(folder) / "weights.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(data, folder)
    return folder


def test_a_run_leaves_its_files(whole_run):
    assert {path.name for path in whole_run.iterdir() if not path.name.startswith("events")} == {
        "checkpoint.pt",
        "config.toml",
        "losses.csv",
        "losses.png",
        "samples",
        "weights.safetensors",
    }
    assert any(path.name.startswith("events.out.tfevents") for path in whole_run.iterdir())
    assert [path.name for path in sorted((whole_run / "samples").iterdir())] == [f"epoch-000{n}.png" for n in (1, 2, 3)]
    with (whole_run / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["3", "6", "9"]
    for row in rows:
        total = 1.25 * float(row["steep"]) + float(row["smooth"]) + 2 * float(row["global"])
        assert float(row["total"]) == pytest.approx(total, rel=1e-4)
    assert float(rows[-1]["total"]) < float(rows[0]["total"])
    model = load_weights(whole_run / "weights.safetensors")
    assert model.config() == {"channels": 2, "kernel_sizes": [1, 3]}
    assert Image.open(whole_run / "losses.png").size[0] > 200


def test_events_can_be_read(whole_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole_run)).Reload()
    assert {"loss/total", "loss/steep", "loss/smooth", "loss/global", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, 10))
    assert events.Tags()["images"] == ["samples"]


def test_seed_decides_the_weights(data, whole_run, tmp_path):
    train(data, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(whole_run)
    train(data, tmp_path / "other", seed=1)
    assert weights(tmp_path / "other") != weights(whole_run)


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_resumed_run_reaches_the_same_bits(data, whole_run, tmp_path, stop):
    Trainer(config(data), tmp_path / "run").run(progress=False, stop_after=stop)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    resumed = Trainer(config(data), tmp_path / "run", resume=True)
    assert resumed.step == stop
    resumed.run(progress=False)
    assert weights(tmp_path / "run") == weights(whole_run)
    assert (tmp_path / "run" / "losses.csv").read_text() == (whole_run / "losses.csv").read_text()


def test_killed_run_reaches_the_same_bits(data, whole_run, tmp_path):
    """kill -9 at a random moment, with a checkpoint after every step so that some are hit while being written."""
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "ffmef.cli", "train", "-o", str(folder), "--quiet"]
    file = tmp_path / "settings.toml"
    config(data, checkpoint_every=1).write(file)
    command = [*arguments, "--config", str(file)]
    kills = 0
    for _ in range(2):
        saved = folder / "checkpoint.pt"
        before = checkpoint.load(saved)["step"] if saved.exists() else 0
        file_before = saved.stat().st_ino if saved.exists() else None
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        # Looking at the file's number takes no time in which the run could end.
        while process.poll() is None and time.monotonic() < deadline:
            if saved.exists() and saved.stat().st_ino != file_before:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stderr.close()
        assert checkpoint.load(saved)["step"] > before
        command = [*arguments, "--resume"]
    assert kills
    # In this process from here on: another start costs seconds.
    Trainer(config(data, checkpoint_every=1), folder, resume=True).run(progress=False)
    assert weights(folder) == weights(whole_run)


def test_half_written_checkpoint_does_not_count(data, tmp_path, monkeypatch):
    """Interrupted between writing and renaming, the old checkpoint stays; what a killed process left is swept away."""
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]
    (tmp_path / ".ffmef-1-0a1b2c3d.tmp").write_bytes(b"half of a checkpoint")
    checkpoint.save(path, {"step": 3})
    assert checkpoint.load(path) == {"step": 3} and list(tmp_path.iterdir()) == [path]


def test_full_disk_is_named(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="checkpoint.pt: cannot be written: No space left on device"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"PK nonsense", None])
def test_damaged_checkpoint_is_named(tmp_path, content):
    if content is None:
        torch.save({"weights": 1}, tmp_path / "checkpoint.pt")
    else:
        (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match="checkpoint.pt: (damaged or )?no checkpoint"):
        checkpoint.load(tmp_path / "checkpoint.pt")


def test_two_processes_follow_one(data, tmp_path):
    """The same global batch in one process and in two over gloo: one loss curve, within float error."""
    options = {"batch_size": 4, "samples_per_epoch": 8, "epochs": 2, "sample_every": 2}
    train(data, tmp_path / "one", **options)
    config(data, **options).write(tmp_path / "settings.toml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(port),
        "-m",
        "ffmef.cli",
        "train",
        "--config",
        str(tmp_path / "settings.toml"),
        "-o",
        str(tmp_path / "two"),
        "--quiet",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    one, two = (np.genfromtxt(tmp_path / run / "losses.csv", delimiter=",", names=True) for run in ("one", "two"))
    for name in ("total", "steep", "smooth", "global"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4)
    # Weights whose slope is 0 up to rounding (biases before a norm) are moved by chance alone: compare what they do.
    luminance = torch.rand(1, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    first, second = (load_weights(tmp_path / run / "weights.safetensors")(luminance) for run in ("one", "two"))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)


@pytest.mark.parametrize("every", [1, 0])
def test_a_loss_that_is_no_number_names_the_batch(data, tmp_path, monkeypatch, every):
    trainer = Trainer(config(data, checkpoint_every=every), tmp_path / "run")
    loss = trainer.loss.forward

    def break_third(fused, sources):
        return loss(fused * (float("nan") if trainer.step == 2 else 1.0), sources)

    monkeypatch.setattr(trainer.loss, "forward", break_third)
    expected = trainer.batches.at(0, 2)
    with pytest.raises(DivergedError, match="not finite in epoch 1, batch 3") as error:
        trainer.run(progress=False)
    for place in expected:
        assert trainer.dataset.name(place) in str(error.value)
    assert str(error.value).endswith("is kept" if every else "there is no checkpoint yet")
    if not every:
        assert not (tmp_path / "run" / "checkpoint.pt").exists()
        return
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] == 2 and all(tensor.isfinite().all() for tensor in state["model"].values())


def test_bfloat16_and_deterministic_mode(data, tmp_path):
    try:
        trainer = train(data, tmp_path / "run", precision="bf16-mixed", deterministic=True, epochs=1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.plain.parameters())


def test_validation_scenes_are_never_trained_on(data, tmp_path):
    trainer = Trainer(config(data, validation=0.5), tmp_path / "run")
    names = trainer.dataset.scenes.names
    assert 0 < len(names) < 6 and len(names) + len(trainer.held_out) == 6
    trainer.run(progress=False)
    with (tmp_path / "run" / "losses.csv").open() as file:
        assert all(float(row["validation"]) > 0 for row in csv.DictReader(file))


def test_infrared_goes_first_and_colour_comes_from_the_visible(data, tmp_path):
    trainer = Trainer(config(data, task="vif"), tmp_path / "run")
    sample = trainer.dataset[0, 0].float().mean((1, 2, 3))
    assert sample[0] > sample[1]  # B, the brighter one here, goes first
    sources = trainer._sources(trainer.dataset[0, 0][None])
    assert torch.equal(sources.merged_chroma, sources.chroma[:, 1])


def test_starting_from_other_weights(data, whole_run, tmp_path):
    trainer = Trainer(config(data, initial=str(whole_run / "weights.safetensors")), tmp_path / "run")
    expected = load_weights(whole_run / "weights.safetensors").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trainer.plain.state_dict().items())


def test_a_schedule_may_be_left_early(data, whole_run, tmp_path):
    trainer = train(data, tmp_path / "run", until=2)
    assert trainer.step == 6 and (tmp_path / "run" / "weights.safetensors").exists()
    early, whole = ((folder / "losses.csv").read_text().splitlines() for folder in (tmp_path / "run", whole_run))
    assert early == whole[:3]


def test_one_step_by_hand(data, tmp_path):
    """Rate, clipped gradient and moving average after one step; the exported weights are the average."""
    trainer = Trainer(config(data, clip_norm=0.01, ema=0.9), tmp_path / "run")
    start = [parameter.detach().clone() for parameter in trainer.plain.parameters()]
    trainer.run(progress=False, stop_after=1)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3 / 3)  # the first of three steps of warm-up
    norm = torch.stack([parameter.grad.norm() for parameter in trainer.plain.parameters()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    for first, now, mean in zip(start, trainer.plain.parameters(), trainer.average.parameters()):
        torch.testing.assert_close(mean, first + 0.9 * (now - first))  # the decay begins at 1 / 10
    trainer._export()
    exported = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(tensor, exported[name]) for name, tensor in trainer.average.state_dict().items())
    assert not all(torch.equal(tensor, exported[name]) for name, tensor in trainer.plain.state_dict().items())


def test_bundled_weights_have_cards_and_recipes():
    import ffmef.models

    root = Path(__file__).parents[2]
    for name in ("mef", "mef-research", "mff", "vif", "mef-pyramid"):
        assert name in ffmef.models.available()
        luminance = torch.rand(1, 2, 16, 18)
        assert load_weights(name)(luminance).isfinite().all()
        card = (root / "ffmef" / "weights" / f"{name}.md").read_text()
        assert "licence" in card.lower() and "ffmef train --config configs/" in card
    recipes = sorted((root / "configs").glob("*.toml"))
    assert len(recipes) >= 5
    for path in recipes:
        # Focus stacks are made of photographs, which the command line names.
        wanted, settings = ("truth", {"photographs": ["."]}) if path.stem == "focus" else ("picture", {})
        assert resolve(path, settings).loss == wanted


PYRAMID = {
    "model": "pyramid",
    "model_options": {"channels": [4, 4], "stem": 4},
    "loss": "picture",
    "loss_options": {"weights": {"structure": 1.0, "washed_out": 1.0}},
    "size": 48,
    "overlap": 9,
    "consistency": 2.0,
    "batch_size": 1,
}


def test_two_cuts_of_a_sample_are_compared(data, tmp_path):
    """The cuts overlap where they say, the term is their difference there, and a resumed run draws the same cuts."""
    trainer = Trainer(config(data, **PYRAMID), tmp_path / "whole")
    sample = torch.arange(57 * 57).view(1, 1, 1, 57, 57).float()
    places = torch.tensor([[[2, 9]], [[8, 0]]])
    one, other = (trainer._cut(sample.expand(1, 2, 3, 57, 57), place)[:, :1, 0] for place in places)
    assert one.shape == (1, 1, 48, 48)
    assert [int(part[0, 0, 0, 0]) for part in (one, other)] == [57 * 2 + 9, 57 * 8]
    assert _disagreement(one, other, places) == 0
    assert _disagreement(one, other + 2, places) == 2
    trainer.run(progress=False)
    with (tmp_path / "whole" / "losses.csv").open() as file:
        for row in csv.DictReader(file):
            parts = [float(row[name]) for name in ("structure", "washed_out", "consistency")]
            assert float(row["total"]) == pytest.approx(parts[0] + parts[1] + 2 * parts[2], rel=1e-4)
            assert parts[2] > 0
    Trainer(config(data, **PYRAMID), tmp_path / "sliced").run(progress=False, stop_after=4)
    Trainer(config(data, **PYRAMID), tmp_path / "sliced", resume=True).run(progress=False)
    assert weights(tmp_path / "sliced") == weights(tmp_path / "whole")


def test_what_a_mirrored_border_changes():
    fused, mirrored = torch.zeros(1, 1, 48, 48), torch.zeros(1, 1, 68, 68)
    mirrored[..., :10, :] = 1  # the border itself is not looked at
    assert _border_change(fused, mirrored, 10) == 0
    mirrored[..., 10:34, 10:34] = 1  # a corner, a quarter of the picture
    assert _border_change(fused, mirrored, 10) == (1 / 4 + 1 / 4) / 2
    mirrored[...] = 0
    mirrored[..., 34:-34, 34:-34] = 1
    assert _border_change(fused, mirrored, 10) == 0


PHOTOGRAPHS = {
    "photographs": [str(Path(__file__).parents[2] / "examples")],
    "model": "pyramid",
    "model_options": {"channels": [4, 4], "stem": 4},
    "loss": "picture",
    "loss_options": {"weights": {"structure": 1.0, "independence": 0.1}, "brackets": {"independence": 0.0}},
    "largest_count": 4,
    "size": 48,
    "overlap": 9,
    "mirror": 12,
    "consistency": 2.0,
    "on_device": True,
    "batch_size": 2,
    "samples_per_epoch": 6,
    "epochs": 2,
    "accelerator": "cpu",
}


def made(**changes):
    return Config(**{**SMALL, **PHOTOGRAPHS, **changes})


def test_samples_made_on_the_device(tmp_path):
    Trainer(made(), tmp_path / "whole").run(progress=False)
    with (tmp_path / "whole" / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["3", "6"]
    assert all(float(row["border"]) > 0 for row in rows)
    Trainer(made(), tmp_path / "sliced").run(progress=False, stop_after=4)
    Trainer(made(), tmp_path / "sliced", resume=True).run(progress=False)
    assert weights(tmp_path / "sliced") == weights(tmp_path / "whole")
    with pytest.raises(InputError, match="on_device makes samples of photographs only"):
        made(data=["a"])
    with pytest.raises(InputError, match="batch_size must be 1"):
        made(on_device=False)


def test_a_run_can_be_as_long_as_minutes(tmp_path):
    """The rate falls with the clock, and the run ends, within an epoch, with weights and a row of the table."""
    settings = {"minutes": 0.03, "schedule": "cosine", "samples_per_epoch": 10**6, "learning_rate": 1.0}
    trainer = Trainer(made(**settings), tmp_path / "run")
    trainer.seconds = 0.9
    assert trainer._rate(7) == pytest.approx(rate_factor(1, total=2, schedule="cosine"))
    trainer.seconds = 0.0
    trainer.run(progress=False)
    assert trainer.step >= 1 and trainer.seconds >= 1.8 and trainer._rate(trainer.step) == pytest.approx(0.01)
    assert (tmp_path / "run" / "weights.safetensors").exists()
    with (tmp_path / "run" / "losses.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(trainer.step)]


def test_schedules():
    assert rate_factor(0, total=10, schedule="constant") == 1
    assert [rate_factor(s, total=10, schedule="constant", warmup=4) for s in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert rate_factor(5, total=10, schedule="cosine") == pytest.approx(0.505)
    assert rate_factor(10, total=10, schedule="cosine") == pytest.approx(0.01)
    assert [rate_factor(s, total=9, schedule="step", halve_every=3) for s in (2, 3, 6)] == [1, 0.5, 0.25]


def test_settings_file_and_overrides(tmp_path):
    (tmp_path / "a.toml").write_text("epochs = 7\nlearning_rate = 1\nloss_options = {weights = {structure = 2.0}}\n")
    found = resolve(tmp_path / "a.toml", {"epochs": 9, "data": ["x"]})
    assert (found.epochs, found.learning_rate, found.data) == (9, 1.0, ["x"])
    assert found.loss_options == {"weights": {"structure": 2.0}}
    found.write(tmp_path / "c.toml")
    assert resolve(tmp_path / "c.toml", {}) == found
    assert Config() == Config(size=128, batch_size=2, epochs=30, learning_rate=1e-3, loss="gif", recipe="whole")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown setting 'epoch'"),
        ("epochs = 'many'", "epochs must be of type int, got 'many'"),
        ("epochs = true", "epochs must be of type int, got True"),
        ("epochs = 0", "epochs must be at least 1, got 0"),
        ("threads = 9999999999", "threads must be at most 4096, got 9999999999"),
        ("accelerator = 'abacus'", "accelerator must be one of auto, cpu, cuda, got 'abacus'"),
        ("epochs = ", "a.toml: "),
        ("loss = 'l1'", "loss must be one of gif, picture, mef-ssim, pmgi, truth, got 'l1'"),
        ("learning_rate = -1", "learning_rate must be positive and finite, got -1.0"),
        ("learning_rate = nan", "learning_rate must be positive and finite, got nan"),
        ("learning_rate = inf", "learning_rate must be positive and finite, got inf"),
        ("learning_rate = ''", "learning_rate must be of type float, got ''"),
        ("weight_decay = nan", "weight_decay must be at least 0 and finite, got nan"),
        ("weight_decay = -0.1", "weight_decay must be at least 0 and finite, got -0.1"),
        ("clip_norm = nan", "clip_norm must be at least 0 and finite, got nan"),
        ("clip_norm = -1", "clip_norm must be at least 0 and finite, got -1.0"),
        ("jitter = nan", "jitter must be from 0 to 1, got nan"),
        ("jitter = 1.5", "jitter must be from 0 to 1, got 1.5"),
        ("windows = -1", "windows must be from 0 to 1, got -1.0"),
        ("validation = nan", "validation must be at least 0 and below 1, got nan"),
        ("ema = nan", "ema must be at least 0 and below 1, got nan"),
        ("longest_side = 0", "longest_side must be at least 1, got 0"),
        ("size = 1000000000", "size must be at most 16384, got 1000000000"),
        ("count = 4294967296", "count must be at most 100, got 4294967296"),
        ("workers = 4294967296", "workers must be at most 256, got 4294967296"),
        ("samples_per_epoch = 9223372036854775808", "samples_per_epoch must be at most 100000000"),
        ("seed = 1000000000000000000000", "seed must be at most 9223372036854775807"),
        ("data = ['']", "data must be a list of names, got '' among them"),
        ("data = [1]", "data must be a list of names, got 1 among them"),
        ("photographs = ''", "photographs must be a list of names, got '' among them"),
        ("exclude = [['a']]", "exclude must be a list of names, got .'a'. among them"),
        ("loss_options = {weights = {structure = nan}}", "loss_options: weights: structure must be a finite number"),
        ("model_options = {kernel_sizes = [1, inf]}", "model_options: kernel_sizes must be a finite number"),
        ("largest_count = 3", "batch_size must be 1 where largest_count lets samples differ, got 2"),
        ("largest_count = 2\ncount = 3\nbatch_size = 1", "largest_count must be at least 3, got 2"),
        ("ema = 1.0", "ema must be at least 0 and below 1, got 1.0"),
        (
            "loss = 'truth'\nphotographs = ['a']",
            "loss truth can only be used for task mff with photographs alone, got task mef",
        ),
        (
            "loss = 'truth'\ntask = 'mff'\ndata = ['a']\nphotographs = ['a']",
            "loss truth can only be used for task mff with",
        ),
    ],
)
def test_mistakes_in_settings(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        resolve(tmp_path / "a.toml", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "data or photographs must name at least one folder, got none"),
        (["--data", "nowhere"], "nowhere: must be a folder or a .csv table"),
        (["--data", "DATA", "--batch-size", "8"], "the data give 6 samples an epoch, fewer than one batch of 8"),
        (["--data", "DATA", "--resume"], "checkpoint.pt: no such file, nothing to resume"),
        (["--data", "DATA", "--model-options", '{"channels": 3}'], "model_options: channels must be even"),
        (["--data", "DATA", "--loss-options", '{"depth": 3}'], "loss_options: .*depth"),
        (
            ["--data", "DATA", "--loss", "mef-ssim", "--size", "40"],
            "size 40 does not suit the loss mef-ssim: .*least 44",
        ),
        (["--data", "DATA", "--initial", "nowhere.pth"], "nowhere.pth"),
        (["--data", "DATA", "--precision", "16-mixed", "--accelerator", "cpu"], "16-mixed needs a GPU"),
        (["--data", "DATA", "--learning-rate", "nan"], "learning_rate must be positive and finite, got nan"),
        (
            ["--data", "DATA", "--model-options", '{"channels": 1000000}'],
            "model_options: the model must have at most",
        ),
        (["--data", "DATA", "--model-options", '{"backend": null}'], "model_options: backend must be .*, got null"),
        (["--data", "DATA", "--validation", "0.999"], "validation 0.999 keeps all data .6 scenes., none is left"),
        pytest.param(
            ["--data", "DATA", "--accelerator", "cuda"],
            "accelerator cuda needs a GPU for each process of this machine: 1, and torch .* sees 0",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
        (["--config", "nowhere.toml"], "nowhere.toml: cannot be read: No such file"),
    ],
)
def test_mistakes_on_the_command_line(data, tmp_path, capsys, options, message):
    options = [str(data) if option == "DATA" else option for option in options]
    assert main(["train", "-o", str(tmp_path / "run"), "--quiet", *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    import re

    assert re.search(message, lines[-1]) and lines[-1].startswith("ffmef train: ")
    assert len(lines) == 1 and not (tmp_path / "run").exists()


def test_a_missing_package_is_named_before_anything_begins(data, tmp_path, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    assert main(["train", "-o", str(tmp_path / "run"), "--quiet", "--data", str(data)]) == 2
    message = "ffmef train: training needs the package tensorboard; install ffmef[train]"
    assert capsys.readouterr().err.strip() == message and not (tmp_path / "run").exists()


def test_equal_runs_give_equal_files(data, whole_run, tmp_path):
    command = [sys.executable, "-m", "ffmef.cli", "train", "-o", str(tmp_path / "again"), "--quiet", "--config"]
    subprocess.run([*command, str(whole_run / "config.toml")], check=True)  # the library's order is that of a process
    assert (tmp_path / "again/weights.safetensors").read_bytes() == (whole_run / "weights.safetensors").read_bytes()


def test_names_that_are_nowhere_and_scenes_left_out_are_named(data, tmp_path, caplog):
    import shutil

    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "s1" / "B.png").unlink()
    trainer = Trainer(config(tmp_path / "data", exclude=["s2", "s9"]), tmp_path / "run")
    assert trainer.dataset.scenes.names == ["s0", "s3", "s4", "s5"]
    assert "scene s1 left out: must have A.* and B.*, got 1 picture" in caplog.text
    assert "exclude names no scene of the data: s9" in caplog.text
    # Scenes of too few pictures for a sample are named when they are read.
    with pytest.raises(InputError, match="no scene can be used"):
        Trainer(config(tmp_path / "data", count=3), tmp_path / "run")
    assert "scene s0 left out: must have at least 3 pictures, got 2" in caplog.text


def test_every_number_has_a_range():
    for field in dataclasses.fields(Config):
        if type(field.default) in (int, float):
            with pytest.raises(InputError, match=field.name):
                Config(**{field.name: type(field.default)(-1)})
            with pytest.raises(InputError, match=field.name):
                Config(**{field.name: 10**30 if type(field.default) is int else float("nan")})


def test_settings_survive_their_file(tmp_path):
    odd = {"x": 'a "quoted" \\ name\n\x7f', "y": [1, 2.5, True, "\U0001f600"], "z": {"deep": 1e-30}}
    settings = Config(data=["\u00e9t\u00e9 \U0001f600"], loss_options=odd)
    settings.write(tmp_path / "a.toml")
    assert resolve(tmp_path / "a.toml", {}) == settings


def test_a_run_is_not_overwritten(data, whole_run, capsys):
    assert main(["train", "-o", str(whole_run), "--data", str(data), "--quiet"]) == 2
    assert "holds a run already" in capsys.readouterr().err


def ablation():
    """Return scripts/ablation.py as a module."""
    import importlib.util

    path = Path(__file__).parents[2] / "scripts" / "ablation.py"
    spec = importlib.util.spec_from_file_location("ablation", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_ablation_script(data, tmp_path, monkeypatch, capsys):
    """Every variant of a part is trained and scored; a second call trains nothing again."""
    script = ablation()
    (tmp_path / "settings.toml").write_text('size = 16\nbatch_size = 6\naccelerator = "cpu"\nthreads = 1\nepochs = 1\n')
    command = ["--data", str(data), "--pairs", str(data), "-o", str(tmp_path / "out"), "--parts", "fig7"]
    command += ["--config", str(tmp_path / "settings.toml"), "--metrics", "EN", "CE", "--scenes", "2"]
    assert script.main(command) == 0
    text = (tmp_path / "out" / "ablation.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "variant" not in line]
    assert [row.split(" | ")[0] for row in rows] == ["| GIF", "| raw gradients", "| no saturation", "| no global term"]
    values = {tuple(row.split(" | ")[1:]) for row in rows}
    assert len(values) > 2 and text.count("**") >= 4
    assert Image.open(tmp_path / "out" / "ablation-fig7.png").size[0] > 6 * 24
    monkeypatch.setattr(script, "Trainer", None)
    assert script.main(command) == 0
    assert (tmp_path / "out" / "ablation.md").read_text() == text
    assert script.main([*command, "--metrics", "XY"]) == 2
    assert "--metrics must be among" in capsys.readouterr().err
    assert script.main([*command, "--parts", "pyramid"]) == 2
    assert "settings whose model is pyramid" in capsys.readouterr().err


def test_ablation_of_the_pyramid(data, tmp_path, monkeypatch):
    """Changes reach the settings and the model."""
    script = ablation()
    chosen = ("as configured", "no band", "no octave", "fidelity x 3")
    monkeypatch.setitem(script.VARIANTS, "pyramid", {name: script.VARIANTS["pyramid"][name] for name in chosen})
    (tmp_path / "settings.toml").write_text(
        'model = "pyramid"\nloss = "picture"\nloss_options = {weights = {fidelity = 2.0, structure = 1.0}}\n'
        'size = 48\nbatch_size = 6\naccelerator = "cpu"\nthreads = 1\nepochs = 1\n'
    )
    out = tmp_path / "out"
    command = ["--data", str(data), "--pairs", str(data), "-o", str(out), "--parts", "pyramid", "--metrics", "EN"]
    assert script.main([*command, "--config", str(tmp_path / "settings.toml"), "--scenes", "1"]) == 0
    rows = [line for line in (out / "ablation.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == [f"| {name}" for name in chosen]
    assert resolve(out / "pyramid-fidelity_x_3" / "config.toml", {}).loss_options["weights"]["fidelity"] == 6.0
    assert load_weights(out / "pyramid-no_octave" / "weights.safetensors").octaves == 0
    planes = {
        path.parent.name: len(load_file(path)["predictor.head.bias"])
        for path in sorted(out.glob("*/weights.safetensors"))
    }
    assert planes == {
        "pyramid-as_configured": 12,
        "pyramid-fidelity_x_3": 12,
        "pyramid-no_band": 6,
        "pyramid-no_octave": 12,
    }


def test_focus_stacks_are_learned_from_photographs(tmp_path):
    """A few steps with the truth in view make the untrained weights better on the same samples."""
    from PIL import Image

    from ffmef import models

    rng = np.random.default_rng(4)
    (tmp_path / "photographs").mkdir()
    for k in range(2):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / "photographs" / f"{k}.png")
    settings = {
        "task": "mff", "model": "focus", "model_options": {"channels": 4}, "loss": "truth", "largest_count": 4,
        "photographs": [str(tmp_path / "photographs")], "size": 64, "batch_size": 1, "samples_per_epoch": 4,
        "epochs": 2, "learning_rate": 1e-2, "accelerator": "cpu", "threads": 1,
    }  # fmt: skip
    trainer = Trainer(Config(**settings), tmp_path / "run")
    samples = [trainer._sources(trainer.dataset[0, number].unsqueeze(0)) for number in range(4)]

    def loss_of(model):
        with torch.inference_mode():
            return sum(trainer.loss(model(sources.rgb), sources)[0].item() for sources in samples) / len(samples)

    before = loss_of(trainer.plain)
    trainer.run(progress=False)
    model = models.load(tmp_path / "run" / "weights.safetensors")
    assert model.channels == 4 and loss_of(model) < before
    assert (tmp_path / "run" / "samples" / "epoch-0001.png").exists()
