"""Infrared and visible pictures: what the infrared shows behind glare stays visible, and nothing else changes."""

import cv2
import numpy as np
import pytest

import ffmef
from ffmef import glare, models


def scene(height=160, width=208, lamp=True, person=True, reach=34):
    """A dim street with a lamp (uint8), and infrared in which a person stands before it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    texture = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 2)
    light = 0.04 + 0.06 * texture
    if lamp:
        light = light + 2.5 * np.exp(-((np.hypot(y - height / 2, x - width / 2) / reach) ** 4))
    visible = np.rint(np.clip(light, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)
    infrared = 70 + 6 * texture
    if person:
        infrared[height // 2 - 16 : height // 2 + 16, width // 2 - 5 : width // 2 + 5] += 60
    return np.dstack([visible] * 3), np.rint(infrared).clip(0, 255).astype(np.uint8)


def test_a_person_before_a_lamp_is_seen():
    visible, infrared = scene()
    fused = ffmef.fuse({"infrared": infrared, "visible": visible}, "vif").mean(2)
    inside, beside = fused[70:90, 101:107].mean(), fused[70:90, 88:94].mean()
    assert visible[70:90, 88:107].min() == 255
    assert inside - beside > 25 and beside > 120  # and the lamp still shines
    before = ffmef.fuse({"infrared": infrared, "visible": visible}, "vif", model=models.load("vif")).mean(2)
    assert before[70:90, 101:107].mean() - before[70:90, 88:94].mean() < 10  # without room there is none to see


def test_tones_keep_their_order_around_the_lamp():
    """A lowered lamp must not get a brighter ring."""
    visible, infrared = scene()
    luminance = visible[..., 0].astype(np.float32) / 255 * (219 / 255) + 16 / 255
    seen = glare.make_room(luminance, np.float32(infrared / 255))
    lowered = glare.make_room(luminance, np.float32(infrared / 255)) < luminance - 0.05
    assert lowered[60:100, 80:128].mean() > 0.7
    column = cv2.GaussianBlur(seen, (0, 0), 3)[80, :95]  # towards the lamp, ends before the person
    assert np.diff(column).min() > -0.02


def test_nothing_changes_where_nothing_is_hidden():
    flat = np.float32(scene(person=False)[1] * 0 + 70) / 255
    for lamp, heat in ((False, scene()[1] / 255), (True, flat)):
        luminance = scene(lamp=lamp)[0][..., 0].astype(np.float32) / 255 * (219 / 255) + 16 / 255
        np.testing.assert_allclose(glare.make_room(luminance, np.float32(heat)), luminance, atol=1e-4)
    visible, infrared = scene(lamp=False)
    images = {"infrared": infrared, "visible": visible}
    np.testing.assert_array_equal(ffmef.fuse(images, "vif"), ffmef.fuse(images, "vif", model=models.load("vif")))


def test_size_does_not_matter():
    visible, infrared = scene()
    luminance, heat = (np.float32(maps / 255) for maps in (visible[..., 0] * (219 / 255) + 16, infrared))
    once = glare.make_room(luminance, heat)
    large = [cv2.resize(maps, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC).clip(0, 1) for maps in (luminance, heat)]
    again = cv2.resize(glare.make_room(*large), once.shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(again - once).mean() < 0.01
    for size in ((1, 2), (2, 1), (3, 300)):
        assert glare.make_room(np.ones(size, np.float32), np.zeros(size, np.float32)).shape == size


def test_other_weights_see_the_picture_as_it_is(tmp_path):
    visible, infrared = scene()
    model = models.load("vif")
    models.save(model, tmp_path / "mine.safetensors", task="vif")
    images = {"infrared": infrared, "visible": visible}
    fused = ffmef.fuse(images, "vif", str(tmp_path / "mine.safetensors"))
    np.testing.assert_array_equal(fused, ffmef.fuse(images, "vif", model=model))
    assert np.abs(fused.astype(int) - ffmef.fuse(images, "vif")).max() > 20


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_depths_agree(dtype):
    visible, infrared = scene()
    top = 257 if dtype == np.uint16 else 1 / 255
    images = {"infrared": infrared * np.float64(top), "visible": visible * np.float64(top)}
    deep = ffmef.fuse({role: image.astype(dtype) for role, image in images.items()}, "vif")
    eight = ffmef.fuse({"infrared": infrared, "visible": visible}, "vif")
    assert np.abs(deep / top - eight).max() < 1.01
