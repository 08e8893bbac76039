"""The FFMEF network, stage by stage, against its description and the authors' golden values; and weight files."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

import ffmef_oracle
from ffmef import models
from ffmef.errors import InputError
from ffmef.imaging.colour import luminance as luminance_of
from ffmef.imaging.io import read_picture
from ffmef.models import FFMEF
from ffmef.ops import adaptive_fuse

TOLERANCE = 2e-5


def stages(model: FFMEF, luminance: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every stage of our network for luminance (1, 2, H, W), under the names of the golden files."""
    kept = {}
    with torch.no_grad():
        maps = model.extractor(luminance.transpose(0, 1))
        for n in (0, 1):
            kept[f"preconv_{n}"] = model.extractor.stem(luminance[:, n : n + 1])
            for name, values in zip(("bottom", "up2", "up1"), maps, strict=True):
                kept[f"hre_{name}_{n}"] = values[n : n + 1]
        both = [m.unsqueeze(0) for m in maps]
        for level, (attention, head, m) in enumerate(
            zip(model.predictor.attentions, model.predictor.heads, model.maps_of_levels(*both), strict=True), 1
        ):
            attended = attention(m)
            for n in (0, 1):
                kept[f"attended{level}_{n}"] = attended[:, n]
                kept[f"filters{level}_{n}"] = head(attended[:, n])
        for level, filters in enumerate(model.predict_filters(luminance), 1):
            for n in (0, 1):
                torch.testing.assert_close(filters[:, n], kept[f"filters{level}_{n}"], rtol=0, atol=1e-5)
                kept[f"filtered{level}_{n}"] = adaptive_fuse(
                    luminance[:, n : n + 1], [filters[:, n : n + 1]], backend=model.backend
                )[:, None]
        kept["fused_y"] = model(luminance)
    return kept


def check_stages(found: dict[str, torch.Tensor], expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(
            value.double().numpy(), np.asarray(expected[name]), rtol=0, atol=tolerance, err_msg=name
        )


def saved(state: dict, path) -> str:
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A random checkpoint under the authors' names, its file, a pair of pictures, and what the oracle makes of them."""
    state = ffmef_oracle.checkpoint()
    path = saved(state, tmp_path_factory.mktemp("own") / "own.pth")
    luminance = torch.from_numpy(np.random.default_rng(1).uniform(0, 1, (1, 2, 21, 30)))
    return state, path, luminance, ffmef_oracle.stages(state, luminance)


# --- parity --------------------------------------------------------------------------------------------------------


def test_every_stage_is_the_descriptions(own, backend):
    _, path, luminance, expected = own
    model = models.load(path)
    model.backend = backend
    largest = max(float(value.abs().max()) for value in expected.values())
    check_stages(stages(model.double(), luminance), expected, 1e-10 * largest)
    check_stages(stages(model.float(), luminance.float()), expected, 2e-6 * largest)


def test_the_engine_is_the_network(own):
    """Without gradients, backend None may run the whole network in one operator: the result is the same."""
    _, path, luminance, expected = own
    model, scale = models.load(path), float(expected["fused_y"].abs().max())
    with torch.inference_mode():
        whole = model(luminance.float())
    staged = model(luminance.float())
    assert staged.requires_grad and not whole.requires_grad
    for fused in (whole, staged):
        np.testing.assert_allclose(
            fused.detach().double().numpy(), expected["fused_y"].numpy(), rtol=0, atol=2e-6 * scale
        )


@pytest.mark.parametrize("task", ["mef", "mff", "vif"])
def test_every_stage_is_the_authors(task, reference_dir, backend):
    model = models.load(reference_dir / "official_weights" / f"{task}.pth")
    model.backend = backend
    with np.load(reference_dir / "golden" / f"ffmef_{task}.npz") as golden:
        luminance = torch.from_numpy(np.concatenate([golden["y0"], golden["y1"]], 1))
        expected = {name: golden[name] for name in golden.files if name not in ("rgb0", "rgb1", "y0", "y1")}
    check_stages(stages(model, luminance), expected, TOLERANCE)


@pytest.mark.parametrize("task", ["mef", "mff", "vif"])
def test_the_oracle_is_the_authors(task, reference_dir):
    state = torch.load(reference_dir / "official_weights" / f"{task}.pth", map_location="cpu", weights_only=True)
    state = state.get("model", state)
    with np.load(reference_dir / "golden" / f"ffmef_{task}.npz") as golden:
        luminance = torch.from_numpy(np.concatenate([golden["y0"], golden["y1"]], 1))
        found = ffmef_oracle.stages(state, luminance.double())
        check_stages(found, {name: golden[name] for name in found}, TOLERANCE)


def test_checkpoint_names_are_the_authors(reference_dir):
    rows = (line.split("\t") for line in (reference_dir / "checkpoint_keys.tsv").read_text().splitlines())
    listed = {
        name: tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
        for name, shape in rows
        if "total_" not in name
    }
    assert ffmef_oracle.shapes() == listed


@pytest.mark.parametrize("name", ["507", "AirBellowsGap"])
def test_full_size_pictures_are_the_authors(name, reference_dir, data_dir, backend):
    folder = data_dir / "mefb_dev" / name
    pictures = [read_picture(path).pixels for path in sorted(folder.glob(f"{name}_[AB].*"))]
    luminance = torch.from_numpy(np.stack([luminance_of(p.astype(np.float32)) / 255 for p in pictures]))[None]
    assert luminance[0, 0].mean() < luminance[0, 1].mean()
    model = models.load(reference_dir / "official_weights" / "mef.pth")
    model.backend = backend
    with np.load(reference_dir / "golden" / f"fused_{name}.npz") as golden:
        for threaded in (None, backend):
            model.backend = threaded  # None: whatever a user gets
            with torch.inference_mode():
                fused = model(luminance.float())[0, 0]
            np.testing.assert_allclose(fused.numpy(), golden["fused_y"], rtol=0, atol=TOLERANCE)


# --- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1,), (1, 3), (3, 5), (1, 3, 5), (1, 3, 5, 7), (3, 9)], ids=str)
@pytest.mark.parametrize("channels", [2, 4, 8])
def test_any_filter_sizes_and_channels(sizes, channels):
    torch.manual_seed(0)
    model = FFMEF(channels, sizes).eval()
    luminance = torch.rand(2, 2, 9, 13)
    filters = model.predict_filters(luminance)
    assert [tuple(f.shape) for f in filters] == [(2, 2, k * k, 9, 13) for k in sizes]
    with torch.no_grad():
        whole = model(luminance)
    eager = adaptive_fuse(luminance, filters, model.fuse.alphas)[:, None]
    torch.testing.assert_close(whole, eager, rtol=1e-4, atol=1e-5)
    assert model.config() == {"channels": channels, "kernel_sizes": list(sizes)}


def test_default_size_and_start():
    model = FFMEF()
    assert sum(p.numel() for p in model.parameters()) == 7662
    torch.testing.assert_close(model.fuse.alphas.detach(), torch.tensor([0.6, 0.3, 0.1]))
    assert model.extractor.skip_1.gain_body.item() == 1.0 and model.extractor.skip_1.gain_skip.item() == 0.5
    assert not model.predictor.heads[2].project.bias.any()
    weight = model.predictor.heads[2].expand.weight  # Xavier normal: standard deviation sqrt(2 / (fan in + fan out))
    assert weight.std().item() == pytest.approx((2 / (25 * (4 + 25))) ** 0.5, rel=0.1)


def test_batches_are_separate_pictures():
    torch.manual_seed(0)
    model, luminance = FFMEF(), torch.rand(3, 2, 10, 11)
    for fuse in (model, model.eval()):
        with torch.no_grad():
            together, apart = fuse(luminance), torch.cat([fuse(luminance[n : n + 1]) for n in range(3)])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = FFMEF()
    model(torch.rand(2, 2, 14, 15)).square().mean().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before an instance norm over the same channels cannot matter: the mean is subtracted again.
    assert {name for name in dead if not name.endswith("conv.bias")} == set()


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 1, 8, 8), (1, 3, 8, 8)], ids=str)
def test_refuses_other_numbers_of_images(shape):
    with pytest.raises(ValueError) as caught:
        FFMEF()(torch.rand(shape))
    assert str(caught.value) == f"luminance must be (B, 2, H, W), got shape {shape}"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": 3}, "channels must be even and at least 2, got 3"),
        ({"channels": 0}, "channels must be even and at least 2, got 0"),
        ({"kernel_sizes": ()}, "kernel_sizes must ascend, got ()"),
        ({"kernel_sizes": (3, 1)}, "kernel_sizes must ascend, got (3, 1)"),
        ({"kernel_sizes": (3, 3)}, "kernel_sizes must ascend, got (3, 3)"),
        ({"kernel_sizes": (1, 4)}, "kernel_sizes must be odd and at most 31, got (1, 4)"),
        ({"kernel_sizes": (33,)}, "kernel_sizes must be odd and at most 31, got (33,)"),
    ],
)
def test_refuses_other_architectures(options, message):
    with pytest.raises(ValueError) as caught:
        FFMEF(**options)
    assert str(caught.value) == message


# --- weight files --------------------------------------------------------------------------------------------------


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


@pytest.mark.parametrize(
    "model",
    [FFMEF(), FFMEF(8, (3, 5)), models.PyramidFFMEF(bands=2, channels=(8, 8), stem=4)],
    ids=["default", "other", "pyramid"],
)
def test_save_and_load(model, tmp_path):
    path = tmp_path / "weights.safetensors"
    models.save(model, path, task="mef")
    back = models.load(path)
    assert type(back) is type(model) and same(back, model) and not back.training and back.config() == model.config()
    assert os.listdir(tmp_path) == ["weights.safetensors"]


def test_bundled_names():
    names = models.available()
    for name in names:
        model = models.load(name)
        assert all(p.isfinite().all() for p in model.parameters()) and not model.training
    with pytest.raises(InputError) as caught:
        models.load("no-such-weights")
    assert str(caught.value) == f"weights must be a file or one of {', '.join(names)}, got no-such-weights"


def test_authors_counters_are_ignored_and_nothing_else(own, tmp_path):
    state, path, *_ = own
    counters = {"total_ops": torch.zeros(1), "encode.skip1.total_params": torch.zeros(1)}
    model = models.load(saved({**state, **counters}, tmp_path / "counters.pth"))
    assert same(model, models.load(path))
    assert same(models.load(saved({"model": state}, tmp_path / "nested.pth")), model)
    torch.testing.assert_close(model.fuse.alphas.detach(), torch.cat([state[f"alpha{n}"] for n in (1, 2, 3)]))


def _without(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


BAD_CHECKPOINTS = {
    "unknown": (lambda s: {**s, "extra.weight": torch.ones(1)}, "does not fit FFMEF: unknown keys extra.weight"),
    "missing": (lambda s: _without(s, "preconv.bias"), "does not fit FFMEF: missing keys extractor.stem.bias"),
    "missing alpha": (lambda s: _without(s, "alpha2"), "does not fit FFMEF: missing keys fuse.alphas"),
    "both": (
        lambda s: {**_without(s, "preconv.bias"), "x": torch.ones(1)},
        "does not fit FFMEF: missing keys extractor.stem.bias; unknown keys x",
    ),
    "shape": (lambda s: {**s, "preconv.bias": torch.ones(5)}, ": extractor.stem.bias must have shape (4,), got (5,)"),
    "integers": (
        lambda s: {**s, "preconv.bias": torch.ones(4).int()},
        ": extractor.stem.bias must be floating point, got int32",
    ),
    "complex": (
        lambda s: {**s, "preconv.bias": torch.ones(4) * 1j},
        ": extractor.stem.bias must be floating point, got complex64",
    ),
    "nan": (
        lambda s: {**s, "preconv.bias": torch.tensor([1, float("nan"), 1, 1])},
        ": extractor.stem.bias must be finite, got nan",
    ),
    "infinite": (lambda s: {**s, "alpha1": torch.tensor([float("inf")])}, ": fuse.alphas must be finite, got inf"),
    "sparse": (
        lambda s: {**s, "preconv.bias": torch.ones(4).to_sparse()},
        ": extractor.stem.bias must be a dense tensor, got torch.sparse_coo",
    ),
    "no values": (
        lambda s: {**s, "preconv.bias": torch.ones(4, device="meta")},
        ": extractor.stem.bias must hold values, got a tensor of the meta device",
    ),
    "number for a key": (
        lambda s: {**s, 3: torch.ones(1)},
        " is not a weight file: it must hold a dictionary of named tensors",
    ),
    "list": (lambda s: list(s.values()), " is not a weight file: it must hold a dictionary of named tensors"),
    "no tensors": (lambda s: {"epoch": 3}, " is not a weight file: it must hold a dictionary of named tensors"),
    "name of two lines": (lambda s: {**s, "two\nlines": torch.ones(1)}, r"does not fit FFMEF: unknown keys two\nlines"),
    "same weight twice": (lambda s: {**s, "extractor.stem.bias": torch.ones(4)}, " names extractor.stem.bias twice"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused_in_one_line(name, own, tmp_path):
    change, message = BAD_CHECKPOINTS[name]
    path = saved(change(own[0]), tmp_path / "bad.pth")
    with pytest.raises(InputError) as caught:
        models.load(path)
    assert str(caught.value).startswith(path) and str(caught.value).endswith(message) and "\n" not in str(caught.value)


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def _safetensors(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _config(config: str, architecture: str = "FFMEF") -> bytes:
    return _safetensors(
        {
            "__metadata__": {"architecture": architecture, "config": config},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        bytes(4),
    )


BAD_FILES = {
    "empty": b"",
    "text": b"these are no weights\n",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "zip of nothing": None,
    "pickle of a call": pickle.dumps(_Evil()),
    "pickle of a number": pickle.dumps(3),
    "truncated pickle": pickle.dumps({"a": 1})[:-2],
    "half a header": struct.pack("<Q", 100) + b"{",
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "header no json": _safetensors(b"{no json"),
    "no metadata": _safetensors({}),
    "unknown architecture": _config("{}", "Transformer\n2"),
    "config no json": _config("{"),
    "config list": _config("[]"),
    "config number": _config("3"),
    "config unknown name": _config('{"chanels": 4}'),
    "config text": _config('{"channels": "4"}'),
    "config null": _config('{"channels": null}'),
    "config fraction": _config('{"channels": 4.0}'),
    "config huge": _config('{"channels": 1000000000000}'),
    "config large": _config('{"channels": 200000}'),
    "config sizes": _config('{"kernel_sizes": [[1]]}'),
    "config even": _config('{"kernel_sizes": [2]}'),
    "config deep": _config("[" * 20000),
    "config pyramid": _config('{"channels": "x"}', "PyramidFFMEF"),
    "config pyramid huge": _config('{"channels": [1000000000, 1000000000]}', "PyramidFFMEF"),
    "config pyramid empty": _config('{"channels": []}', "PyramidFFMEF"),
    "config backend": _config('{"backend": 3}'),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_weights_are_refused_in_one_line(name, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"bad{suffix}"
    monkeypatch.chdir(tmp_path)
    if BAD_FILES[name] is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "nothing")
    else:
        path.write_bytes(BAD_FILES[name])
    with pytest.raises(InputError) as caught:
        models.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) > len(str(path)) + 10
    assert "\n" not in message and len(message) < len(str(path)) + 400
    assert os.listdir(tmp_path) == [path.name]  # nothing in a file is ever called


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_read_never_worse(own, tmp_path):
    """Bytes changed and ends cut at random, in both formats: an error of one line or a model, nothing else."""
    models.save(models.load(own[1]), tmp_path / "good.safetensors")
    random = np.random.default_rng(0)
    path, refused = tmp_path / "damaged", 0
    for original in (tmp_path / "good.safetensors", own[1]):
        whole = open(original, "rb").read()
        for trial in range(60):
            damaged = bytearray(whole)
            if trial % 3 == 0:
                del damaged[random.integers(0, len(damaged)) :]
            else:
                for place in random.integers(0, len(damaged) if trial % 3 == 1 else 600, 3):
                    damaged[place] = random.integers(0, 256)
            path.write_bytes(damaged)
            try:
                models.load(path)
            except InputError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 40


def test_names_that_no_file_can_have(tmp_path):
    for name, start in (
        ("x" * 5000, "weights must be a file or one of"),
        ("a\0b", "weights must be a file or one of"),
        (tmp_path, "weights must be a name or a file, got the folder"),
    ):
        with pytest.raises(InputError) as caught:
            models.load(name)
        assert str(caught.value).startswith(start)


def test_names_stay_in_the_folder_of_bundled_weights(tmp_path, monkeypatch):
    """A name is no path: what lies beside the bundled weights cannot be reached through it."""
    models.save(FFMEF(), tmp_path / "outside.safetensors")
    monkeypatch.setattr("ffmef.weight_files.FOLDER", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    with pytest.raises(InputError):
        models.load("../outside")


@pytest.mark.parametrize("backend", [None, "eager", "native", "recompute"])
def test_every_way_has_shapes_on_the_meta_device(backend):
    model = FFMEF(backend=backend).to("meta").train()
    fused = model(torch.empty(2, 2, 9, 11, device="meta"))
    fused.sum().backward()
    assert fused.shape == (2, 1, 9, 11) and fused.device.type == "meta"
    assert all(parameter.grad is not None for parameter in model.parameters())
