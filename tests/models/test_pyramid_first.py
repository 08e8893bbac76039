"""FirstPyramidFFMEF: any number of exposures, any order, any size; weights on the coarse grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ffmef
from ffmef.errors import InputError
from ffmef.imaging.io import Picture
from ffmef.models import load, save
from ffmef.models.pyramid_first import FirstPyramidFFMEF
from ffmef.pipeline import fuse_pictures

torch.set_num_threads(1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = FirstPyramidFFMEF().eval()
    with torch.no_grad():
        model.predictor.head.weight.normal_(std=0.5)  # far from the plain mean
    return model


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (65, 63), (128, 128)])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_size_and_number(model, size, count):
    luminance = torch.rand(2, count, *size)
    with torch.no_grad():
        assert model(luminance).shape == (2, 1, *size)
        assert torch.allclose(model(luminance)[1:], model(luminance[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [3, 1, 0, 2]])
def test_order_does_not_matter(model, order):
    luminance = torch.rand(1, 4, 70, 90)
    with torch.no_grad():
        straight, mixed = model(luminance), model(luminance[:, order])
    torch.testing.assert_close(mixed, straight, rtol=1e-4, atol=1e-4)
    assert (model(luminance[:, [0, 1, 2, 2]]) - straight).abs().max() > 0.01


def test_images_meet(model):
    """An image's weights depend on the others, at the other end of the picture too."""
    half = torch.rand(1, 2, 64, 256)
    other = half.clone()
    other[0, 1, :, 200:] = 1.0
    with torch.no_grad():
        change = (model.predict_weights(half)[0] - model.predict_weights(other)[0]).abs()
    assert change[0, :, 0, :, 0].max() > 1e-5


def test_starts_near_the_mean():
    torch.manual_seed(0)
    luminance = torch.rand(1, 2, 64, 64)
    with torch.no_grad():
        fused = FirstPyramidFFMEF()(luminance)
    assert (fused - luminance.mean(1, keepdim=True)).abs().mean() < 0.1


@pytest.mark.parametrize("options", [{}, {"bands": 0}, {"bands": 2, "channels": (8,), "stem": 4}])
def test_options_and_gradients(options):
    model = FirstPyramidFFMEF(**options)
    model(torch.rand(1, 2, 33, 47)).sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_multiply_adds_stay_within_the_budget():
    """At most 230 a pixel for a pair, the cost at which the coarse model was found worthwhile."""
    model, total = FirstPyramidFFMEF(), 0

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
    assert isinstance(again, FirstPyramidFFMEF) and again.config() == model.config()
    luminance = torch.rand(1, 2, 40, 50)
    with torch.no_grad():
        assert torch.equal(again(luminance), model(luminance))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"luminance must be \(B, N, H, W\) with N >= 2, got shape \(1, 1, 8, 8\)"):
        FirstPyramidFFMEF()(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="bands must be 0 to 3, got 4"):
        FirstPyramidFFMEF(bands=4)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"model": "steam"}, "model must be one of ffmef, pyramid, got 'steam'"),
        ({"model": "pyramid", "task": "mff"}, "model 'pyramid' must be used for task mef, got mff"),
        (
            {"model": "pyramid", "weights": "mef"},
            "weights must be left alone where a model is named, got mef and 'pyramid'",
        ),
    ],
)
def test_names_of_models_are_checked(options, message):
    pictures = [np.full((9, 12, 3), grey, np.uint8) for grey in (40, 200)]
    with pytest.raises(InputError) as caught:
        ffmef.fuse(pictures, **options)
    assert message in str(caught.value)


def test_pictures_of_every_kind_fuse_alike(model, tmp_path):
    """8-bit RGB takes the native path; 16 bit, floating point and read-only arrays give the same picture."""
    path = str(tmp_path / "weights.safetensors")
    save(model, path)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (45, 70, 3), dtype=np.uint8) for _ in range(3)]
    eight = ffmef.fuse(pictures, weights=path)
    sixteen = ffmef.fuse([p.astype(np.uint16) * 257 for p in pictures], weights=path)
    exact = ffmef.fuse([p / 255 for p in pictures], weights=path)
    for picture in pictures:
        picture.setflags(write=False)
    assert np.array_equal(ffmef.fuse(pictures, weights=path), eight)
    assert np.abs(sixteen / 257 - eight).max() < 0.52 and np.abs(exact * 255 - eight).max() < 0.52
    assert np.abs(ffmef.fuse(pictures, weights=path, backend="reference").astype(int) - eight).max() <= 1


def test_metadata_follow_the_darkest_whatever_the_order(model, tmp_path):
    path = str(tmp_path / "weights.safetensors")
    save(model, path)
    pictures = [Picture(np.full((20, 30, 3), grey, np.uint8), exif=b"%d" % grey) for grey in (90, 20, 200)]
    for order in ([0, 1, 2], [2, 0, 1]):
        assert fuse_pictures([pictures[i] for i in order], weights=path).exif == b"20"
