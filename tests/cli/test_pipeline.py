"""From pictures to one picture. Stand-ins with known answers take the model's place, except in the last part."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import ffmef
from ffmef import models, pipeline
from ffmef.errors import InputError
from ffmef.imaging.colour import merge_chroma, rgb_to_ycbcr, ycbcr_to_rgb
from ffmef.imaging.io import Picture, read_picture
from ffmef.pipeline import fuse, fuse_pictures

REFERENCE = Path(os.environ.get("FFMEF_REFERENCE_DIR", "absent"))
DATA = Path(os.environ.get("FFMEF_DATA_DIR", "absent"))

random = np.random.default_rng(0)


def noise(*shape: int, dtype=np.uint8, low: float = 0, high: float = 1) -> np.ndarray:
    top = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    return (random.uniform(low, high, shape) * top).astype(dtype)


def mean(luminance: torch.Tensor) -> torch.Tensor:
    return luminance.mean(1, keepdim=True)


def first(luminance: torch.Tensor) -> torch.Tensor:
    return luminance[:, :1]


def second(luminance: torch.Tensor) -> torch.Tensor:
    return luminance[:, 1:2]


# What comes out


def test_the_equations_from_end_to_end():
    under, over = noise(11, 13, 3, high=0.5), noise(11, 13, 3, low=0.5)
    ycbcr = [rgb_to_ycbcr(image.astype(np.float64)) for image in (under, over)]
    y = 0.25 * ycbcr[0][..., 0] + 0.75 * ycbcr[1][..., 0]
    expected = ycbcr_to_rgb(np.dstack([y, merge_chroma([picture[..., 1:] for picture in ycbcr])]))
    fused = fuse([under, over], model=lambda planes: 0.25 * planes[:, :1] + 0.75 * planes[:, 1:])
    assert fused.dtype == np.uint8 and fused.shape == under.shape
    clear = abs(expected % 1 - 0.5) > 1e-3  # away from the steps of rounding
    np.testing.assert_array_equal(fused[clear], np.rint(np.clip(expected, 0, 255))[clear])


def test_the_model_sees_luminance_over_255():
    seen = []

    def spy(planes: torch.Tensor) -> torch.Tensor:
        seen.append(planes)
        return mean(planes)

    fuse([np.zeros((3, 4, 3), np.uint8), np.full((3, 4, 3), 255, np.uint8)], model=spy)
    assert seen[0].shape == (1, 2, 3, 4) and seen[0].dtype == torch.float32
    np.testing.assert_allclose(seen[0][0, 0], 16 / 255, atol=1e-6)
    np.testing.assert_allclose(seen[0][0, 1], (16 + 255 * 0.858824) / 255, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 8, 3), (9, 8)], ids=["colour", "grey"])
def test_a_picture_fused_with_itself_stays(dtype, shape):
    image = noise(*shape, dtype=dtype)
    fused = fuse([image, image], model=mean)
    assert fused.dtype == image.dtype and fused.shape == image.shape
    # The constants back are the inverse of the constants forth to about one part in 200 000.
    tolerance = {np.uint8: 0, np.uint16: 2, np.float16: 1e-3}.get(dtype, 2e-5)
    np.testing.assert_allclose(fused.astype(np.float64), image.astype(np.float64), rtol=0, atol=tolerance)


def test_sixteen_bit_agrees_with_eight():
    under, over = noise(9, 8, 3, high=0.5), noise(9, 8, 3, low=0.5)
    eight = fuse([under, over], model=mean)
    sixteen = fuse([under * np.uint16(257), over * np.uint16(257)], model=mean)
    assert np.abs(sixteen / 257 - eight).max() <= 0.51


def test_luminance_beyond_white_is_clamped_before_colour():
    image = np.full((4, 4, 3), (0, 200, 0), np.uint8)  # so colourful that no channel but one ends beyond white
    chroma = rgb_to_ycbcr(image.astype(np.float64))[..., 1:]
    for shift, y in ((5, 255), (-5, 0)):
        expected = np.clip(ycbcr_to_rgb(np.dstack([np.full((4, 4), y), chroma])), 0, 255)
        fused = fuse([image, image], model=lambda planes: mean(planes) + shift)
        np.testing.assert_array_equal(fused, np.rint(expected))


def test_grey_and_colour_together():
    colour, grey = noise(6, 7, 3, high=0.4), noise(6, 7, low=0.5)
    fused = fuse([colour, grey], model=first)
    np.testing.assert_array_equal(fused, colour)  # its luminance, and the only chroma there is


@pytest.mark.parametrize("band", [1, 40, 1000])
def test_bands_leave_no_trace(monkeypatch, band):
    images = [noise(23, 17, 3), noise(23, 17, 3)]
    expected = fuse(images, model=mean)
    monkeypatch.setattr(pipeline, "_BAND", band)
    np.testing.assert_array_equal(fuse(images, model=mean), expected)


def test_strided_pictures():
    images = [noise(23, 34, 3), noise(23, 34, 3)]
    views = [image[::-1, ::2, ::-1] for image in images]
    np.testing.assert_array_equal(fuse(views, model=mean), fuse([view.copy() for view in views], model=mean))
    for view in views:
        view.flags.writeable = False
    fuse(views, model=mean)


@pytest.mark.parametrize("options", [{}, {"task": "mff"}, {"model": mean}], ids=["pyramid", "focus", "callable"])
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_byte_order_changes_nothing(dtype, options):
    """As a TIFF file of the other byte order is read by many libraries."""
    pictures = [noise(8, 9, 3, dtype=dtype) for _ in range(2)]
    foreign = [picture.astype(picture.dtype.newbyteorder()) for picture in pictures]
    fused = fuse(foreign, **options)
    assert fused.dtype == foreign[0].dtype
    np.testing.assert_array_equal(fused, fuse(pictures, **options))
    np.testing.assert_array_equal(fuse([pictures[0], foreign[1]], **options), fused)


def test_colour_needs_few_planes():
    under, over = noise(1500, 2000, 3, high=0.5), noise(1500, 2000, 3, low=0.5)
    plane = 4 * 1500 * 2000
    tracemalloc.start()
    fuse([over, under], model=first)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * plane  # the luminance of both, once more in the right order, the fused one, and the result


# Order


def test_exposures_are_sorted_dark_first():
    dark, middle, bright = (noise(6, 7, 3, low=low, high=low + 0.3) for low in (0, 0.3, 0.6))
    for images in itertools.permutations([dark, middle, bright]):
        for index, expected in enumerate([dark, middle, bright]):
            y = rgb_to_ycbcr(fuse(list(images), model=lambda planes: planes[:, index : index + 1]))[..., 0]
            assert abs(y.mean() - rgb_to_ycbcr(expected)[..., 0].mean()) < 12


def test_luminance_decides_and_not_the_sum_of_channels():
    blue = np.full((4, 4, 3), (0, 0, 255), np.uint8)  # sum 255, luminance 41
    green = np.full((4, 4, 3), (0, 100, 0), np.uint8)  # sum 100, luminance 66
    seen = []
    fuse([green, blue], model=lambda planes: seen.append(planes) or mean(planes))
    assert seen[0][0, 0].mean() < seen[0][0, 1].mean()


def test_equally_bright_exposures_are_ordered_by_content():
    left = noise(6, 6, 3)
    right = left[:, ::-1].copy()
    np.testing.assert_array_equal(fuse([left, right], model=first), fuse([right, left], model=first))


def test_multi_focus_keeps_the_order_given():
    dark, bright = noise(6, 7, high=0.4), noise(6, 7, low=0.6)
    np.testing.assert_array_equal(fuse([bright, dark], "mff", model=first), bright)
    np.testing.assert_array_equal(fuse([dark, bright], "mff", model=first), dark)


def test_infrared_goes_first_and_colour_comes_from_the_visible():
    infrared, visible = noise(6, 7, 3, low=0.6), noise(6, 7, 3, high=0.5)
    images = {"visible": visible, "infrared": infrared}
    np.testing.assert_array_equal(fuse(images, "vif", model=second), visible)
    chroma = rgb_to_ycbcr(visible.astype(np.float64))[..., 1:]
    y = rgb_to_ycbcr(infrared.astype(np.float64))[..., 0]
    expected = np.clip(ycbcr_to_rgb(np.dstack([y, chroma])), 0, 255)
    assert np.abs(fuse(images, "vif", model=first) - expected).max() <= 0.501
    assert fuse({"infrared": infrared[..., 0], "visible": visible}, "vif", model=mean).shape == (6, 7, 3)
    assert fuse({"infrared": infrared, "visible": visible[..., 0]}, "vif", model=mean).shape == (6, 7)


# What is refused

GOOD = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    "images, options, message",
    [
        ([GOOD, GOOD], {"task": "hdr"}, "task must be one of mef, mff, vif, got 'hdr'"),
        ([GOOD], {}, "images must hold at least 2 pictures, got 1"),
        (5, {}, "images must be a sequence of arrays for task mef, got int"),
        ({"a": GOOD, "b": GOOD}, {}, "images must be a sequence of arrays for task mef, got dict"),
        ([GOOD, GOOD], {"task": "vif"}, "images must be a mapping with the keys infrared and visible for task vif"),
        ({"infrared": GOOD}, {"task": "vif"}, "got ['infrared']"),
        ([GOOD, GOOD.tolist()], {}, "images[1] must be a NumPy array, got list"),
        ([GOOD, np.ma.masked_less(GOOD, 1 + GOOD.min())], {}, "images[1] must be a plain array, got a masked one"),
        ([GOOD, GOOD[..., :2]], {}, "images[1] must have shape (H, W) or (H, W, 3), got (4, 5, 2)"),
        ([GOOD[0, 0], GOOD], {}, "images[0] must have shape (H, W) or (H, W, 3), got (3,)"),
        ([GOOD, GOOD.astype(np.int32)], {}, "images[1] must be uint8, uint16 or floating point, got int32"),
        ([GOOD, GOOD[:3]], {}, "images[1] must have the size of images[0], 5 x 4 (width x height), got 5 x 3"),
        ([GOOD, GOOD.astype(np.uint16)], {}, "images[1] must have the dtype of images[0], uint8, got uint16"),
        ([GOOD[:1, :1]] * 2, {}, "images[0] must have at least 2 pixels"),
        ([GOOD[:0]] * 2, {}, "images[0] must have at least 2 pixels"),
        ([GOOD * 1.0, GOOD + 1.5], {}, "images[1] must lie in [0, 1], got values from 1.5 to 1.5"),
        ([GOOD * np.nan, GOOD * 1.0], {}, "images[0] must lie in [0, 1], got values from nan to nan"),
        ([GOOD, GOOD], {"weights": "mef"}, "weights cannot be used with a model that is no name, got 'mef'"),
        ([GOOD, GOOD], {"backend": "cpu"}, "backend cannot be used with a model that is no name, got 'cpu'"),
        (
            [GOOD, GOOD],
            {"backend": "steam", "model": None, "weights": "mef"},
            "backend must be one of fused, native, recompute, eager, reference, cpu, triton, cuda for the model FFMEF, "
            "got 'steam'",
        ),
        (
            [GOOD, GOOD],
            {"backend": "eager", "model": "pyramid"},
            "backend must be one of reference, cpu, triton, cuda for the model PyramidFFMEF, got 'eager'",
        ),
        ([GOOD, GOOD], {"task": GOOD}, "task must be one of mef, mff, vif, got ndarray; images must be in a list"),
        ([GOOD, GOOD], {"adjust": {}}, "adjust must be of type ffmef.adjust.Adjustments, got dict"),
        ([GOOD, GOOD], {"validity": 3}, "validity must be a sequence of maps, got int"),
        ([GOOD, GOOD], {"model": 3}, "model must be a name or a callable, got int"),
        ([GOOD, GOOD], {"model": None, "weights": 3}, "weights must be a name or the path of a file, got int"),
        ([GOOD, GOOD], {"model": lambda planes: planes}, "model must return luminance of shape (1, 1, 4, 5)"),
        ([GOOD, GOOD], {"model": lambda planes: mean(planes) / 0}, "model gave luminance that is not finite"),
    ],
)
def test_wrong_arguments_are_named(images, options, message):
    with pytest.raises(InputError) as caught:
        fuse(images, **{"model": mean, **options})
    assert message in str(caught.value)


def test_the_network_of_the_paper_takes_two(tmp_path):
    models.save(models.FFMEF(), tmp_path / "w.safetensors")
    assert fuse([GOOD] * 2, weights=str(tmp_path / "w.safetensors")).shape == GOOD.shape
    with pytest.raises(InputError, match="images must be 2 pictures for the model FFMEF, got 3"):
        fuse([GOOD] * 3, weights=str(tmp_path / "w.safetensors"))


def test_another_network_takes_more(tmp_path):
    torch.manual_seed(0)
    models.save(models.PyramidFFMEF(), tmp_path / "w.safetensors")
    images = [noise(40, 48, 3, low=low, high=low + 0.4) for low in (0, 0.3, 0.6)]
    fused = fuse(images, weights=str(tmp_path / "w.safetensors"))
    assert fused.shape == (40, 48, 3) and fused.dtype == np.uint8
    np.testing.assert_array_equal(fuse(images[::-1], weights=str(tmp_path / "w.safetensors")), fused)


def test_weights_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    read, load = [], models.load
    monkeypatch.setattr(models, "load", lambda path: read.append(path) or load(path))
    path, images = tmp_path / "w.safetensors", [noise(9, 12, 3, high=0.5), noise(9, 12, 3, low=0.5)]
    results = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = models.FFMEF()
        models.save(model, path)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            results += [fuse(images, weights=str(path)), *pool.map(lambda _: fuse(images, weights=str(path)), range(8))]
        np.testing.assert_array_equal(results[-1], fuse(images, model=model.eval()))
        for result in results[-9:]:
            np.testing.assert_array_equal(result, results[-1])
        assert len(read) == seed + 1
    assert not np.array_equal(results[0], results[-1])
    fuse(images, weights=str(path), backend="eager")  # does not change the model of the others
    assert pipeline._load_model(str(path), 2, None, None).backend is None


def test_fused_backend_that_cannot_run_is_named(tmp_path):
    models.save(models.FFMEF(channels=6), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="backend 'fused' cannot run here: channels must be 4, 8 or 16, got 6"):
        fuse([GOOD] * 2, weights=str(tmp_path / "w.safetensors"), backend="fused")


def test_engine_is_the_old_spelling_of_backend():
    images = [noise(9, 12, 3, high=0.5), noise(9, 12, 3, low=0.5)]
    for engine in ("fused", "eager"):
        with pytest.warns(DeprecationWarning, match=f"engine is deprecated: use backend='{engine}'") as caught:
            fused = fuse(images, engine=engine)
        assert caught[0].filename == __file__
        np.testing.assert_array_equal(fused, fuse(images, model="ffmef", backend=engine))
    with pytest.warns(DeprecationWarning, match="use backend=None"):
        np.testing.assert_array_equal(fuse(images, engine="auto"), fuse(images))
    with pytest.raises(InputError, match="engine must be one of auto, eager, fused, got 'steam'"):
        fuse(images, engine="steam")
    with pytest.raises(InputError, match="engine 'fused' must be given without a backend, got backend 'cpu'"):
        fuse(images, engine="fused", backend="cpu")


def test_pictures_that_torch_cannot_hold_as_they_are():
    images = [noise(23, 34, 3, high=0.5), noise(23, 34, 3, low=0.5)]
    views = [image[::-1, ::2, ::-1] for image in images]
    views[0].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = fuse(views)
    np.testing.assert_array_equal(fused, fuse([view.copy() for view in views]))


# Pictures with more than pixels


def test_depths_are_brought_together():
    under, over = noise(6, 7, 3, high=0.4), noise(6, 7, 3, dtype=np.uint16, low=0.5)
    fused = fuse_pictures([Picture(under), Picture(over)], model=first)
    assert fused.pixels.dtype == np.uint16
    np.testing.assert_array_equal(fused.pixels, fuse([under * np.uint16(257), over], model=first))


def test_alpha_is_the_minimum():
    under, over = noise(2, 3, 3, high=0.4), noise(2, 3, 3, low=0.5)
    alphas = [np.array([[0, 100, 255], [9, 9, 9]], np.uint8), np.array([[50, 200, 30], [0, 9, 10]], np.uint8)]
    fused = fuse_pictures([Picture(under, alphas[0]), Picture(over, alphas[1])], model=mean)
    assert fused.alpha.tolist() == [[0, 100, 30], [0, 9, 9]]
    fused = fuse_pictures([Picture(under), Picture(over, alphas[1])], model=mean)
    assert fused.alpha.tolist() == alphas[1].tolist()
    fused = fuse_pictures([Picture(under, alphas[0]), Picture(over * np.uint16(257))], model=mean)
    assert fused.alpha.tolist() == (alphas[0] * np.uint16(257)).tolist()
    assert fuse_pictures([Picture(under), Picture(over)], model=mean).alpha is None


def test_metadata_comes_from_the_darkest_that_has_it():
    under, over = noise(6, 7, 3, high=0.4), noise(6, 7, 3, low=0.5)
    dark = Picture(under, icc=b"dark profile", exif=None)
    bright = Picture(over, icc=b"bright profile", exif=b"bright exif")
    for pictures in ([dark, bright], [bright, dark]):
        fused = fuse_pictures(pictures, model=mean)
        assert (fused.icc, fused.exif) == (b"dark profile", b"bright exif")
    assert fuse_pictures([bright, dark], "mff", model=mean).icc == b"bright profile"
    grey = Picture(under[..., 0], icc=b"grey profile")
    assert fuse_pictures([grey, bright], model=mean).icc == b"bright profile"
    pair = {"infrared": Picture(over, icc=b"heat", exif=b"heat"), "visible": Picture(under, icc=b"light")}
    fused = fuse_pictures(pair, "vif", model=mean)
    assert (fused.icc, fused.exif) == (b"light", None)


def test_metadata_of_equal_pictures_does_not_depend_on_order():
    image = noise(6, 7, 3)
    pictures = [Picture(image, exif=b"one"), Picture(image, exif=b"two")]
    assert fuse_pictures(pictures, model=mean).exif == fuse_pictures(pictures[::-1], model=mean).exif


def test_messages_use_the_names_given():
    with pytest.raises(InputError, match="b.png must have the size of a.png, 5 x 4 .*, got 5 x 3"):
        fuse_pictures([Picture(GOOD), Picture(GOOD[:3])], names=["a.png", "b.png"])


# With the models


def test_the_public_name():
    assert ffmef.fuse is fuse


@pytest.mark.parametrize(
    "task, name, files",
    [
        ("mef", "AirBellowsGap", "mefb_dev/AirBellowsGap/AirBellowsGap_{}.tif"),
        ("mef", "Kluki", "mefb_dev/Kluki/Kluki_{}.png"),
        ("mff", "savic_13", "mfifb_dev/savic_13/savic_13_{}.jpg"),
        ("mff", "stand_04", "mfifb_dev/stand_04/stand_04_{}.jpg"),
        ("vif", "manWalking", "vifb_dev/manWalking/manWalking_{}.jpg"),
    ],
)
def test_the_authors_pictures(task, name, files):
    weights = REFERENCE / "official_weights" / f"{task}.pth"
    if not weights.exists() or not DATA.exists():
        pytest.skip("the authors' weights and pictures are not here (FFMEF_REFERENCE_DIR, FFMEF_DATA_DIR)")
    folder = {"mef": "authors", "mff": "authors_mff", "vif": "authors_vif"}[task]
    expected = read_picture(REFERENCE / "fused" / folder / f"{name}.png").pixels.astype(int)
    suffixes = {"infrared": "IR", "visible": "VI"} if task == "vif" else {0: "A", 1: "B"}
    images = {key: read_picture(DATA / files.format(suffix)).pixels for key, suffix in suffixes.items()}
    if task == "mef":
        images = {1: images[0], 0: images[1]}  # the order must not matter
    fused = fuse(images if task == "vif" else list(images.values()), task, str(weights)).astype(int)
    if fused.ndim < expected.ndim:
        fused = np.dstack([fused] * 3)
    # The authors cut off what we round: ours is the same or one level higher, but for the last bits of float32.
    difference = fused - expected
    assert difference.min() >= -1 and difference.max() <= 1
    assert (difference < 0).mean() < 1e-4


def test_many_brackets_on_the_cpu_are_fused_one_by_one():
    levels = [[np.full((9, 11, 3), level, dtype) for level in (60, 90)] for dtype in (np.uint8, np.uint16)]
    results = list(ffmef.fuse_many([*levels, [picture[..., 0] for picture in levels[0]]], threads=1))
    assert [(r.shape, r.dtype) for r in results] == [((9, 11, 3), "u1"), ((9, 11, 3), "u2"), ((9, 11), "u1")]
    np.testing.assert_array_equal(results[1], fuse(levels[1]))
    broken = ffmef.fuse_many([levels[0], levels[0][:1]])
    next(broken)
    with pytest.raises(InputError, match="images"):
        next(broken)
    with pytest.raises(InputError, match="device '' cannot be used"):
        next(ffmef.fuse_many([levels[0]], device=""))
