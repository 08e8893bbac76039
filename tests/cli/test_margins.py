"""Margins of aligned frames: opaque where any frame is, without a rim."""

from __future__ import annotations

import numpy as np
import pytest

from ffmef import picture
from ffmef.imaging import margins
from ffmef.imaging.io import Picture
from ffmef.imaging.margins import REACH, continued, usable_parts, validity_of
from ffmef.models import PyramidFFMEF
from ffmef.pipeline import fuse_pictures

CLEAR = np.uint8(0)


def test_the_most_opaque_frame_decides():
    first, second = np.array([[0, 100, 255, 9]], np.uint8), np.array([[0, 200, 255, 9]], np.uint8)
    alpha, (one, other) = usable_parts([first, second], 255)
    assert alpha.tolist() == [[0, 200, 255, 9]]
    assert one.tolist() == [[False, False, True, True]] and other.tolist() == [[False, True, True, True]]
    assert usable_parts([None, None], 255) == (None, [None, None])
    alpha, masks = usable_parts([first, None], 255)
    assert alpha is None and masks[0].tolist() == [[False, False, True, False]] and masks[1] is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (33, 50), (33, 50, 3)])
def test_missing_pixels_continue_the_picture(shape, dtype):
    random = np.random.default_rng(0)
    image = random.uniform(100, 140, shape).astype(dtype)
    mask = random.random(shape[:2]) > 0.4
    mask.flat[0] = True
    hidden = image.copy()
    hidden[~mask] = 0
    filled = continued(hidden, mask)
    assert filled.dtype == dtype and np.array_equal(filled[mask], image[mask])
    assert filled.min() >= 99 and filled.max() <= 141
    assert np.array_equal(continued(image, np.ones(shape[:2], bool)), image)
    assert np.array_equal(continued(image, np.zeros(shape[:2], bool)), image)


def test_pixels_near_a_margin_count_little():
    mask = np.ones((40, 60), bool)
    mask[:, :10] = False
    validity = validity_of(mask)
    assert (validity[:, :10] == 0).all() and (validity[:, 10 : 10 + REACH] == 3).all()
    assert (validity[:, 10 + REACH :] == 255).all()


@pytest.mark.skipif(picture.missing is not None, reason=str(picture.missing))
@pytest.mark.parametrize("filling", [0, 255])
@pytest.mark.parametrize("margin", [1, 13, 40])
def test_no_rim_where_a_frame_ends(margin, filling):
    """One frame, cut: the other tells how it went on, whatever stands in its margin."""
    model = PyramidFFMEF().eval()
    ramp = np.linspace(60, 120, 200)[None, :, None] * np.ones((90, 1, 3))
    dark, bright = np.rint(ramp).astype(np.uint8), np.rint(1.5 * ramp).astype(np.uint8)
    whole = fuse_pictures([Picture(dark), Picture(bright)], model=model).pixels.astype(int)
    alpha = np.full((90, 200), 255, np.uint8)
    alpha[:, :margin] = 0
    cut = dark.copy()
    cut[:, :margin] = filling
    fused = fuse_pictures([Picture(cut, alpha), Picture(bright)], model=model)
    assert fused.alpha is None
    assert np.abs(fused.pixels.astype(int) - whole).max() <= 2
    # Nor does a reference without ghosts replace what it lacks itself.
    steady = fuse_pictures([Picture(cut, alpha), Picture(bright)], model=model, deghost=0)
    assert np.abs(steady.pixels.astype(int) - whole).max() <= 2
    assert np.array_equal(fused.pixels, fuse_pictures([Picture(bright), Picture(cut, alpha)], model=model).pixels)


def test_a_large_picture_is_completed_from_some_of_its_pixels(monkeypatch):
    """What no curve knows, such as a vignette, goes on too; what no frame has is continued and does not count."""
    monkeypatch.setattr(margins, "_SAMPLES", 900)
    rows, columns = np.mgrid[:90, :120]
    bright = np.rint(60 + columns + 20 * np.sin(rows / 9)).astype(np.uint8)
    dark = np.rint(0.5 * bright * (1 - ((rows - 45) / 90) ** 2)).astype(np.uint8)
    masks = [np.ones((90, 120), bool), np.ones((90, 120), bool)]
    masks[0][:20], masks[1][:6] = False, False
    (filled, _), (first, _) = margins.completed([np.where(masks[0], dark, 0), bright], masks)
    off = np.abs(filled.astype(int) - dark)
    assert off[20:].max() == 0 and off[19].mean() <= 1.5 and off[6:20].max() <= 13 and off[:6].mean() <= 16
    assert (first[:6] == 0).all() and (first[6 + REACH :] == 255).all()
    strange = np.zeros((90, 120), bool)
    strange[40:45, 40:50] = True  # too few pixels to learn from
    assert (margins.completed([dark, bright], [strange, None])[1][0] == 255).sum() == 0


@pytest.mark.skipif(picture.missing is not None, reason=str(picture.missing))
def test_pixels_that_no_frame_has_stay_clear():
    model, random = PyramidFFMEF().eval(), np.random.default_rng(0)
    frames = [random.integers(0, 256, (50, 60, 3)).astype(np.uint8) for _ in range(3)]
    alphas = [np.full((50, 60), 255, np.uint8) for _ in frames]
    for index, alpha in enumerate(alphas):
        alpha[: 5 * (index + 1)] = 0
    fused = fuse_pictures([Picture(f, a) for f, a in zip(frames, alphas, strict=True)], model=model)
    assert (fused.alpha[:5] == 0).all() and (fused.alpha[5:] == 255).all()
