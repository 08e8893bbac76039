"""The native PyramidFFMEF against its definition in torch, in float64: sizes, depths, numbers, masks, adjustments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ffmef
from ffmef import picture
from ffmef.adjust import Adjustments
from ffmef.imaging.colour import rgb_to_ycbcr
from ffmef.models import PyramidFFMEF
from ffmef.models.pyramid import to_rgb

pytestmark = pytest.mark.skipif(picture.missing is not None, reason=str(picture.missing))
torch.set_num_threads(1)
DTYPES = (np.uint8, np.uint16, np.float32)
SIZES = [(1, 1), (1, 2), (7, 1), (8, 16), (37, 51), (65, 530)]
# Half a level of rounding and float32 on the way; 16 bit has 257 levels for each. The worst of three and more exposures
# is where nearly all of them are distrusted: 2.4 with the transformed convolutions, 2.1 without.
TOLERANCE = {np.uint8: 0.502, np.uint16: 3, np.float32: 3e-5}
# Where exposures are masked, what all others show is a small difference of large sums.
MASKED_TOLERANCE = {np.uint8: 0.51, np.uint16: 4, np.float32: 6e-5}


def model_of(octaves=6, seed=0):
    """A model far from the plain mean, with every parameter away from 0."""
    torch.manual_seed(seed)
    model = PyramidFFMEF(octaves=octaves).eval().requires_grad_(False)
    model.predictor.head.weight.normal_(std=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.bias.add_(0.1 * torch.randn_like(module.bias))
    model.predictor.statistics.weight.normal_(std=0.3)
    model.prior.copy_(torch.tensor([0.1, 0.2, 0.15, 0.3, 0.25, 0.12]))
    return model


def bracket_of(height, width, count, dtype, seed=0):
    """Exposures of one smooth scene with noise, clipped at both ends."""
    random = np.random.default_rng(seed)
    blocks = random.random((-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    scene = 0.8 * blocks + 0.2 * random.random((height, width, 3))
    frames = []
    for index in range(count):
        unit = np.clip(scene * 2.0 ** (index - (count - 1) / 2) + 0.02 * random.standard_normal(scene.shape), 0, 1)
        deep = np.dtype(dtype).kind == "f"
        frames.append(unit.astype(dtype) if deep else np.rint(unit * np.iinfo(dtype).max).astype(dtype))
    return frames


def masks_of(height, width, seed=0):
    random = np.random.default_rng(seed)
    return [
        None,
        (random.random((height, width)) > 0.3).astype(np.uint8) * 255,
        np.full((height, width), 128, np.uint8),
    ]


def defined(model, images, validity=None, adjust=Adjustments()):  # noqa: B008
    """The definition in float64, before rounding."""
    top = 1.0 if images[0].dtype.kind == "f" else float(np.iinfo(images[0].dtype).max)
    rgb = torch.from_numpy(np.stack([image.transpose(2, 0, 1) / top * 255.0 for image in images]).astype(float))[None]
    usable = None
    if validity is not None:
        full = np.full(images[0].shape[:2], 255, np.uint8)
        usable = torch.from_numpy(np.stack([full if part is None else part for part in validity]) / 255.0)[None]
    ycbcr = rgb_to_ycbcr(rgb)
    double = model_of(model.octaves).double()
    double.load_state_dict(model.state_dict())
    fused, shares = double.fuse(ycbcr[:, :, 0] / 255, usable, adjust)
    out = to_rgb(fused, shares, rgb, usable, adjust, ycbcr=ycbcr)
    return out[0].permute(1, 2, 0).numpy() / 255 * top


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_definition(size, dtype):
    for count, octaves in ((2, 6), (3, 0), (5, 1), (9, 6)):
        model = model_of(octaves)
        images = bracket_of(*size, count, dtype)
        got = ffmef.fuse(images, model=model) if size != (1, 1) else picture.fuse(picture.network_of(model), images)
        assert got.dtype == dtype
        assert np.abs(got - defined(model, images)).max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(7, 1), (37, 51), (65, 530)])
def test_validity(size, dtype):
    model, images, validity = model_of(), bracket_of(*size, 3, dtype), masks_of(*size)
    got = ffmef.fuse(images, model=model, validity=validity)
    assert np.abs(got - defined(model, images, validity)).max() <= MASKED_TOLERANCE[dtype]
    assert np.array_equal(ffmef.fuse(images, model=model, validity=[None] * 3), ffmef.fuse(images, model=model))


@pytest.mark.parametrize(
    "adjust",
    [
        Adjustments(brightness=0.7),
        Adjustments(contrast=0.5),
        Adjustments(saturation=-0.5),
        Adjustments(prefer=1.5),
        Adjustments(-0.3, -0.4, 0.8, -1),
    ],
    ids=["brightness", "contrast", "saturation", "prefer", "all"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_adjustments(adjust, dtype):
    for size, count in (((37, 51), 2), ((24, 90), 4)):
        model, images = model_of(), bracket_of(*size, count, dtype)
        got = ffmef.fuse(images, model=model, adjust=adjust)
        assert np.abs(got - defined(model, images, None, adjust)).max() <= 2 * TOLERANCE[dtype]
        assert not np.array_equal(got, ffmef.fuse(images, model=model))


def test_grey_is_colour_with_equal_channels():
    model = model_of()
    for dtype in DTYPES:
        grey = [image[..., 1].copy() for image in bracket_of(45, 67, 3, dtype)]
        in_colour = [np.stack([image] * 3, -1) for image in grey]
        for adjust in (Adjustments(), Adjustments(brightness=0.5)):
            fused = ffmef.fuse(grey, model=model, adjust=adjust)
            assert fused.shape == (45, 67)
            tolerance = 1e-5 if dtype == np.float32 else 1
            assert np.abs(ffmef.fuse(in_colour, model=model, adjust=adjust) - fused[..., None].astype(float)).max() <= (
                tolerance
            )
        mixed = ffmef.fuse([in_colour[0], *grey[1:]], model=model)
        assert np.abs(mixed.astype(float) - ffmef.fuse(in_colour, model=model)).max() <= tolerance


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_a_picture_fused_with_itself_is_itself(count, dtype):
    random = np.random.default_rng(count)
    picture_ = random.integers(0, np.iinfo(dtype).max + 1, (90, 131, 3)).astype(dtype)
    picture_[:30] = bracket_of(30, 131, 1, dtype)[0]
    picture_[40, ::3] = 0, np.iinfo(dtype).max, 0
    picture_[41] = np.iinfo(dtype).max
    for model in (model_of(), model_of(0)):
        assert np.array_equal(ffmef.fuse([picture_] * count, model=model), picture_)
        grey = picture_[..., 0].copy()
        assert np.array_equal(ffmef.fuse([grey] * count, model=model), grey)


def level_of(height, width, grey, dtype, colour=None):
    """One colour, or grey, everywhere."""
    top = 1.0 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    samples = np.asarray(grey if colour is None else colour) * (top / 255)
    return np.broadcast_to(samples, (height, width, *samples.shape)).astype(dtype)


@pytest.fixture(params=["native", "torch"])
def door(request, monkeypatch):
    """By which pictures are fused."""
    if request.param == "torch":
        monkeypatch.setattr(picture, "missing", "taken away")


def plain():
    """A model that takes the mean."""
    model = model_of()
    for parameter in (model.prior, model.predictor.head.weight, model.predictor.head.bias):
        parameter.zero_()
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("greys", "usable", "want"),
    [
        ((100, 140), None, 120),
        ((200, 240), None, 218 + 34 * 2 / (34 + 2)),  # the knee, and white at 252
        ((240, 255), None, 240 + 12 * 7.5 / (12 + 7.5)),  # the knee of the darkest
        ((253, 255), None, 253),  # no room: white is the darkest's
        ((255, 255), None, 255),
        ((0, 32), None, 24 - 24 * 8 / (24 + 8)),  # the toe
        ((0, 8), None, 8 - 8 * 4 / (8 + 4)),  # the toe of the brightest
        ((0, 0), None, 0),
        ((0, 10, 20), None, 20 - 20 * 10 / (20 + 10)),
        ((206, 222, 235, 229), None, 218 + 34 * 5 / (34 + 5)),
        # Shares 5/7 and 2/7; the darker, usable by 0.4 only, counts as 255 - 0.4 * 21.
        ((254, 234), (None, 102), 246.6 + 5.4 * (248.285714 - 246.6) / (5.4 + (248.285714 - 246.6))),
        ((253, 240, 255), (None, 0, 0), 253),
        ((10, 30), (None, 51), 13.333333),  # the brighter, usable by 0.2 only, counts as 6
    ],
)
def test_luminance_is_compressed_into_the_exposures_range(door, greys, usable, want, dtype):
    """Flat pictures, by hand."""
    size, model = (5, 37), plain()
    validity = None if usable is None else [None if v is None else np.full(size, v, np.uint8) for v in usable]
    step = {np.uint8: 0.501, np.uint16: 3 / 257, np.float32: 0.003}[dtype]
    scale = 255 if dtype == np.float32 else 255 / np.iinfo(dtype).max
    for colour in (False, True):
        images = [level_of(*size, (grey,) * 3 if colour else grey, dtype) for grey in greys]
        got = ffmef.fuse(images, model=model, validity=validity) * scale
        assert np.abs(got - want).max() <= step


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("colours", "usable", "want"),
    [
        (((190, 90, 90), (200, 90, 90)), None, 252),
        (((254, 90, 90), (255, 90, 90)), None, 254),
        (((250, 90, 90), (255, 90, 90), (255, 90, 90)), (51, None, None), 254),
        (((255, 90, 90), (200, 90, 90), (190, 90, 90)), None, 252),
    ],
)
def test_channels_reach_white_as_far_as_every_exposure_does(door, colours, usable, want, dtype):
    """Saturated beyond the gamut."""
    size, model = (5, 37), plain()
    validity = None if usable is None else [None if v is None else np.full(size, v, np.uint8) for v in usable]
    images = [level_of(*size, None, dtype, colour) for colour in colours]
    got = ffmef.fuse(images, model=model, validity=validity, adjust=Adjustments(saturation=1))
    scale = 255 if dtype == np.float32 else 255 / np.iinfo(dtype).max
    assert np.abs(got[..., 0] * scale - want).max() <= {np.uint8: 0, np.uint16: 2 / 257, np.float32: 2e-3}[dtype]


@pytest.mark.parametrize("octaves", [1, 2, 3, 6, 16])
def test_fine_and_further_octaves_have_planes_of_their_own(octaves):
    model, images = model_of(octaves), bracket_of(150, 190, 2, np.float32)
    plain_ = picture.fuse(picture.network_of(model), images)
    for plane, acts in ((10, octaves > 1), (11, octaves > 3)):
        other = model_of(octaves)
        other.predictor.head.bias[plane] += 0.5
        got = picture.fuse(picture.network_of(other), images)
        assert (np.abs(got - plain_).max() > 1e-3) == acts
        assert np.abs(got - defined(other, images)).max() <= TOLERANCE[np.float32]


def test_any_order_gives_the_same_bits():
    model, random = model_of(), np.random.default_rng(1)
    for dtype in DTYPES:
        for count in (2, 3, 7):
            images = bracket_of(40, 50, count, dtype)
            images[-1] = images[0].copy()
            images[-1][39, 49] = images[0].max()  # differs at the end alone
            validity = [(random.random((40, 50)) > 0.2).astype(np.uint8) * 255 for _ in images]
            straight, masked = ffmef.fuse(images, model=model), ffmef.fuse(images, model=model, validity=validity)
            for _ in range(3):
                order = random.permutation(count)
                shuffled = [images[k] for k in order]
                assert np.array_equal(ffmef.fuse(shuffled, model=model), straight)
                parts = [validity[k] for k in order]
                assert np.array_equal(ffmef.fuse(shuffled, model=model, validity=parts), masked)


def test_threads_change_nothing():
    model, images = model_of(), bracket_of(301, 250, 3, np.uint16)
    validity = masks_of(301, 250)
    alone = ffmef.fuse(images, model=model, validity=validity, threads=1)
    for threads in (2, 3, 7):
        for _ in range(5):
            assert np.array_equal(ffmef.fuse(images, model=model, validity=validity, threads=threads), alone)


def test_both_doors_give_equal_bits():
    model, images, validity = model_of(), bracket_of(77, 101, 3, np.uint8), masks_of(77, 101)
    tensors = [torch.from_numpy(image) for image in images]
    maps = [torch.ones(77, 101) if part is None else torch.from_numpy(part) / 255 for part in validity]
    adjust = Adjustments(0.2, 0.1, -0.2, 0.5)
    assert np.array_equal(model.fuse_rgb(tensors).numpy(), ffmef.fuse(images, model=model))
    by_torch = model.fuse_rgb(tensors, maps, adjust).numpy()
    assert np.array_equal(by_torch, ffmef.fuse(images, model=model, validity=validity, adjust=adjust))


@pytest.mark.parametrize("size", [(1, 1), (8, 16), (61, 83)])
def test_forward_runs_natively_where_no_derivative_is_asked_for(size, monkeypatch):
    model = model_of()
    luminance = 1.4 * torch.rand(2, 3, *size) - 0.2  # beyond black and white too: nothing is clamped
    double = model_of().double()
    got = model(luminance)
    torch.testing.assert_close(got.double(), double(luminance.double()), rtol=0, atol=1e-4)
    assert torch.equal(model(luminance[:, [2, 0, 1]]), got)
    asked = luminance.clone().requires_grad_()
    model(asked).sum().backward()
    assert asked.grad.abs().sum() > 0
    monkeypatch.setattr("ffmef.models.pyramid.pyramid_luminance", None)
    with pytest.raises(TypeError):
        model(luminance)
    model(asked), model(luminance.double().float().requires_grad_())
    model.backend = "reference"
    torch.testing.assert_close(model(luminance), got, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_brackets_in_one_call_are_what_each_is_alone(backend):
    model = model_of()
    model.backend = backend
    pictures = [torch.from_numpy(np.stack([i, i[::-1]])) for i in bracket_of(19, 26, 3, np.uint8)]
    masks = [torch.randint(0, 256, (2, 19, 26)).to(torch.uint8) for _ in range(3)]
    for usable in (None, masks):
        together = model.fuse_rgb(pictures, usable)
        for number in range(2):
            alone = [picture[number] for picture in pictures], usable and [mask[number] for mask in usable]
            assert torch.equal(together[number], model.fuse_rgb(*alone))
    assert model.fuse_rgb([picture[:0] for picture in pictures]).shape == (0, 19, 26, 3)
    for wrong in (pictures[0][:1], pictures[0][0]):
        with pytest.raises((RuntimeError, ValueError)):
            model.fuse_rgb([wrong, *pictures[1:]])


def test_operators_are_registered():
    model = model_of()
    tensors = [torch.from_numpy(image) for image in bracket_of(9, 11, 2, np.uint8)]
    sizes = list(model.channels), model.stem, 5
    parameters = list(model.parameters())
    torch.library.opcheck(
        torch.ops.ffmef.pyramid_exposures.default, (tensors, [], parameters, *sizes, [0.0, 0.0, 0.0, 0.0])
    )
    stacked = [torch.stack([tensor, tensor]) for tensor in tensors]
    torch.library.opcheck(
        torch.ops.ffmef.pyramid_exposures.default, (stacked, [], parameters, *sizes, [0.0, 0.0, 0.0, 0.0])
    )
    torch.library.opcheck(torch.ops.ffmef.pyramid_luminance.default, (torch.rand(1, 2, 9, 11), parameters, *sizes))
    with pytest.raises(RuntimeError, match="octaves must be 0 to 16, got 17"):
        torch.ops.ffmef.pyramid_luminance(torch.rand(1, 2, 9, 11), parameters, *sizes[:2], 17)
    with pytest.raises(RuntimeError, match="parameters must hold 39 tensors, got 40"):
        torch.ops.ffmef.pyramid_luminance(torch.rand(1, 2, 9, 11), [*parameters, parameters[0]], *sizes)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set(isa, tmp_path):
    script = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1])\n"
        "import test_pyramid_native as cases, ffmef\nfrom ffmef import picture\n"
        "assert picture._picture.isa() == sys.argv[2] or sys.argv[2] == 'avx2', picture._picture.isa()\n"
        "for dtype in cases.DTYPES:\n"
        "    images = cases.bracket_of(37, 51, 3, dtype)\n"
        "    got = ffmef.fuse(images, model=cases.model_of(), validity=cases.masks_of(37, 51))\n"
        "    want = cases.defined(cases.model_of(), images, cases.masks_of(37, 51))\n"
        "    assert np.abs(got - want).max() <= cases.MASKED_TOLERANCE[dtype]\n"
        "    got = ffmef.fuse(images[:2], model=cases.model_of())\n"
        "    assert np.abs(got - cases.defined(cases.model_of(), images[:2])).max() <= cases.TOLERANCE[dtype]\n"
        "    same = images[0].copy()\n"
        "    assert dtype == np.float32 or np.array_equal(ffmef.fuse([same] * 3, model=cases.model_of()), same)\n"
    )
    variables = {**os.environ, "FFMEF_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", script, str(Path(__file__).parent), isa]
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_weights_files_fuse_without_torch(tmp_path):
    model = model_of()
    ffmef.models.save(model, tmp_path / "w.safetensors")
    images = bracket_of(37, 51, 3, np.uint8)
    np.save(tmp_path / "images.npy", np.stack(images))
    script = (
        "import sys, numpy as np, ffmef\n"
        "np.save('fused.npy', ffmef.fuse(list(np.load('images.npy')), weights='w.safetensors'))\n"
        "assert 'torch' not in sys.modules"
    )
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=variables, check=True)
    assert np.array_equal(np.load(tmp_path / "fused.npy"), ffmef.fuse(images, model=model))


def test_without_the_native_library_torch_makes_the_same_picture(monkeypatch):
    model, validity = model_of(), masks_of(37, 51)
    for dtype in (*DTYPES, np.float64):
        images = bracket_of(37, 51, 3, dtype)
        adjust = Adjustments(0.2, 0.1, -0.2, 0.5)
        native = ffmef.fuse(images, model=model, validity=validity, adjust=adjust)
        with monkeypatch.context() as patch:
            patch.setattr(picture, "missing", "taken away")
            by_torch = ffmef.fuse(images, model=model, validity=validity, adjust=adjust)
            grey = ffmef.fuse([image[..., 0] for image in images], model=model)
        assert by_torch.dtype == dtype and grey.shape == (37, 51)
        steps = 1e-4 if np.dtype(dtype).kind == "f" else 1 if dtype == np.uint8 else 12
        assert np.abs(by_torch.astype(float) - native).max() <= steps


def test_mistakes_are_named():
    images = bracket_of(9, 11, 2, np.uint8)
    with pytest.raises(ffmef.InputError, match="validity must hold 2 maps, one for each image, got 1"):
        ffmef.fuse(images, model=model_of(), validity=[None])
    with pytest.raises(ffmef.InputError, match=r"validity\[1\] must be \(9, 11\) uint8 or None, got \(9, 10\) uint8"):
        ffmef.fuse(images, model=model_of(), validity=[None, np.zeros((9, 10), np.uint8)])
    with pytest.raises(ffmef.InputError, match="adjust cannot be used with this model"):
        ffmef.fuse(images, model="ffmef", adjust=Adjustments(brightness=1))


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 31, 32, 33, 150, 512, 513, 530])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pair_is_as_exact_at_every_end_of_a_row(width, dtype):
    """Whole vectors of pixels, what is left of one, and groups of cells that are not full."""
    model, images = model_of(3), bracket_of(19, width, 2, dtype, seed=width)
    got = ffmef.fuse(images, model=model)
    assert np.abs(got - defined(model, images)).max() <= TOLERANCE[dtype]
    # Views that end with their memory: nothing behind the last pixel is read or written.
    for image, other in zip(images, bracket_of(19, width, 2, dtype, seed=width), strict=True):
        np.testing.assert_array_equal(image, other)


@pytest.mark.parametrize("column", [0, 31, 32, 69])
def test_floating_point_samples_are_checked_in_every_column(column):
    network, images = picture.network_of(model_of()), bracket_of(5, 70, 2, np.float32)
    for row, value in ((0, np.nan), (1, -0.001), (4, 1.001), (3, np.inf)):
        wrong = images[1].copy()
        wrong[row, column, 1] = value
        with pytest.raises(picture.OutOfRange):
            picture.fuse(network, [images[0], wrong])
    black, negative = images[1].copy(), images[1].copy()
    black[2, column], negative[2, column] = 0.0, -0.0
    assert np.array_equal(picture.fuse(network, [images[0], negative]), picture.fuse(network, [images[0], black]))


@pytest.mark.parametrize("channels", [(16,), (16, 16), (48, 16), (32, 48, 32)])
def test_networks_of_other_widths(channels):
    torch.manual_seed(1)
    model = PyramidFFMEF(octaves=2, channels=channels).eval().requires_grad_(False)
    model.predictor.head.weight.normal_(std=0.1)
    images = bracket_of(70, 91, 3, np.float32)
    double = PyramidFFMEF(octaves=2, channels=channels).double().eval()
    double.load_state_dict(model.state_dict())
    got = picture.fuse(picture.network_of(model), images)
    rgb = torch.from_numpy(np.stack([image.transpose(2, 0, 1) * 255.0 for image in images]).astype(float))[None]
    ycbcr = rgb_to_ycbcr(rgb)
    with torch.no_grad():
        fused, shares = double.fuse(ycbcr[:, :, 0] / 255, None, Adjustments())
        out = to_rgb(fused, shares, rgb, ycbcr=ycbcr)
    assert np.abs(got - out[0].permute(1, 2, 0).numpy() / 255).max() <= 6e-5  # three exposures: see TOLERANCE
