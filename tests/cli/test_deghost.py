"""Ghosts: what moved is found and replaced by the reference's content; what stands still stays."""

from __future__ import annotations

import numpy as np
import pytest

from ffmef.deghost import best_exposed, deghost
from ffmef.errors import InputError

SIZE = (240, 320)


def scene(seed=0):
    """Linear light with edges, texture and shade over five stops."""
    import cv2

    rng = np.random.default_rng(seed)
    blocks = rng.uniform(-2.5, 1.5, (SIZE[0] // 20, SIZE[1] // 20, 1)).repeat(20, 0).repeat(20, 1)
    texture = cv2.GaussianBlur(rng.standard_normal((*SIZE, 3)), None, 1.5) * 0.8
    return np.exp2(cv2.GaussianBlur(blocks, None, 0.7)[..., None] + texture - 1)


def photograph(light, gain, seed):
    noise = np.random.default_rng(seed).standard_normal(light.shape) * np.sqrt((light * gain).clip(0, 1) / 8000 + 1e-6)
    return ((light * gain + noise).clip(0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


def bracket(count, light=None):
    light = scene() if light is None else light
    return [photograph(light, gain, index) for index, gain in enumerate(np.geomspace(0.25, 4, count))]


def objects(kind):
    """Return where something moved, and its light."""
    import cv2

    mask = np.zeros(SIZE, np.uint8)
    rng = np.random.default_rng(7)
    if kind == "disc":
        cv2.circle(mask, (120, 100), 30, 1, -1)
    elif kind == "people":
        for place in ((60, 80), (120, 240), (180, 150)):
            cv2.ellipse(mask, place[::-1], (7, 24), 0, 0, 360, 1, -1)
    else:
        leaves = cv2.GaussianBlur(rng.standard_normal(SIZE), None, 2.5)
        mask[60:160, 90:230] = leaves[60:160, 90:230] > 0.03
    light = np.broadcast_to(np.float64([0.6, 0.15, 0.1]), (*SIZE, 3)) * rng.uniform(0.8, 1.2, (*SIZE, 1))
    return mask > 0, light


@pytest.mark.parametrize("kind", ["disc", "people", "foliage"])
@pytest.mark.parametrize("count", [3, 5, 7])
def test_what_moved_is_taken_from_the_reference(kind, count):
    """One frame holds an object: it is found, and the frame then shows what it had shown without the object."""
    still = bracket(count)
    mask, light = objects(kind)
    reference = count // 2
    for place in (0, count - 1):
        frames = list(still)
        shown = photograph(np.where(mask[..., None], light, scene()), np.geomspace(0.25, 4, count)[place], place)
        frames[place] = shown
        found = deghost(frames, reference)
        assert found.moved[place][mask].mean() > 0.9
        assert all(not moved.any() for index, moved in enumerate(found.moved) if index != place)
        error = np.abs(found.pictures[place].astype(int) - still[place])
        before = np.abs(shown.astype(int) - still[place])
        assert error[mask].mean() < 0.5 * before[mask].mean()
        outside = ~found.moved[place]
        assert outside.mean() > 0.5 and found.validity[place][outside].min() == 255
        assert found.validity[place][mask].mean() < 40


def test_what_stands_still_stays():
    for count in (2, 3, 5):
        frames = bracket(count)
        found = deghost(frames)
        for frame, given, validity in zip(found.pictures, frames, found.validity, strict=True):
            assert frame is given and validity is None


def test_a_camera_that_fades_highlights_to_white_moves_nothing():
    """What a clipped channel loses, cameras spread over the others: their levels then depend on more than their own."""
    tint = np.ones((SIZE[1], 3))
    tint[-60:] = 0.4, 1.0, 2.5
    light = scene() * tint

    def faded(gain, seed):
        bright = photograph(light, gain, seed) / 255.0
        lost = (light * gain).max(-1, keepdims=True).clip(1, 4) - 1
        return ((bright + (1 - bright) * 0.6 * (lost / 1.5).clip(0, 1)) * 255 + 0.5).astype(np.uint8)

    frames = [faded(gain, index) for index, gain in enumerate((0.25, 1.0, 4.0))]
    assert max(moved.mean() for moved in deghost(frames).moved) < 0.01


def test_a_step_of_half_a_pixel_is_not_movement():
    """Frames that are aligned as well as can be differ at edges."""
    import cv2

    frames = bracket(3)
    shift = np.float32([[1, 0, 0.4], [0, 1, 0.3]])
    frames[2] = cv2.warpAffine(frames[2], shift, SIZE[::-1], borderMode=cv2.BORDER_REPLICATE)
    assert max(moved.mean() for moved in deghost(frames).moved) < 0.02


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, "grey"])
def test_every_depth(kind):
    """Deeper samples are replaced alike; the reference is kept to the bit."""
    frames = bracket(3)
    mask, light = objects("disc")
    frames[2] = photograph(np.where(mask[..., None], light, scene()), 4, 2)
    wanted = deghost(frames, 1)
    if kind == "grey":
        given = [np.ascontiguousarray(frame[..., 0]) for frame in frames]
    else:
        given = [frame.astype(np.float32) / 255 if kind is np.float32 else frame.astype(kind) for frame in frames]
        given = [frame * 257 if kind is np.uint16 else frame for frame in given]
    found = deghost(given, 1)
    assert found.pictures[1] is given[1] and found.pictures[2].dtype == given[2].dtype
    if kind != "grey":
        assert np.array_equal(found.moved[2], wanted.moved[2])
        scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[kind]
        assert np.abs(found.pictures[2] / scale - wanted.pictures[2]).max() < 1.01
    untouched = given[2] == found.pictures[2]
    assert untouched.mean() > 0.5 and found.moved[2].any()


def test_best_exposed_is_the_frame_with_most_tones():
    frames = bracket(3)
    assert best_exposed(frames) == 0 and best_exposed(frames[::-1]) == 2
    assert deghost(frames).reference == 0 and deghost(frames, -1).reference == 2


def test_mistakes_are_named():
    frames = bracket(2)
    for pictures, reference, message in (
        (frames[:1], None, "images must be at least 2 pictures to compare, got 1"),
        ([frames[0], frames[1][1:]], None, "images must have one size and dtype, got 2 kinds"),
        (frames, 2, "deghost must name one of 2 frames, got 2"),
    ):
        with pytest.raises(InputError) as caught:
            deghost(pictures, reference)
        assert str(caught.value) == message


def test_fused_pictures_show_the_object_no_more(tmp_path, capsys):
    """Nearer to the fusion of still frames than without; still frames are fused as ever."""
    import ffmef
    from ffmef.cli import main
    from ffmef.imaging.io import Picture, read_picture, write_picture

    still = bracket(3)
    mask, light = objects("people")
    frames = [still[0], still[1], photograph(np.where(mask[..., None], light, scene()), 4, 2)]
    truth = ffmef.fuse(still).astype(int)
    assert np.array_equal(ffmef.fuse(still, deghost=True), truth)
    errors = [np.abs(ffmef.fuse(frames, deghost=value) - truth)[mask].mean() for value in (False, 1)]
    assert errors[1] < 0.65 * errors[0]
    names = [str(tmp_path / f"{index}.png") for index in range(3)]
    for name, frame in zip(names, frames, strict=True):
        write_picture(name, Picture(frame))
    out = str(tmp_path / "out.png")
    assert main(["fuse", "--deghost-from", "2", *names, "-o", out]) == 0
    assert np.array_equal(read_picture(out).pixels, ffmef.fuse(frames, deghost=1))
    assert main(["fuse", "--deghost", *names, "-o", out]) == 0
    assert np.array_equal(read_picture(out).pixels, ffmef.fuse(frames, deghost=True))
    for arguments, message in (
        (["--deghost-from", "4"], "--deghost-from must be a number from 1 to 3, got 4"),
        (["--deghost-from", "0"], "--deghost-from must be at least 1, got 0"),
        (["--deghost", "--weights", "mef"], "images must be 2 pictures"),
    ):
        assert main(["fuse", *arguments, *names, "-o", out]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="deghost cannot be used with this model"):
        ffmef.fuse(still[:2], model="ffmef", deghost=True)
    with pytest.raises(InputError, match="deghost must be True, False or the index of an image, got 'first'"):
        ffmef.fuse(still, deghost="first")
    with pytest.raises(InputError, match="deghost must be True, False or the index of an image, got None"):
        ffmef.fuse(still, deghost=None)
    assert np.array_equal(ffmef.fuse(frames, deghost=np.int64(-2)), ffmef.fuse(frames, deghost=1))


def test_an_object_of_levels_that_little_else_has_bends_no_curve():
    """A frame with a white sky: the object outnumbers what stayed still at its levels, but not as a whole."""
    import cv2

    rng = np.random.default_rng(3)
    texture = cv2.GaussianBlur(rng.standard_normal(SIZE), None, 4)[..., None] * 3
    sky = np.arange(SIZE[0])[:, None, None] < SIZE[0] * 0.55
    light = np.where(sky, 0.35, 0.02) * np.exp2(texture) * np.float64([0.9, 1, 1.1])
    frames = [photograph(light, factor, seed) for seed, factor in enumerate((1.0, 20.0))]
    leaves = objects("foliage")[0]
    frames[1][leaves] = photograph(np.broadcast_to(np.float64([0.4, 0.22, 0.18]), (*SIZE, 3)), 1.0, 5)[leaves]
    found = deghost(frames, 0).moved[1]
    around = cv2.dilate(leaves.astype(np.uint8), np.ones((41, 41), np.uint8)) > 0
    assert found[leaves].mean() > 0.9 and found[~around].mean() < 0.01
