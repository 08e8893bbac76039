"""The whole-network operator against the float64 network, and the choice between it and the eager layers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ffmef
from ffmef import _loader
from ffmef.models import FFMEF
from ffmef.ops.ffmef_forward import CHANNELS, KERNEL_SIZES, ffmef_forward
from networks import TOLERANCE, eager64, fused, random_luminance, random_model, worst

REFERENCE = os.environ.get("FFMEF_REFERENCE_DIR")
DATA = os.environ.get("FFMEF_DATA_DIR")
AUTHORS = ("mef", "mff", "vif")

pytestmark = pytest.mark.skipif(_loader.cpu_missing is not None, reason=str(_loader.cpu_missing))
needs_reference = pytest.mark.skipif(REFERENCE is None, reason="FFMEF_REFERENCE_DIR is not set")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kernel_sizes", KERNEL_SIZES, ids=str)
def test_every_architecture_equals_the_float64_network(channels, kernel_sizes):
    model = random_model(channels, kernel_sizes)
    for size in ((1, 2), (9, 41), (67, 50)):
        luminance = random_luminance(*size)
        assert worst(fused(model, luminance), eager64(model, luminance)) < TOLERANCE, size


# One pixel wide and high, smaller than the filters, around whole vectors, over several tiles and bands.
SIZES = [(1, 2), (2, 1), (1, 70), (70, 1), (3, 3), (4, 15), (5, 16), (6, 17), (63, 8), (64, 9), (65, 10), (129, 31)]
WIDE = [(7, 767), (7, 768), (7, 769), (5, 800), (4, 1537), (66, 1550)]


@pytest.mark.parametrize("size", SIZES + WIDE, ids=str)
def test_every_size_equals_the_float64_network(size):
    model = random_model(seed=1)
    luminance = random_luminance(*size)
    assert worst(fused(model, luminance), eager64(model, luminance)) < TOLERANCE


def test_batches_and_strides():
    model = random_model()
    wide = random_luminance(40, 60, batch=3)
    for luminance in (wide, wide[:, :, ::2, 1::3], wide.flip(0), wide.transpose(2, 3), wide[:1].expand(2, -1, -1, -1)):
        assert worst(fused(model, luminance), eager64(model, luminance)) < TOLERANCE
    assert fused(model, wide[:0]).shape == (0, 1, 40, 60)


def test_weights_in_another_memory_format():
    model = random_model(seed=2)
    luminance = random_luminance(20, 30)
    expected = fused(model, luminance)
    assert torch.equal(fused(model.to(memory_format=torch.channels_last), luminance), expected)


def test_parameters_changed_in_place_take_effect_at_once():
    model = random_model()
    luminance = random_luminance(20, 30)
    before = fused(model, luminance)
    model.extractor.stem.weight.data.mul_(1.5)
    assert not torch.equal(fused(model, luminance), before)
    assert worst(fused(model, luminance), eager64(model, luminance)) < TOLERANCE


@pytest.mark.parametrize("level", [0.0, 0.02, 0.9])
def test_nearly_flat_images_lose_no_more_than_the_eager_network(level):
    # InstanceNorm divides by almost nothing here: statistics by squares minus squared means would fail.
    model = random_model(seed=3)
    luminance = level + 1e-3 * random_luminance(80, 90)
    expected = eager64(model, luminance)
    model.backend = "eager"
    with torch.inference_mode():
        eager = worst(model(luminance), expected)
    assert worst(fused(model, luminance), expected) <= max(4 * eager, 2e-6)


def test_not_a_number_is_not_hidden():
    model = random_model()
    luminance = random_luminance(40, 50)
    luminance[0, 0, 20, 25] = float("nan")
    assert fused(model, luminance).isnan().all()


@pytest.mark.parametrize("size", [(130, 70), (200, 850)], ids=str)
def test_bits_do_not_depend_on_threads_or_runs(size):
    model = random_model()
    luminance = random_luminance(*size)
    expected = fused(model, luminance)
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        assert torch.equal(fused(model, luminance), expected), threads


CHILD = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from networks import fused, random_luminance, random_model
from ffmef import _info
torch.set_num_threads(1)
outs = [fused(random_model(c, k), random_luminance(*s)) for c, k, s in CASES]
torch.save([_info.isa(), *outs], sys.argv[2])
"""
ISA_CASES = [(4, (1, 3, 5), (67, 90)), (8, (1, 3, 5, 7), (20, 37)), (16, (1, 3), (20, 37))]


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "neon"])
def test_every_instruction_set_equals_the_float64_network(isa, tmp_path):
    pytest.importorskip("ffmef._info")
    if (isa == "neon") != (platform.machine() in ("aarch64", "arm64")) and isa != "portable":
        pytest.skip(f"{platform.machine()} has no {isa}")
    script = CHILD.replace("CASES", repr(ISA_CASES))
    environment = {**os.environ, "FFMEF_ISA": isa, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "outs.pt")]
    subprocess.run(command, env=environment, check=True, timeout=120)
    active, *outs = torch.load(tmp_path / "outs.pt")
    if active != isa:
        pytest.skip(f"this machine or build has no {isa}")
    for (channels, kernel_sizes, size), out in zip(ISA_CASES, outs, strict=True):
        assert worst(out, eager64(random_model(channels, kernel_sizes), random_luminance(*size))) < TOLERANCE


PEAK = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
import ffmef
height, width = map(int, sys.argv[1:])
model = ffmef.models.FFMEF(backend="fused").eval()
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
with torch.inference_mode():
    model(torch.rand(1, 2, 16, 16))
    luminance = torch.rand(1, 2, height, width)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of importing
    before = memory("VmRSS:")
    out = model(luminance)
print((memory("VmHWM:") - before - out.nbytes) / (height * width))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_over_inputs_and_output_is_at_most_200_bytes_a_pixel():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ffmef.__file__).parent.parent)}
    command = [sys.executable, "-c", PEAK, "1100", "1210"]
    run = subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True, text=True)
    assert float(run.stdout) <= 200, run.stdout


@needs_reference
@pytest.mark.parametrize("name", AUTHORS)
def test_authors_weights_equal_the_float64_network(name):
    model = ffmef.models.load(Path(REFERENCE) / "official_weights" / f"{name}.pth")
    for size in ((1, 2), (5, 3), (64, 96), (131, 177)):
        luminance = random_luminance(*size)
        luminance = luminance.sort(dim=1).values
        assert worst(fused(model, luminance), eager64(model, luminance)) < TOLERANCE, size


@needs_reference
@pytest.mark.skipif(DATA is None, reason="FFMEF_DATA_DIR is not set")
@pytest.mark.parametrize("name", AUTHORS)
def test_authors_weights_on_photographs(name):
    from ffmef.imaging import colour, io

    model = ffmef.models.load(Path(REFERENCE) / "official_weights" / f"{name}.pth")
    folder = Path(DATA) / "mefb_dev"
    for pair in ("507", "Kluki"):
        paths = sorted((folder / pair).glob(f"{pair}_[AB].*"))
        pixels = [io.read_picture(path).pixels[:200, :301].astype(np.float64) for path in paths]
        planes = [colour.luminance(rgb) / 255 for rgb in pixels]
        luminance = torch.tensor(np.stack(planes))[None].float()
        out, expected = fused(model, luminance), eager64(model, luminance)
        assert worst(out, expected) < TOLERANCE
        grey = [(x.double().clamp(0, 1) * 255).round() for x in (out, expected)]
        assert float((grey[0] - grey[1]).abs().max()) <= 1


# --- the choice of the engine -------------------------------------------------------------------------------------


def refusal(model: FFMEF, luminance: torch.Tensor) -> str:
    model.backend = "fused"
    with pytest.raises(RuntimeError, match="backend 'fused' cannot run here: ") as raised:
        model(luminance)
    return str(raised.value)


def calls_of_operator(model: FFMEF, luminance: torch.Tensor) -> int:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += function is torch.ops.ffmef.ffmef_forward.default
            return function(*args, **(kwargs or {}))

    with Count() as count:
        model(luminance)
    return count.calls


def test_auto_takes_the_engine_where_it_can():
    luminance = random_luminance(12, 14)
    model = FFMEF().eval()
    with torch.no_grad():
        assert calls_of_operator(model, luminance) == 1
        assert calls_of_operator(model.train(), luminance) == 0
        model.eval()
        assert calls_of_operator(model.double(), luminance.double()) == 0
        model.float()
        assert calls_of_operator(FFMEF(kernel_sizes=(3,)).eval(), luminance) == 0
        assert calls_of_operator(FFMEF(channels=6).eval(), luminance) == 0
        assert calls_of_operator(FFMEF(backend="reference").eval(), luminance) == 0
        assert calls_of_operator(FFMEF(backend="eager").eval(), luminance) == 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert calls_of_operator(model, luminance) == 0
    assert calls_of_operator(model, luminance) == 0
    assert calls_of_operator(model.requires_grad_(False), luminance) == 1
    assert calls_of_operator(model, luminance.clone().requires_grad_()) == 0


def test_fused_says_why_it_cannot():
    luminance = random_luminance(12, 14)
    model = FFMEF().eval()
    assert "gradients are enabled" in refusal(model, luminance)
    with torch.no_grad():
        assert "training mode" in refusal(model.train(), luminance)
        model.eval()
        assert "luminance must be float32, got float64" in refusal(model, luminance.double())
        assert "parameters must be float32, got float64" in refusal(model.double(), luminance)
        model.float()
        assert "more than one pixel" in refusal(model, luminance[..., :1, :1])
        assert "channels must be 4, 8 or 16, got 6" in refusal(FFMEF(6).eval(), luminance)
        assert "kernel_sizes must be one of" in refusal(FFMEF(4, (5,)).eval(), luminance)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert "autocast" in refusal(model, luminance)


def test_backend_is_checked():
    with pytest.raises(ValueError, match="backend must be one of fused, native, .*, cuda or None, got 'fast'"):
        FFMEF(backend="fast")
    model = FFMEF()
    with pytest.raises(ValueError, match="got 'fast'"):
        model.backend = "fast"
    assert model.backend is None


def test_backend_is_no_part_of_the_weights():
    assert FFMEF(backend="eager").config() == FFMEF().config()
    assert FFMEF(backend="eager").state_dict().keys() == FFMEF().state_dict().keys()


def test_public_function_checks_its_arguments():
    parameters = [p.detach() for p in FFMEF().parameters()]
    luminance = random_luminance(5, 6)
    with pytest.raises(ValueError, match=r"luminance must be \(B, 2, H, W\), got shape \(1, 3, 5, 6\)"):
        ffmef_forward(torch.rand(1, 3, 5, 6), parameters)
    with pytest.raises(ValueError, match="more than one pixel"):
        ffmef_forward(luminance[..., :1, :1], parameters)
    with pytest.raises(ValueError, match="kernel_sizes"):
        ffmef_forward(luminance, parameters, 4, (1, 7))
    with pytest.raises(RuntimeError, match="luminance must be float32"):
        ffmef_forward(luminance.double(), parameters)
    with pytest.raises(RuntimeError, match="parameters must hold 7662 values .* got 7659"):
        ffmef_forward(luminance, parameters[:-1])


def test_operator_refuses_what_would_read_beyond_its_memory():
    parameters = [p.detach() for p in FFMEF().parameters()]
    operator = torch.ops.ffmef.ffmef_forward
    for luminance in (torch.rand(2, 5, 6), torch.rand(1, 1, 5, 6), torch.rand(1, 2, 5, 6).double()):
        with pytest.raises(RuntimeError, match="luminance must be"):
            operator(luminance, parameters, 4, [1, 3, 5])
    luminance = random_luminance(5, 6)
    with pytest.raises(RuntimeError, match="channels must be"):
        operator(luminance, parameters, 5, [1, 3, 5])
    for sizes in ([], [2], [9]):
        with pytest.raises(RuntimeError, match="kernel_sizes must"):
            operator(luminance, parameters, 4, sizes)
    with pytest.raises(RuntimeError, match="parameters must hold"):
        operator(luminance, parameters, 4, [1, 3])
    with pytest.raises(RuntimeError, match="parameters must be float32"):
        operator(luminance, [p.double() for p in parameters], 4, [1, 3, 5])


# --- torch's machinery --------------------------------------------------------------------------------------------


def test_opcheck():
    parameters = [p.detach() for p in FFMEF().parameters()]
    for luminance in (random_luminance(7, 9, batch=2), random_luminance(7, 9)[..., ::2]):
        torch.library.opcheck(torch.ops.ffmef.ffmef_forward.default, (luminance, parameters, 4, [1, 3, 5]))


def test_backward_refuses():
    model = FFMEF()
    out = torch.ops.ffmef.ffmef_forward(random_luminance(5, 6), list(model.parameters()), 4, [1, 3, 5])
    with pytest.raises(RuntimeError, match="has no derivatives"):
        out.sum().backward()


def test_compile_takes_the_operator_whole():
    model = random_model().requires_grad_(False)
    model.backend = "fused"
    luminance = random_luminance(18, 20)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(luminance), model(luminance))


def test_export_takes_the_operator_whole(tmp_path):
    model = random_model().requires_grad_(False)
    model.backend = "fused"
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    luminance = random_luminance(18, 20)
    with torch.no_grad():
        program = torch.export.export(model, (luminance,), dynamic_shapes=({2: height, 3: width},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.ffmef.ffmef_forward.default]
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    other = random_luminance(31, 45)
    assert torch.equal(loaded(other), fused(model, other))


def test_a_missing_kernel_is_no_wrong_argument(monkeypatch):
    """What this machine lacks is a RuntimeError, what no machine has a ValueError."""
    parameters = list(FFMEF().requires_grad_(False).parameters())
    monkeypatch.setattr(_loader, "cpu_missing", "the library was not built")
    with pytest.raises(RuntimeError, match="the library was not built"):
        ffmef_forward(torch.rand(1, 2, 5, 6), parameters)
    with pytest.raises(ValueError, match="channels must be 4, 8 or 16, got 6"):
        ffmef_forward(torch.rand(1, 2, 5, 6), parameters, 6)


def test_info_names_every_operator_and_its_limits(monkeypatch):
    from ffmef.commands import info
    from ffmef.ops import _backends

    def line(operator: str) -> str:
        return next(line for line in info.lines() if line.split()[0] == operator)

    assert {"adaptive_fuse", "pyramid_exposures", "window_moments"} <= set(_backends.declared())
    assert line("adaptive_fuse").split(None, 1)[1].startswith("reference, cpu")
    assert "cpu (float32; no gradients; FFMEF of 4, 8, 16 channels" in line("ffmef_forward")
    assert "{1,3,5,7}" in line("ffmef_forward")
    monkeypatch.setattr(_loader, "cpu_missing", "the library was not built")
    assert line("norm_activation").split() == ["norm_activation", "none"]
    monkeypatch.setattr(_loader, "cpu_missing", None)
    stale = replace(_backends.declared()["norm_activation"]["cpu"], stale=True)
    monkeypatch.setitem(_backends.declared(), "norm_activation", {"cpu": stale})
    assert line("norm_activation").endswith("not cpu: the native library is older than this package: build it again")
