"""The native coarse predictor against the module it stands for."""

from __future__ import annotations

import pytest
import torch

from ffmef.models.pyramid_first import FirstPyramidFFMEF
from ffmef.ops import backends
from ffmef.ops.pyramid_predict import available, pyramid_predict

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(backends()["cpu"] is not None, reason=str(backends()["cpu"]))


def model_of(channels=(16, 16, 32, 32), stem=8, bands=3):
    torch.manual_seed(0)
    model = FirstPyramidFFMEF(channels=channels, stem=stem, bands=bands).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases count too
    return model


def native(model, half):
    return pyramid_predict(half, list(model.predictor.parameters()), model.channels, model.stem, model.bands)


@pytest.mark.parametrize(
    "options", [{}, {"channels": (16,), "stem": 16, "bands": 1}, {"channels": (32, 16), "stem": 5, "bands": 2}]
)
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 4, 4), (3, 37, 51), (5, 33, 17), (2, 64, 100)])
def test_equals_the_module(options, shape):
    model, half = model_of(**options), torch.rand(shape)
    with torch.no_grad():
        for expected, got in zip(model.predict_weights(half[None]), native(model, half)):
            torch.testing.assert_close(got, expected[0], rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_threads_change_nothing():
    model, half = model_of(), torch.rand(2, 130, 150)
    alone = native(model, half)
    try:
        torch.set_num_threads(2)
        both = native(model, half)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(alone, both))


def test_available_names_what_it_can_run():
    half = torch.rand(2, 4, 4)
    assert available(half, (16, 32), 8)
    assert not available(half, (16, 24), 8)
    assert not available(half.double(), (16, 32), 8)


def test_fused_pictures_are_those_of_the_module():
    """RGB fused natively, and by the module between colour functions, within a grey level in any order."""
    from ffmef.pipeline import fuse

    model = model_of()
    pictures = [torch.randint(0, 256, (45, 70, 3), dtype=torch.uint8) for _ in range(3)]
    arrays = [picture.numpy() for picture in pictures]
    by_luminance = fuse(arrays, model=lambda luminance: model(luminance))  # hides fuse_rgb
    got = model.fuse_rgb(pictures)
    assert (got.int() - torch.from_numpy(by_luminance).int()).abs().max() <= 1
    assert (got.int() - model.fuse_rgb(pictures[::-1]).int()).abs().max() <= 1
    assert got.float().std() > 10


def test_a_model_without_bands_fuses_by_luminance():
    from ffmef.pipeline import fuse

    model = FirstPyramidFFMEF(bands=0)
    pictures = [torch.randint(0, 256, (45, 70, 3), dtype=torch.uint8) for _ in range(2)]
    arrays = [picture.numpy() for picture in pictures]
    assert (fuse(arrays, model=model) == fuse(arrays, model=lambda luminance: model(luminance))).all()
    with pytest.raises(ValueError, match="bands must be at least 1"):
        model.fuse_rgb(pictures)


def test_mistakes_are_named():
    model = model_of()
    parameters = list(model.predictor.parameters())
    with pytest.raises(RuntimeError, match="multiples of 16"):
        pyramid_predict(torch.rand(2, 4, 4), parameters, (16, 24), 8, 3)
    with pytest.raises(RuntimeError, match=r"parameters\[0\] must be float32 with 20 elements"):
        pyramid_predict(torch.rand(2, 4, 4), parameters, model.channels, 5, 3)
    with pytest.raises(RuntimeError, match="two tensors for each layer"):
        pyramid_predict(torch.rand(2, 4, 4), parameters[:-1], model.channels, 8, 3)
    with pytest.raises(ValueError, match="pictures must be at least 2, got 1"):
        model.fuse_rgb([torch.zeros(8, 8, 3, dtype=torch.uint8)])
