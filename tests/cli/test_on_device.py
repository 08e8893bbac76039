"""Fusion on another device, which here is the CPU: samples go there, and colour, order and limits are dealt with there.

On a GPU, ``scripts/gpu_first_run.py pictures`` and ``ffmef selftest`` compare the same with the CPU.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

import ffmef
from ffmef import fuse, glare, models, on_device, pipeline
from ffmef.adjust import Adjustments
from ffmef.errors import InputError
from ffmef.imaging import colour
from ffmef.models.layers import parameters_of
from ffmef.ops import picture_colour

RANDOM = np.random.default_rng(0)
PAIR = [RANDOM.random((40, 50, 3)) * high for high in (0.4, 1.0)]
DTYPES = ("uint8", "uint16", "float16", "float32", "float64", "longdouble", ">f4", ">u2")
LEVEL = {"u": 1, "f": 1e-6}


def samples(picture: np.ndarray, dtype: str) -> np.ndarray:
    top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    return (np.rint(picture * top) if top > 1 else picture).astype(dtype)


@pytest.fixture
def elsewhere(monkeypatch):
    """Make the CPU count as another device, on which no colour is computed with NumPy."""

    def apply():
        monkeypatch.setattr(pipeline, "_native_network", lambda *arguments: None)
        monkeypatch.setattr(on_device, "place_of", lambda *arguments: torch.device("cpu"))
        monkeypatch.setattr(pipeline, "_recolour", None)
        monkeypatch.setattr(pipeline, "_run_selective", None)
        monkeypatch.setattr(pipeline, "_run_stack", None)
        monkeypatch.setattr(picture_colour, "BAND", 600)  # several bands

    return apply


def test_where_models_are_decides_unless_a_device_is_named():
    model = models.FFMEF()
    assert on_device.place_of(model, None) is None and on_device.place_of(model, "cpu") is None
    assert on_device.place_of(model, "cuda:1") == torch.device("cuda:1")
    assert on_device.place_of(model.to("meta"), None) == torch.device("meta")
    assert on_device.place_of(lambda planes: planes, None) is None


def kinds(dtype: str) -> list[list[np.ndarray]]:
    pair = [samples(picture, dtype) for picture in PAIR]
    return [pair, [pair[0][..., 0], pair[1]], [pair[0], pair[1][..., 0]], [picture[..., 1] for picture in pair]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model, task", [("ffmef", "mef"), ("ffmef", "mff"), ("pyramid", "mef"), ("focus", "mff")])
def test_equals_the_cpu_path(model, task, dtype, elsewhere):
    if np.finfo(np.longdouble).bits == 64 and dtype == "longdouble":
        pytest.skip("longdouble is float64 here")
    expected = [[fuse(given, task, model=model) for given in (kind, kind[::-1])] for kind in kinds(dtype)]
    elsewhere()
    for kind, (wanted, turned) in zip(kinds(dtype), expected, strict=True):
        found = fuse(kind, task, model=model) if model != "focus" else run_focus(kind)
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        unit = np.iinfo(dtype).max / 255 if np.dtype(dtype).kind == "u" else 1e-3
        limit = unit if model != "ffmef" else {"u": 1, "f": 1e-6}[np.dtype(dtype).kind] + 1e-3 * (dtype == "float16")
        assert np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max() <= limit
        if task == "mef":
            np.testing.assert_array_equal(fuse(kind[::-1], task, model=model), found)
        elif model == "ffmef":
            assert not np.array_equal(wanted, turned)  # it keeps the order given


def run_focus(kind):
    bracket = on_device.Bracket([np.asarray(one).astype(one.dtype.newbyteorder("=")) for one in kind], "mff")
    found, order = on_device.start(models.load("focus"), bracket, torch.device("cpu"))()
    assert order == [0, 1]
    return found.astype(kind[0].dtype)


def test_luminance_and_colour_equal_those_of_arrays_to_the_bit(elsewhere):
    elsewhere()
    for dtype in ("uint8", "uint16", "float32", "float64"):
        for kind in kinds(dtype):
            given = [torch.from_numpy(np.ascontiguousarray(one)) for one in kind]
            planes = picture_colour.sample_luminance(given)
            np.testing.assert_array_equal(planes.numpy(), pipeline._luminance(kind))
            sources = [one for one in kind if one.ndim == 3]
            joined = colour.recoloured(planes[1].numpy(), sources, np.dtype(dtype))
            there = picture_colour.recoloured(planes[1], [one for one in given if one.dim() == 3], given[0].dtype)
            np.testing.assert_array_equal(there.numpy(), joined)


def lamp_and_person():
    lamp, person = RANDOM.random((70, 300)).astype(np.float32) * 0.6, np.full((70, 300), 0.2, np.float32)
    lamp[10:60, 40:160], person[20:50, 80:96] = 0.92, 0.6
    return lamp, person


def test_room_is_made_in_glare_as_with_arrays():
    for lamp, person in (lamp_and_person(), [one[:40, :77] for one in lamp_and_person()]):
        there = glare.make_room(torch.from_numpy(lamp.copy()), torch.from_numpy(person.copy()))
        np.testing.assert_allclose(there.numpy(), glare.make_room(lamp, person), atol=2e-6)
    dark = torch.full((9, 11), 0.3)
    assert torch.equal(glare.make_room(dark, dark), dark)
    areas = models.focus.shrink(torch.from_numpy(lamp)[None, None], (13, 70))[0, 0]
    np.testing.assert_allclose(areas.numpy(), cv2.resize(lamp, (70, 13), interpolation=cv2.INTER_AREA), atol=1e-6)


@pytest.mark.parametrize("visible_is_grey", [False, True])
def test_infrared_and_visible(visible_is_grey, elsewhere):
    lamp, person = ((np.clip((one - 0.0627) * 1.164, 0, 1) * 255).astype(np.uint8) for one in lamp_and_person())
    tinted = np.dstack([lamp, lamp - lamp // 3, lamp // 2])
    given = {"infrared": np.dstack([person] * 3), "visible": lamp if visible_is_grey else tinted}
    expected = fuse(given, "vif")
    elsewhere()
    found = fuse(given, "vif")
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1


def test_validity_and_adjustments_go_there_too(elsewhere):
    pair = [samples(picture, "uint8") for picture in PAIR]
    masks = [RANDOM.integers(0, 256, (40, 50), dtype=np.uint8), None]
    adjust = Adjustments(0.5, 0.2, -0.3, 1.0)
    for given in (pair, [picture[..., 0] for picture in pair], [picture / 255 for picture in pair]):
        expected = fuse(given, validity=masks, adjust=adjust)
        plain = fuse(given)
        elsewhere()
        found = fuse(given, validity=masks, adjust=adjust)
        limit = 1 if given[0].dtype == np.uint8 else 1e-3
        assert np.abs(found.astype(float) - expected).max() <= limit
        assert np.abs(plain.astype(float) - expected).max() > 5 * limit
        with pytest.raises(InputError, match="validity cannot be used with this model"):
            fuse(given, model="ffmef", validity=masks)
    turned = ffmef.deghost.deghost([pair[0], pair[1], pair[1][::-1].copy()], 0)
    expected = models.load("mef-pyramid").fuse_rgb(
        [torch.from_numpy(one) for one in turned.pictures],
        [torch.full((40, 50), 255, dtype=torch.uint8) if m is None else torch.from_numpy(m) for m in turned.validity],
    )
    found = fuse([pair[0], pair[1], pair[1][::-1].copy()], deghost=0)
    np.testing.assert_array_equal(found, expected.numpy())


def test_pictures_of_one_brightness_are_ordered_by_their_samples(elsewhere):
    picture = samples(PAIR[1], "uint8")
    pair = [picture, picture[:, ::-1].copy()]
    expected = fuse(pair, model="ffmef")
    elsewhere()
    for given in (pair, pair[::-1]):
        assert np.abs(fuse(given, model="ffmef").astype(int) - expected).max() <= 1


def test_convolutions_are_not_rounded_to_tf32(elsewhere):
    elsewhere()
    seen = []

    def model(planes):
        seen.append(torch.backends.cudnn.allow_tf32)
        return planes[:, :1]

    for allowed in (True, False):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            fuse([samples(picture, "uint8") for picture in PAIR], model=model)
            assert torch.backends.cudnn.allow_tf32 is allowed
    assert seen == [False, False]


def test_a_function_takes_luminance_in_order(elsewhere):
    pair = [samples(picture, "uint8") for picture in PAIR]

    def darker(planes):
        assert planes.mean((2, 3)).diff() > 0
        return planes[:, :1] - 0.01

    expected = fuse(pair[::-1], model=darker)
    elsewhere()
    np.testing.assert_array_equal(fuse(pair[::-1], model=darker), expected)
    with pytest.raises(
        InputError, match=r"model must return luminance of shape \(1, 1, 40, 50\), got \(1, 2, 40, 50\)"
    ):
        fuse(pair, model=lambda planes: planes)
    for number in (np.nan, np.inf):
        with pytest.raises(InputError, match="model gave luminance that is not finite"):
            fuse(pair, model=lambda planes, number=number: planes[:, :1] * number)


@pytest.mark.parametrize("model", ["ffmef", "pyramid"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_outside_the_range_are_found_there(model, dtype, elsewhere):
    elsewhere()
    pair = [samples(picture, dtype) for picture in PAIR]
    for wrong in (1.5, -0.25, np.nan):
        pair[1][3, 4, 1] = wrong
        with pytest.raises(InputError, match=r"images\[1\] must lie in \[0, 1\], got values from"):
            fuse(pair, model=model)
        with pytest.raises(InputError, match=r"images\[1\] must lie in \[0, 1\], got values from"):
            list(ffmef.fuse_many([pair], model=model))


@pytest.mark.parametrize("model", ["ffmef", "pyramid"])
def test_many_brackets(model, elsewhere):
    elsewhere()
    taken = []

    def brackets():
        for number in range(6):
            taken.append(number)
            yield [np.roll(samples(picture, ">u2" if number == 4 else "uint8"), number, 1) for picture in PAIR]

    results = ffmef.fuse_many(brackets(), model=model)
    first = next(results)
    assert len(taken) == pipeline.MOST_UNDER_WAY + 1  # no more are kept in memory
    for bracket, result in zip(list(brackets()), [first, *results], strict=True):
        np.testing.assert_array_equal(result, fuse(bracket, model=model))
        assert result.dtype == bracket[0].dtype
    if model == "ffmef":
        with pytest.raises(InputError, match="adjust cannot be used with this model"):
            list(ffmef.fuse_many(brackets(), model=model, adjust=Adjustments(0.5)))


def test_arrays_that_run_backwards():
    flipped = [RANDOM.integers(0, 256, (40, 1), dtype=np.uint8)[:, ::-1]]  # of one pixel
    assert flipped[0].strides[1] < 0 and flipped[0].flags.c_contiguous
    np.testing.assert_array_equal(on_device._sent(flipped, torch.device("cpu"))[0].numpy(), flipped[0])


def test_files_keep_the_metadata_of_the_darkest(elsewhere):
    from ffmef.imaging.io import Picture

    elsewhere()
    for model in ("ffmef", "pyramid"):
        given = [
            Picture(samples(picture, "uint8"), exif=name) for picture, name in zip(PAIR[::-1], (b"over", b"under"))
        ]
        assert pipeline.fuse_pictures(given, model=model).exif == b"under"


def test_what_each_call_need_not_do_again(monkeypatch):
    """A device is tried once, and parameters are listed as torch lists them, but sooner."""
    for name in ("mef-pyramid", "mef"):
        model = models.load(name)
        model.absent = None
        model.register_parameter("also_absent", None)
        listed, expected = parameters_of(model), list(model.parameters())
        assert len(listed) == len(expected) and all(a is b for a, b in zip(listed, expected, strict=True))
    tried = []
    monkeypatch.setattr(torch, "zeros", lambda *_, device: tried.append(device) or torch.ones(1, device=device))
    pipeline._try.cache_clear()
    for device in ("cpu", "cpu", "meta", "meta"):
        place = torch.device(device)
        if device == "cpu":
            pipeline._try(place)
        else:
            with pytest.raises(RuntimeError, match="meta"):
                pipeline._try(place)
    pipeline._try.cache_clear()
    assert [place.type for place in tried] == ["cpu", "meta", "meta"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_results_are_copied_out_of_pinned_memory(dtype):
    given = (torch.rand(5, 7, 3) * 200).to(dtype)
    found = on_device._out_of(given)
    assert np.array_equal(found, given.numpy()) and not np.shares_memory(found, given.numpy())
