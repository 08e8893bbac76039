"""The list of models, and that everything that knows models asks it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ffmef import models
from ffmef.commands import fuse as command
from ffmef.errors import InputError
from ffmef.models import registry
from ffmef.training.config import Config


@pytest.mark.parametrize("spec", registry.MODELS.values(), ids=lambda spec: spec.name)
def test_every_entry_is_true(spec, tmp_path):
    model = spec.build()
    assert registry.of(model) is spec and registry.find(spec.name) is spec
    assert type(model) is getattr(models, spec.architecture)
    for backend in (None, *spec.backends):
        model.backend = backend
        assert model.backend == backend
    model.backend = None
    models.save(model, tmp_path / "w.safetensors")
    assert models.load(tmp_path / "w.safetensors").config() == model.config()
    for task in spec.weights:
        assert registry.of(models.load(spec.weights_for(task))) is spec
    for count in range(spec.fewest, (spec.most or 4) + 1):
        luminance = torch.rand(1, count, 16, 24, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            fused, turned = model.eval()(luminance), model(luminance.flip(1))
        assert fused.shape == (1, 1, 16, 24)
        assert torch.allclose(fused, turned, atol=1e-5) is not spec.ordered


@pytest.mark.parametrize("task", registry.TASKS)
def test_every_task_has_a_model(task):
    assert registry.default(task).weights_for(task) in models.available()


def test_numbers_of_pictures():
    registry.find("pyramid").check_count(9)
    registry.find("ffmef").check_count(2)
    with pytest.raises(InputError, match="images must be 2 pictures for the model FFMEF, got 3"):
        registry.find("ffmef").check_count(3)
    with pytest.raises(InputError, match="images must be at least 2 pictures for the model PyramidFFMEF, got 1"):
        registry.find("pyramid").check_count(1)


def test_unknown_names_are_named():
    with pytest.raises(InputError, match=f"model must be one of {', '.join(sorted(registry.MODELS))}, got 'other'"):
        registry.find("other")
    with pytest.raises(InputError, match="model 'pyramid' can only be used for task mef, got vif"):
        registry.find("pyramid").weights_for("vif")
    with pytest.raises(InputError, match="task must be one of mef, mff, vif, got 'hdr'"):
        registry.default("hdr")


def test_command_line_and_settings_list_the_models():
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for spec in registry.MODELS.values():
        assert f"{spec.name}: {spec.summary}" in text
        assert spec.name in Config.__dataclass_fields__["model"].metadata["help"]


def test_the_registry_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import importlib.util as u; " + (
        "s = u.spec_from_file_location('r', sys.argv[1]); m = u.module_from_spec(s); sys.modules['r'] = m; "
        "sys.modules['ffmef.errors'] = type(sys)('e'); sys.modules['ffmef.errors'].InputError = ValueError; "
        "sys.modules['ffmef'] = type(sys)('f'); s.loader.exec_module(m); print(m.default('mef').name)"
    )
    run = subprocess.run([sys.executable, "-c", code, registry.__file__], capture_output=True, text=True, check=True)
    assert run.stdout == "pyramid\n"


def test_loading_weights_does_not_import_torchs_compiler():
    """Random starting values on the meta device do, and take more than a second."""
    code = (
        "import sys; from ffmef import models; models.load('mef'), models.load('focus'), models.load('mef-pyramid'); "
    )
    code += "print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_renamed_weights_keep_their_old_names(tmp_path, monkeypatch):
    monkeypatch.setattr("ffmef.weight_files.FOLDER", tmp_path)
    models.save(models.PyramidFFMEF(), tmp_path / "mef-pyramid.safetensors")
    with pytest.warns(DeprecationWarning, match="the weights 'pyramid' are now called 'mef-pyramid'"):
        assert models.load("pyramid").bands == 3
    models.save(models.PyramidFFMEF(bands=1), tmp_path / "pyramid.safetensors")
    assert models.load("pyramid").bands == 1  # no warning: the old file is there


# --- the old spellings of backend --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({"engine": "auto"}, None),
        ({"engine": "fused"}, "fused"),
        ({"engine": "eager"}, "eager"),
        ({"engine": "eager", "backend": "reference"}, "reference"),
        ({"engine": "fused", "backend": "reference"}, "fused"),
        ({"recompute": True}, "recompute"),
        ({"recompute": False}, None),
    ],
)
def test_old_arguments_of_ffmef(options, backend):
    with pytest.warns(DeprecationWarning, match="of FFMEF is deprecated: set backend instead") as caught:
        assert models.FFMEF(**options).backend == backend
    assert caught[0].filename == __file__


def test_old_attributes_of_ffmef():
    model = models.FFMEF()
    with pytest.warns(DeprecationWarning) as caught:
        model.engine = "eager"
        assert (model.engine, model.backend) == ("eager", "eager")
        model.engine = "auto"
        assert (model.engine, model.backend) == ("auto", None)
        model.recompute = True
        assert (model.recompute, model.backend) == (True, "recompute")
        model.recompute = False
        assert model.backend is None
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match="got 'fast'"):
        model.engine = "fast"


def test_backends_are_one_network():
    torch.manual_seed(0)
    model = models.FFMEF()
    luminance = torch.rand(1, 2, 20, 24)
    exact = models.FFMEF(backend="reference").double()
    exact.load_state_dict(model.state_dict())
    expected = exact(luminance.double()).float()
    for backend in ("native", "recompute", "eager", "reference", "cpu"):
        if backend == "cpu" and __import__("ffmef").ops.backends()["cpu"]:
            continue
        model.backend = backend
        torch.testing.assert_close(model(luminance), expected, atol=1e-5, rtol=1e-4)
    model.backend = "fused"
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(luminance), expected, atol=1e-5, rtol=1e-4)
