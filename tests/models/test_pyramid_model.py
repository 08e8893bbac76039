"""PyramidFFMEF: any number of exposures, any order, any size; convex, local, by what each exposure has recorded."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ffmef
from ffmef.adjust import Adjustments
from ffmef.cli import main
from ffmef.errors import InputError
from ffmef.imaging.colour import rgb_to_ycbcr, ycbcr_to_rgb
from ffmef.imaging.io import Picture, read_picture, write_picture
from ffmef.losses.structural import mef_ssim
from ffmef.models import PyramidFFMEF, load, merge_chroma, save
from ffmef.models.pyramid import halve, into_gamut, into_range, shrink, smooth_chroma, spread
from ffmef.models.weights import serialise
from ffmef.pipeline import default_weights, fuse_pictures
from ffmef.training.trainer import load_initial

torch.set_num_threads(1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = PyramidFFMEF().eval()
    with torch.no_grad():
        model.predictor.head.weight.normal_(std=0.1)  # far from the plain mean
        model.predictor.statistics.bias.normal_()
    return model.requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (65, 63), (128, 128)])
@pytest.mark.parametrize("count", [2, 5])
def test_any_size_and_number(model, size, count):
    luminance = torch.rand(2, count, *size)
    assert model(luminance).shape == (2, 1, *size)
    assert torch.allclose(model(luminance)[1:], model(luminance[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [3, 1, 0, 2]])
def test_order_does_not_matter(model, order):
    luminance = torch.rand(1, 4, 70, 90)
    straight, mixed = model(luminance), model(luminance[:, order])
    torch.testing.assert_close(mixed, straight, rtol=1e-4, atol=1e-4)
    assert (model(luminance[:, [0, 1, 2, 2]]) - straight).abs().max() > 0.01


@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_picture_with_itself_stays(model, count):
    luminance = torch.rand(1, 1, 61, 83)
    torch.testing.assert_close(model(luminance.expand(1, count, -1, -1)), luminance, rtol=0, atol=2e-6)
    picture = torch.randint(0, 256, (61, 83, 3), dtype=torch.uint8)
    assert torch.equal(model.fuse_rgb([picture] * count), picture)


def test_pictures_in_any_order_give_the_same_bits(model):
    pictures = [torch.randint(low, low + 128, (40, 50, 3), dtype=torch.uint8) for low in (0, 60, 60, 120)]
    assert torch.equal(model.fuse_rgb(pictures), model.fuse_rgb([pictures[k] for k in (2, 0, 3, 1)]))


def test_shares_sum_to_one_and_flat_pictures_stay_between(model):
    shares, _ = model.predict(torch.rand(1, 3, 32, 48))
    torch.testing.assert_close(shares.sum(2), torch.ones(1, 6, 8, 12))
    fused = model(torch.tensor([0.3, 0.7]).view(1, 2, 1, 1).expand(1, 2, 64, 80))
    assert fused.min() > 0.3 - 1e-5 and fused.max() < 0.7 + 1e-5


def test_what_is_far_does_not_matter():
    """Beyond the reach of grids and octaves nothing changes: no statistic is taken over the whole picture."""
    model = PyramidFFMEF(channels=(16, 16), octaves=1).eval()
    with torch.no_grad():
        model.predictor.head.weight.normal_(std=0.5)
        pictures = torch.rand(1, 2, 64, 512)
        other = pictures.clone()
        other[..., 256:] = torch.rand(1, 2, 64, 256)
        near, far = model(pictures), model(other)
    assert torch.equal(near[..., :128], far[..., :128]) and not torch.equal(near, far)


def test_borders_are_repeated(model):
    """A picture of one brightness has the same weights in the corner as in the middle."""
    shares, gains = model.predict(torch.tensor([0.3, 0.7]).view(1, 2, 1, 1).expand(1, 2, 64, 64))
    for maps in (shares, gains):
        torch.testing.assert_close(maps, maps[..., 4:5, 4:5].expand_as(maps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 8)])
def test_shrink_is_its_filter(size):
    maps = torch.rand(2, 3, *size)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    padded = F.pad(maps, (1, 1 + size[1] % 2, 1, 1 + size[0] % 2), mode="replicate").flatten(0, 1).unsqueeze(1)
    expected = F.conv2d(padded, (taps[:, None] * taps)[None, None], stride=2).view(2, 3, -(-size[0] // 2), -1)
    torch.testing.assert_close(shrink(maps), expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 12)])
@pytest.mark.parametrize("step", [1, 2, 4, 2**13])
def test_spread_is_its_filter(size, step):
    maps, (height, width) = torch.rand(2, 3, *size), size
    taps = ((-step, 1), (0, 2), (step, 1))
    expected = torch.zeros_like(maps)
    for row, column in itertools.product(range(height), range(width)):
        for (down, a), (right, b) in itertools.product(taps, taps):
            near = maps[..., min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)]
            expected[..., row, column] += a * b / 16 * near
    torch.testing.assert_close(spread(maps, step), expected)


def test_the_base_is_blended_over_fine_and_further_octaves():
    """By hand for four octaves and constant weights: what each is shrunk to, or spread to with taps farther apart."""
    torch.manual_seed(2)
    model = PyramidFFMEF(bands=0, octaves=4).eval()
    cells, shares = torch.rand(1, 2, 16, 24), torch.tensor([[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])
    gains = torch.tensor([[0.5, -0.2], [0.3, 0.1], [-0.4, 0.6]])

    def maps(values):
        return values.view(1, -1, 2, 1, 1).expand(1, -1, 2, 16, 24)

    weights = shares * (1 + gains)
    got = model._base(cells, maps(shares), maps(weights)[:, 0], maps(gains[1:]), 0.0)
    half = shrink(cells)
    quarter = shrink(half)
    near = spread(quarter, 1)
    far = spread(near, 2)

    def blend(plane, band):
        return (plane.view(1, 2, 1, 1) * band).sum(1, keepdim=True)

    def expand(level):
        return F.interpolate(level, scale_factor=2.0, mode="bilinear")

    out = blend(shares[2], far) + blend(weights[2], near - far) + blend(weights[1], quarter - near)
    out = expand(out) + blend(weights[1], half - expand(quarter))
    torch.testing.assert_close(got, expand(out) + blend(weights[0], cells - expand(half)))


@pytest.mark.parametrize("count", [2, 3, 9])
def test_gains_grow_with_the_number_of_exposures(count):
    """By 0.3 (1 - 2 / N) of the bands and 1.5 (1 - 2 / N) of the base and the fine octaves: by nothing for a pair."""
    model = PyramidFFMEF()
    torch.nn.init.zeros_(model.predictor.head.weight)
    torch.nn.init.ones_(model.predictor.head.bias)
    half = torch.linspace(0.3, 0.7, count).view(1, count, 1, 1).expand(1, count, 8, 8)
    gains = model.predict(half)[1] / (0.4 / 0.44)
    more = 1 - 2 / count
    for plane, factor in enumerate([1 + 0.3 * more] * 3 + [1 + 1.5 * more] * 2 + [1]):
        torch.testing.assert_close(gains[:, plane], torch.full_like(gains[:, plane], factor))


def test_the_base_is_blended_over_octaves():
    """By hand for one octave, bands left out: shares of the base below, of the last plane at the bottom."""
    torch.manual_seed(1)
    model = PyramidFFMEF(bands=0, octaves=1).eval()
    with torch.no_grad():
        model.predictor.head.weight.normal_()
        luminance = torch.rand(1, 2, 32, 32)
        shares, gains = model.predict(halve(luminance))
        coarse = F.avg_pool2d(luminance, 8)
        lower = (shrink(shares[:, 2]) * shrink(coarse)).sum(1, keepdim=True)
        band = coarse - F.interpolate(shrink(coarse), scale_factor=2.0, mode="bilinear")
        base = F.interpolate(lower, scale_factor=2.0, mode="bilinear")
        base = base + (shares[:, 0] * (1 + gains[:, 0]) * band).sum(1, keepdim=True)
        for _ in range(3):
            base = F.interpolate(base, scale_factor=2.0, mode="bilinear")
        torch.testing.assert_close(model(luminance), base)


def test_validity_takes_a_frame_out(model):
    """Where a frame must not be used its share is nearly nothing, whatever it shows."""
    luminance = torch.rand(1, 3, 96, 96)
    validity = torch.ones_like(luminance)
    validity[:, 1, :, :48] = 0
    shares = model.fuse(luminance, validity)[1]
    assert shares[:, 1, :, :6].max() < 1e-2 < shares[:, 1, :, 7:].mean()
    torch.testing.assert_close(model(luminance, torch.ones_like(luminance)), model(luminance), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"validity must be \(1, 3, 96, 96\), got shape \(3, 96, 96\)"):
        model(luminance, validity[0])


def test_chroma_of_what_is_recorded_wins():
    """Of a white and a coloured exposure the coloured one, of three the two that agree, of equal ones the mean."""
    orange = torch.tensor([180.0, 120.0, 60.0])
    white, grey = torch.full((3,), 255.0), torch.full((3,), 100.0)
    shares = torch.full((1, 2, 1, 1), 0.5)

    def merged(*colours):
        rgb = torch.stack(colours).view(1, -1, 3, 1, 1).expand(1, len(colours), 3, 8, 8)
        return merge_chroma(rgb, shares[:, :1].expand(1, len(colours), 1, 1) * 2 / len(colours))[0, :, 0, 0] - 128

    own = rgb_to_ycbcr(orange.view(1, 3, 1, 1))[0, 1:, 0, 0] - 128
    torch.testing.assert_close(merged(orange, white), own, rtol=0.05, atol=0)
    torch.testing.assert_close(merged(orange, grey), own / 2, rtol=1e-4, atol=1e-4)
    assert (merged(orange, grey, grey) / own).max() < 0.06
    torch.testing.assert_close(merged(orange, orange, orange), own, rtol=1e-4, atol=1e-4)

    # An ember's blue is lost in the dark: its red, brightened, would be pink, so clipped yellow has half of the say.
    ember, yellow = torch.tensor([100.0, 26.0, 1.0]), torch.tensor([248.0, 248.0, 182.0])
    red = (rgb_to_ycbcr(ember.view(1, 3, 1, 1)) - 128)[0, 2].item()
    assert merged(ember, yellow)[1] < 0.65 * red


def test_noise_of_chroma_is_smoothed_where_exposures_differ():
    """Pairs of columns approach each other; edges, texture, equal exposures and the last of an odd width stay."""
    chroma = 128 + torch.tensor([[2.0, -2.0, 60.0, -60.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]]).double().view(1, 2, 1, 5)
    y = torch.tensor([60.0, 60.0 + 72 / 1.164383]).double().view(1, 2, 1, 1).expand(1, 2, 1, 5)  # 72 greys apart
    want = [2 - 2 * 0.9 * 0.8, -2 + 2 * 0.9 * 0.8, 60 - 60 * 0.9 * 16 / 3616, -60 + 60 * 0.9 * 16 / 3616, 3]
    flat, texture = (
        torch.full((1, 1, 1, 5), 99.0).double(),
        torch.tensor([90.0, 102.0, 9, 9, 9]).double().view(1, 1, 1, 5),
    )
    smoothed = smooth_chroma(chroma, flat, y)
    torch.testing.assert_close(smoothed[0, 0, 0] - 128, torch.tensor(want).double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(smoothed[:, 1], chroma[:, 1])
    assert torch.equal(smooth_chroma(chroma, flat, y[:, :1].expand(1, 3, 1, 5)), chroma)
    part = smooth_chroma(chroma, texture, y)[0, 0, 0, :2] - 128
    torch.testing.assert_close(part, torch.tensor([1, -1]).double() * (2 - 2 * 0.9 * 16 / 164), rtol=1e-5, atol=1e-5)
    one = torch.tensor([1.0, 0.0]).double().view(1, 2, 1, 1).expand_as(y)
    assert torch.equal(smooth_chroma(chroma, flat, y, one), chroma)  # nothing differs from what must not be used


def test_hue_is_kept_outside_of_rgb():
    ycbcr = torch.tensor([[200.0, 120.0, 180.0], [20.0, 100.0, 150.0], [120.0, 130.0, 125.0]]).T.view(1, 3, 3, 1)
    rgb, free = into_gamut(ycbcr), ycbcr_to_rgb(ycbcr)
    assert rgb.min() >= 0 and rgb.max() <= 255
    assert torch.equal(rgb[..., 2, :], free[..., 2, :])
    back = rgb_to_ycbcr(rgb)
    torch.testing.assert_close(back[:, 0], ycbcr[:, 0], rtol=1e-4, atol=1e-3)
    angles = [torch.atan2(maps[:, 2] - 128, maps[:, 1] - 128) for maps in (back, ycbcr)]
    torch.testing.assert_close(*angles, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("greys", "validity", "fused", "want", "white"),
    [
        ((90, 140), None, 120, 120, 252),
        ((90, 255), None, 300, 218 + 34 * 82 / (34 + 82), 252),  # far beyond white, and still below it
        ((90, 255), None, 252, 235, 252),
        ((245, 255), None, 252, 245 + 7 * 7 / (7 + 7), 252),  # the knee is no lower than any exposure
        ((254, 255), None, 300, 254, 254),
        ((255, 255), None, 300, 255, 255),  # white where all are white
        ((0, 255), None, -30, 24 - 24 * 54 / (24 + 54), 252),
        ((0, 6), None, -6, 6 - 6 * 12 / (6 + 12), 252),  # the toe is no higher than any exposure
        ((0, 0), None, -30, 0, 252),  # black where all are black
        ((245, 0, 255), (1, 0, 1), 252, 245 + 7 * 7 / (7 + 7), 252),  # what must not be used is not there
        ((0, 255, 6), (1, 0, 1), -6, 6 - 6 * 12 / (6 + 12), 252),
        ((255, 243), (1, 0.25), 254, 252, 252),  # 255 - 0.25 * 12: no room, above white
        ((255, 247), (1, 0.25), 254, 253, 253),
        ((0, 40), (1, 0.25), 0, 10 - 10 * 10 / (10 + 10), 252),
    ],
)
def test_luminance_is_compressed_as_far_as_exposures_show_more(greys, validity, fused, want, white):
    exposures = torch.tensor(greys, dtype=torch.float64).view(1, -1, 1, 1, 1).expand(1, -1, 3, 2, 3)
    usable = None if validity is None else torch.tensor(validity).double().view(1, -1, 1, 1).expand(1, -1, 2, 3)
    y, most = into_range(torch.full((1, 1, 2, 3), fused / 1.164383 + 16).double(), exposures, usable)
    assert (1.164383 * (y - 16) - want).abs().max() < 1e-3 and (most - white).abs().max() < 1e-6


def test_white_is_the_least_peak_of_the_exposures():
    exposures = torch.tensor([[[254.0, 40, 40], [40, 253, 40]]]).view(1, 2, 3, 1, 1)
    assert into_range(torch.full((1, 1, 1, 1), 80.0), exposures)[1].item() == 253
    ycbcr = torch.tensor([180.0, 100, 240]).view(1, 3, 1, 1)
    for white in (255.0, 252.0):
        assert into_gamut(ycbcr, white).amax().item() == pytest.approx(white, abs=2e-3)


def test_adjustments_do_what_their_formulas_say(model):
    """Brightness is a gain of shadows, saturation 0 is grey, contrast leaves the lowest level."""
    model.predictor.head.weight.mul_(0.02)
    pictures = [torch.randint(low, low + 100, (64, 64, 3), dtype=torch.uint8) for low in (10, 100)]
    plain = model.fuse_rgb(pictures).float()

    def fused(**changes):
        return model.fuse_rgb(pictures, adjust=Adjustments(**changes)).float()

    assert torch.equal(fused(), plain)
    grey, brighter = fused(saturation=-1), fused(saturation=-1, brightness=1)
    assert (grey.amax(-1) - grey.amin(-1)).max() == 0
    torch.testing.assert_close(brighter / 255, 2 * (grey / 255) / (1 + grey / 255), rtol=0, atol=0.008)
    assert (fused(prefer="dark").mean() < plain.mean() - 2) and (fused(prefer=0.5).mean() > plain.mean() + 1)
    halves = [fused(prefer=value).mean() for value in (-0.2, 0.0, 0.2)]
    assert abs((halves[2] - halves[1]) / (halves[1] - halves[0]) - 1) < 0.3
    luminance = torch.rand(1, 2, 64, 64)
    by_contrast = [model.fuse(luminance, adjust=Adjustments(contrast=value))[0] for value in (-1, 0, 1)]
    torch.testing.assert_close(by_contrast[2] - by_contrast[1], by_contrast[1] - by_contrast[0], rtol=0, atol=1e-4)
    assert by_contrast[0].std() < 0.05 * by_contrast[1].std()


def test_preference_follows_brightness_not_order(model):
    luminance = torch.rand(1, 3, 32, 32) * torch.tensor([0.2, 1.0, 0.5]).view(1, 3, 1, 1)
    adjust = Adjustments(prefer=2)
    one = model.fuse(luminance, adjust=adjust)[0]
    torch.testing.assert_close(model.fuse(luminance[:, [2, 1, 0]], adjust=adjust)[0], one, rtol=1e-4, atol=1e-4)


def test_adjustments_are_checked():
    for options, message in (
        ({"contrast": -2}, "contrast must be a number from -1 to 4, got -2"),
        ({"brightness": float("nan")}, "brightness must be a number from -4 to 4, got nan"),
        ({"prefer": "middle"}, "prefer must be dark, bright or a number from -4 to 4, got 'middle'"),
    ):
        with pytest.raises(InputError) as caught:
            Adjustments(**options)
        assert str(caught.value) == message


@pytest.mark.parametrize("options", [{}, {"bands": 0}, {"bands": 2, "channels": (8,), "stem": 4, "octaves": 2}])
def test_options_and_gradients(options):
    model = PyramidFFMEF(**options)
    model(torch.rand(1, 2, 33, 47)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_multiply_adds_stay_within_the_budget():
    """At most 230 a pixel for a pair, the cost at which the coarse model was found worthwhile."""
    model, total = PyramidFFMEF(), 0

    def count(module, inputs, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.rand(1, 2, 512, 512))
    assert total / 512**2 < 230


def test_weights_survive_a_file(model, tmp_path):
    save(model, tmp_path / "weights.safetensors")
    again = load(tmp_path / "weights.safetensors")
    assert isinstance(again, PyramidFFMEF) and again.config() == model.config()
    luminance = torch.rand(1, 2, 40, 50)
    assert torch.equal(again.requires_grad_(False)(luminance), model(luminance))


def first_design():
    """Weights as the first design saved them: a linear layer for the whole picture, no statistics, no octaves."""
    state = {name: torch.randn_like(value) for name, value in PyramidFFMEF().state_dict().items()}
    for name in ("prior", "predictor.statistics.weight", "predictor.statistics.bias"):
        del state[name]
    state["predictor.overall.weight"] = state["predictor.overall.weight"][..., 0, 0]
    for name in ("predictor.head.weight", "predictor.head.bias"):
        state[name] = state[name][:8]
    return state


FIRST_CONFIG = '{"bands": 3, "channels": [16, 16, 32, 32], "stem": 8}'


@pytest.mark.parametrize("architecture", ["PyramidFFMEF", "FirstPyramidFFMEF"])
def test_training_goes_on_from_the_first_design(tmp_path, architecture):
    """The trunk is taken over; octaves begin as the base does, statistics without effect."""
    state, model = first_design(), PyramidFFMEF()
    header = {"architecture": architecture, "config": FIRST_CONFIG}
    (tmp_path / "first.safetensors").write_bytes(serialise(state, header))
    load_initial(model, str(tmp_path / "first.safetensors"))
    ours = model.predictor
    assert torch.equal(ours.encode[2].weight, state["predictor.encode.2.weight"])
    overall = F.linear(torch.ones(1, 32), state["predictor.overall.weight"], state["predictor.overall.bias"])
    torch.testing.assert_close(ours.overall(torch.ones(1, 32, 1, 1))[0, :, 0, 0], overall[0])
    assert torch.equal(ours.head.weight, state["predictor.head.weight"][[0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7, 7]])
    assert not ours.statistics.weight.any() and not ours.statistics.bias.any()


def test_colour_comes_from_what_may_be_used_alone():
    """Exposures that must not be used do not make the only one that may be suspicious."""
    rgb = torch.tensor([[200.0, 60, 40], [30, 60, 220], [40, 70, 230]], dtype=torch.float64)
    rgb = rgb.view(1, 3, 3, 1, 1).expand(1, 3, 3, 8, 8)
    shares = torch.full((1, 3, 1, 1), 1 / 3, dtype=torch.float64)
    for only in range(3):
        usable = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
        usable[:, only] = 1
        merged = merge_chroma(rgb, shares, usable)[0, :, 0, 0]
        torch.testing.assert_close(merged, rgb_to_ycbcr(rgb)[0, only, 1:, 0, 0], rtol=0, atol=0.05)


def test_training_goes_on_from_the_second_design(tmp_path):
    """All octaves begin with the plane that they had in common; before training, they fuse as they did."""
    state, model = PyramidFFMEF().state_dict(), PyramidFFMEF()
    planes = [0, 1, 2, 3, 5]
    state["prior"] = torch.rand(6)[planes]
    for name in ("predictor.head.weight", "predictor.head.bias"):
        state[name] = torch.randn_like(state[name])[planes + [6 + plane for plane in planes]]
    header = {"architecture": "PyramidFFMEF", "config": FIRST_CONFIG[:-1] + ', "octaves": 5, "design": 2}'}
    (tmp_path / "second.safetensors").write_bytes(serialise(state, header))
    load_initial(model, str(tmp_path / "second.safetensors"))
    shares, gains = model.predict(torch.rand(1, 2, 20, 24))
    assert torch.equal(shares[:, 4], shares[:, 5]) and torch.equal(gains[:, 4], gains[:, 5])
    assert torch.equal(model.prior, state["prior"][[0, 1, 2, 3, 4, 4]])
    assert torch.equal(model.predictor.stem.weight, state["predictor.stem.weight"])


def test_training_goes_on_from_the_third_design(tmp_path):
    """Its parameters are today's; only the octaves were computed otherwise."""
    state = {name: torch.randn_like(value) for name, value in PyramidFFMEF().state_dict().items()}
    header = {"architecture": "PyramidFFMEF", "config": FIRST_CONFIG[:-1] + ', "octaves": 5, "design": 3}'}
    (tmp_path / "third.safetensors").write_bytes(serialise(state, header))
    model = PyramidFFMEF()
    load_initial(model, str(tmp_path / "third.safetensors"))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="weights of its third, which only 'ffmef train --initial' still takes"):
        load(tmp_path / "third.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("predictor.overall.weight"), "predictor.overall.weight must have 2 dimensions"),
        (lambda state: state.pop("predictor.stem.bias"), "Missing key"),
        (lambda state: state.update({"predictor.head.bias": torch.zeros(6)}), "head must have 8 planes, got 6"),
        (lambda state: state.update({"predictor.stem.bias": torch.full((8,), torch.nan)}), "must be finite"),
    ],
)
def test_broken_weights_of_the_first_design_are_named(tmp_path, change, message):
    state = first_design()
    change(state)
    header = {"architecture": "PyramidFFMEF", "config": FIRST_CONFIG}
    (tmp_path / "first.safetensors").write_bytes(serialise(state, header))
    with pytest.raises(InputError, match=message):
        load_initial(PyramidFFMEF(), str(tmp_path / "first.safetensors"))


def test_weights_of_the_first_design_do_not_fuse(tmp_path, capsys):
    path = tmp_path / "first.safetensors"
    path.write_bytes(serialise(first_design(), {"architecture": "PyramidFFMEF", "config": FIRST_CONFIG}))
    for index, grey in enumerate((40, 200)):
        write_picture(tmp_path / f"{index}.png", Picture(np.full((20, 30, 3), grey, np.uint8)))
    files = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    assert main(["fuse", *files, "-o", str(tmp_path / "o.png"), "--weights", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "must be of PyramidFFMEF's present design, got weights of its first" in said
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"model": "steam"}, "model must be one of ffmef, focus, pyramid, got 'steam'"),
        ({"model": "pyramid", "task": "mff"}, "model 'pyramid' can only be used for task mef, got mff"),
        (
            {"model": "pyramid", "weights": "mef"},
            "weights cannot be used with the name of a model, got mef and 'pyramid'",
        ),
    ],
)
def test_names_of_models_are_checked(options, message):
    pictures = [np.full((9, 12, 3), grey, np.uint8) for grey in (40, 200)]
    with pytest.raises(InputError) as caught:
        ffmef.fuse(pictures, **options)
    assert message in str(caught.value)


def test_read_only_pictures_fuse_as_others():
    pictures = [np.random.default_rng(seed).integers(0, 256, (45, 70, 3), dtype=np.uint8) for seed in range(3)]
    fused = ffmef.fuse(pictures)
    for picture in pictures:
        picture.setflags(write=False)
    assert np.array_equal(ffmef.fuse(pictures), fused)


def test_metadata_follow_the_darkest_whatever_the_order():
    pictures = [Picture(np.full((20, 30, 3), grey, np.uint8), exif=b"%d" % grey) for grey in (90, 20, 200)]
    for order in ([0, 1, 2], [2, 0, 1]):
        assert fuse_pictures([pictures[i] for i in order]).exif == b"20"


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"luminance must be \(B, N, H, W\) with N >= 2, got shape \(1, 1, 8, 8\)"):
        PyramidFFMEF()(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="bands must be 0 to 3, got 4"):
        PyramidFFMEF(bands=4)
    with pytest.raises(ValueError, match="octaves must be 0 to 16, got 17"):
        PyramidFFMEF(octaves=17)
    with pytest.raises(ValueError, match="design must be 4, got 1"):
        PyramidFFMEF(design=1)


def test_bundled_weights_fuse_by_default():
    """Two and three exposures without a word about the model; better lit than either end, in any order."""
    examples = Path(__file__).resolve().parents[2] / "examples"
    bracket = [read_picture(examples / f"sunset_{name}.jpg").pixels for name in ("under", "middle", "over")]
    pair = [bracket[0], bracket[2]]
    assert default_weights("mef") == "mef-pyramid"
    assert np.array_equal(ffmef.fuse(pair), ffmef.fuse(pair, model="pyramid"))
    assert not np.array_equal(ffmef.fuse(pair), ffmef.fuse(pair, model="ffmef"))
    fused = ffmef.fuse(bracket)
    assert np.array_equal(fused, ffmef.fuse(bracket, weights="mef-pyramid"))
    assert np.array_equal(ffmef.fuse(pair), ffmef.fuse(pair, weights="mef-pyramid"))
    assert np.array_equal(ffmef.fuse(bracket[::-1]), fused)
    for count in (2, 5, 9):
        assert np.array_equal(ffmef.fuse([bracket[1]] * count), bracket[1])
    sources = torch.stack([grey_of(picture) for picture in bracket], 1)
    scores = [mef_ssim(sources, grey_of(picture)).item() for picture in (*bracket, fused)]
    assert scores[-1] > 0.97 and scores[-1] > max(scores[:-1]) + 0.02


def grey_of(picture):
    return torch.from_numpy(picture.astype(np.float32)).mean(-1)[None, None]
