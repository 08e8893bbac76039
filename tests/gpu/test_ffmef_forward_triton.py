"""The whole network's Triton kernels in Triton's interpreter, against the float64 network, and faults planted in them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ffmef.models import FFMEF
from ffmef.ops import ffmef_forward
from ffmef.ops._backends import why_not
from ffmef.ops.ffmef_forward import CHANNELS, KERNEL_SIZES
from networks import TOLERANCE, eager64, random_luminance, random_model, worst
from triton_guard import Mutant, guarded, in_nan, inside, needs_triton, plant

SOURCE = Path(__file__).resolve().parents[2] / "ffmef/kernels/ffmef_forward.py"
pytestmark = needs_triton


def use_tile(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    from ffmef.kernels import launch

    monkeypatch.setattr(launch, "tile", (rows, columns, 1))


@inside
@pytest.mark.parametrize(
    "channels, kernel_sizes, size",
    [(4, (1, 3, 5), (1, 2)), (8, (1, 3), (9, 17))],
    ids=str,
)
def test_equals_the_float64_network(channels, kernel_sizes, size, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tile(monkeypatch, 16, 32)
    model, luminance = random_model(channels, kernel_sizes), random_luminance(*size)
    with torch.inference_mode():
        out = ffmef_forward(luminance, list(model.parameters()), channels, kernel_sizes, backend="triton")
    assert worst(out, eager64(model, luminance)) < TOLERANCE


def chain(kernels: ModuleType, model: FFMEF, luminance: torch.Tensor) -> list[torch.Tensor]:
    """Run one launch of every kind: residual, step and mix, merge, transposed step, and the head of level 1."""
    network = kernels.network_of(luminance, list(model.parameters()), model.channels, model.kernel_sizes)
    stem = kernels._Map(luminance, kernels.STEM)
    first = network.residual("encode_1", stem)
    mixed = network.mix("skip_1", stem, network.step("down_1", first))
    merged = network.residual("merge_1", kernels._Map(first, kernels.MAP), mixed)
    up = network.mix("skip_5", kernels._Map(merged, kernels.MAP), network.step("up_1", merged))
    fused = luminance.new_zeros((luminance.shape[0], 1, *luminance.shape[2:]))
    network.fuse_level(1, model.kernel_sizes[1], up, fused.add_(0.25))
    return [first, mixed, merged, up, fused]


def chain64(model: FFMEF, luminance: torch.Tensor) -> list[torch.Tensor]:
    """The same by the model's own layers in float64."""
    from ffmef.ops import adaptive_fuse

    model = model.double()
    layers, wide = model.extractor, luminance.double()
    stem = layers.stem(wide.flatten(0, 1).unsqueeze(1))
    first = layers.encode_1(stem)
    mixed = layers.skip_1(stem, layers.down_1(first))
    merged = layers.merge_1(first, mixed)
    up = layers.skip_5(merged, layers.up_1(merged))
    attended = model.predictor.attentions[1](up.unflatten(0, wide.shape[:2]))
    filters = model.predictor.heads[1](attended.flatten(0, 1)).unflatten(0, wide.shape[:2])
    fused = 0.25 + adaptive_fuse(wide, [filters], model.fuse.alphas[1:2])
    model.float()
    return [first, mixed, merged, up, fused.unsqueeze(1)]


def chain_error(kernels: ModuleType, size: tuple[int, int], batch: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the chain's error in units of what is allowed; infinity after a stray access."""
    model, luminance = random_model(4, (1, 3)), in_nan(random_luminance(*size, batch=batch))
    known = [luminance]
    with torch.inference_mode():
        expected = chain64(model, luminance)
        with guarded(monkeypatch, known) as strayed:
            found = chain(kernels, model, luminance)
            if strayed():
                return float("inf")
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    return max(error if error == error else float("inf") for error in errors) / 1e-5


@inside
@pytest.mark.parametrize("size, batch", [((5, 17), 1), ((3, 7), 2)], ids=str)
def test_every_layer_of_several_tiles(size, batch, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffmef.kernels import ffmef_forward as kernels

    use_tile(monkeypatch, 4, 16)
    assert chain_error(kernels, size, batch, monkeypatch) <= 1


@inside
def test_head_of_seven_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    from ffmef.kernels import ffmef_forward as kernels
    from ffmef.ops import adaptive_fuse

    use_tile(monkeypatch, 4, 16)
    model, luminance = random_model(4, (1, 3, 5, 7)), random_luminance(3, 9)
    with torch.inference_mode():
        network = kernels.network_of(luminance, list(model.parameters()), 4, model.kernel_sizes)
        features = torch.randn(2, 4, 3, 9)
        fused = torch.zeros(1, 1, 3, 9)
        network.fuse_level(3, 7, features, fused)
        model.double()
        attended = model.predictor.attentions[3](features.double().unsqueeze(0))
        filters = model.predictor.heads[3](attended.flatten(0, 1)).unsqueeze(0)
        expected = adaptive_fuse(luminance.double(), [filters], model.fuse.alphas[3:])
    torch.testing.assert_close(fused[0].double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@inside
def test_parameters_that_do_not_fit_are_named() -> None:
    model, luminance = random_model(4, (1, 3)), random_luminance(3, 4)
    parameters = list(model.parameters())
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="parameters must hold .* values .* got"):
            ffmef_forward(luminance, parameters, 4, (1, 3, 5), backend="triton")
        assert ffmef_forward(luminance[:0], parameters, 4, (1, 3), backend="triton").shape == (0, 1, 3, 4)


@pytest.mark.parametrize("kernel_sizes", KERNEL_SIZES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_layout_takes_every_parameter_in_its_place(channels: int, kernel_sizes: tuple[int, ...]) -> None:
    from ffmef.kernels.ffmef_forward import layout

    model, plan = FFMEF(channels, kernel_sizes), layout(channels, kernel_sizes)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert plan.parameters == flat.numel()
    used = torch.cat([plan.index, plan.factor]).unique()
    assert torch.equal(used, torch.arange(flat.numel() + 2)), "all of them, and the constants 1 and 0"
    packed = torch.cat([flat, torch.tensor([1.0, 0.0])])[plan.index]
    step = model.extractor.up_1.conv.weight  # [input][output][row][column]
    found = packed[plan.places["up_1.conv.weight"] :][: step.numel()].view(channels, 3, 3, channels)
    assert torch.equal(found, step.detach().flip(2, 3).permute(0, 2, 3, 1))


def test_the_choice_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what the model asks, of tensors that only say where they are."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        luminance, parameter = torch.empty(1, 2, 4, 4, device="cuda"), torch.empty(3, device="cuda")

        def reason(luminance: torch.Tensor, *parameters: torch.Tensor) -> str | None:
            return why_not("ffmef_forward", "triton", luminance=luminance, parameters=list(parameters))

        assert reason(luminance, parameter) is None
        assert reason(luminance, torch.empty(3, device="cuda:1")) == (
            "parameters must be on cuda:0 like luminance, got cuda:1"
        )
        assert "must be float32, got float64" in reason(luminance.double(), parameter)
        assert FFMEF().eval().not_fused(luminance, [parameter]) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_not("ffmef_forward", "triton", channels=4, kernel_sizes=(1, 3, 5)) == "triton is not installed"


MUTANTS = [
    Mutant("no mask on the store of maps", "tl.store(target, total, mask=inside[None, :, :])", "tl.store(target, total)"),
    Mutant("no mask on the store of mixes", "* value, mask=inside[None, :, :])", "* value)"),
    Mutant("a shift beside the image", "        value = tl.where(shown, value, 0.0)\n    if KIND == GATED", "    if KIND == GATED"),
    Mutant("the stem's bias beside the image", "tl.where(shown, tl.load(stem + channel) * value + tl.load(stem + C + channel), 0.0)",
           "tl.load(stem + channel) * value + tl.load(stem + C + channel)"),
    Mutant("moments beside the image", "tl.where(inside, values - mean[:, None, None], 0.0)", "values - mean[:, None, None]"),
    Mutant("no spread between tiles", "deviation + count * between * between", "deviation"),
    Mutant("all tiles full", "return (rows * tl.minimum(width - tile % across * COLUMNS, COLUMNS))", "return (rows * COLUMNS + 0 * tile)"),
    Mutant("all channels normalised", 'f"{name}.norm", self.channels // 2)', 'f"{name}.norm", self.channels)'),
    Mutant("a steeper slope", "SLOPE = tl.constexpr(0.2)", "SLOPE = tl.constexpr(0.21)"),
    Mutant("taps not turned round", ".transpose(0, 1).flip(2, 3)", ".transpose(0, 1)"),
    Mutant("gains exchanged", "tl.load(gains) * total + tl.load(gains + 1) * skip", "tl.load(gains + 1) * total + tl.load(gains) * skip"),
    Mutant("the other image's attention", "gates + (batch * IMAGES + n) * pixels + place, gate", "gates + (batch * IMAGES + 1 - n) * pixels + place, gate"),
    Mutant("no bias of the filters", "padded[:, :taps], padded[:, taps] = project, project_bias", "padded[:, :taps] = project"),
    Mutant("another level's alpha", "int(alphas[level])", "int(alphas[0])"),
    Mutant("levels replace each other", "ADD=level > 0", "ADD=False"),
]  # fmt: skip


@inside
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_fault_is_found(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tile(monkeypatch, 4, 16)
    kernels = plant(mutant, SOURCE, tmp_path)
    size = (3, 17) if "tile" in mutant.name else (3, 6)
    assert chain_error(kernels, size, 1, monkeypatch) > 1
