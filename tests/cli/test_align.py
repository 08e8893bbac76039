"""Alignment: synthetic hands with known transforms, exposure steps and noise; nonsense refused; margins not counted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ffmef import align
from ffmef.cli import main
from ffmef.errors import InputError
from ffmef.imaging.exr import decode_display, encode_display
from ffmef.imaging.io import Picture, read_picture, write_picture

EXAMPLES = Path(__file__).parents[2] / "examples"
MARGIN = 40


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Linear light."""
    picture = read_picture(EXAMPLES / "sunset_middle.jpg").pixels
    return decode_display(cv2.resize(picture, (864, 576), interpolation=cv2.INTER_CUBIC) / 255.0).astype(np.float32)


def hand(kind: str, turn: float = 1.5, shift=(9.3, -6.6), scale: float = 1.004) -> np.ndarray:
    """Return a movement of the frame about the picture's centre."""
    angle = 0.0 if kind == "translation" else np.radians(turn)
    scale = 1.0 if kind == "translation" else scale
    centre = np.array([431.5, 287.5])
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:2, 2] = centre + shift - matrix[:2, :2] @ centre
    if kind == "homography":
        there, back, tilt = np.eye(3), np.eye(3), np.eye(3)
        there[:2, 2], back[:2, 2], tilt[2, :2] = -centre, centre, (2e-5, -1.5e-5)
        matrix = back @ tilt @ there @ matrix
    return matrix


def expose(scene: np.ndarray, stops: float, matrix=None, seed: int = 0, dtype=np.uint8) -> np.ndarray:
    """Return a frame, cut by a margin so that what lies outside the scene is not seen."""
    if matrix is not None:
        size = scene.shape[1::-1]
        scene = cv2.warpPerspective(scene, np.linalg.inv(matrix), size, flags=cv2.INTER_CUBIC)
    light = scene[MARGIN:-MARGIN, MARGIN:-MARGIN] * 2.0**stops
    noise = np.random.default_rng(seed).normal(0, 1, light.shape) * np.sqrt(np.maximum(light, 0) * 0.004**2 + 1e-6)
    top = np.iinfo(dtype).max
    return np.rint(encode_display(np.clip(light + noise, 0, 1)) * top).astype(dtype)


def error(found: np.ndarray, true: np.ndarray, shape) -> float:
    """Return the largest error over the picture in pixels."""
    cut = np.eye(3)
    cut[:2, 2] = -MARGIN
    true = cut @ true @ np.linalg.inv(cut)
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 7), np.linspace(0, shape[0] - 1, 7))
    points = np.dstack([x, y]).reshape(1, -1, 2)
    difference = cv2.perspectiveTransform(points, found) - cv2.perspectiveTransform(points, true)
    return float(np.linalg.norm(difference, axis=-1).max())


@pytest.mark.parametrize("stops", [2, 4])
@pytest.mark.parametrize("kind", ["translation", "similarity", "homography"])
def test_known_movements(scene, kind, stops):
    matrix = hand(kind)
    frames = [expose(scene, 0), expose(scene, -stops, matrix, 1)]
    _, found = align.register(frames, 0)
    limit = {"translation": 0.15, "similarity": 0.15, "homography": 0.6}[kind]
    assert error(found.matrix, matrix, frames[0].shape) < limit
    if stops == 2:
        assert found.kind == kind  # no more freedom than the evidence asks for
        assert found.residual < 0.2


def test_a_bracket_of_five_goes_by_its_neighbours(scene):
    """Eight stops lie between its ends, two between neighbours; the order of the frames does not matter."""
    hands = [
        hand("similarity", turn, shift) for turn, shift in ((2, (5, 4)), (-1, (-8, 2)), (0.5, (3, -9)), (-2, (0, 7)))
    ]
    stops = (-4, -2, 2, 4)
    frames = [expose(scene, 0), *(expose(scene, s, m, 1) for s, m in zip(stops, hands, strict=True))]
    found = align.register(frames, 0)
    assert max(error(f.matrix, m, frames[0].shape) for f, m in zip(found[1:], hands, strict=True)) < 0.5
    again = align.register(frames[::-1], 4)
    np.testing.assert_array_equal(found[1].matrix, again[3].matrix)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_depths(scene, dtype):
    matrix = hand("similarity")
    frames = [expose(scene, 0, dtype=np.uint16), expose(scene, -2, matrix, 1, np.uint16)]
    if dtype == np.float32:
        frames = [(frame / 65535).astype(np.float32) for frame in frames]
    assert error(align.register(frames, 0)[1].matrix, matrix, frames[0].shape) < 0.15


def test_focus_breathing(scene):
    """Another focus: the frame is larger by 4 % and half of it is blurred."""
    matrix = hand("similarity", 0.0, (0, 0), 1.04)
    sharp, other = expose(scene, 0), expose(scene, 0, matrix, 1)
    sharp[:, :380] = cv2.GaussianBlur(sharp, (0, 0), 2)[:, :380]
    other[:, 400:] = cv2.GaussianBlur(other, (0, 0), 2)[:, 400:]
    found = align.register([sharp, other], 0)[1]
    assert found.kind == "similarity" and abs(found.scale - 1.04) < 2e-3
    assert error(found.matrix, matrix, sharp.shape) < 0.5


def test_what_stands_still_is_left_alone(scene):
    frames = [expose(scene, stops, None, seed) for seed, stops in enumerate((-2, 0, 2))]
    pictures, lines = align.align_pictures([Picture(frame) for frame in frames], ["a", "b", "c"])
    for picture, frame in zip(pictures, frames, strict=True):
        assert picture.pixels is frame and picture.alpha is None
    assert [line.split(": ")[1] for line in lines[1:]] == ["not moved"] * 2
    assert align.apparent_shift(frames) is None


def test_another_scene_is_refused(scene, tmp_path, capfd):
    other = read_picture(EXAMPLES / "courtyard_over.jpg").pixels
    frames = [expose(scene, 0), expose(scene, 2), cv2.resize(other, (784, 496))]
    with pytest.raises(InputError, match="frames [12] and 3 do not show the same scene"):
        align.register(frames, 0)
    for index, frame in enumerate((frames[0], frames[2])):
        write_picture(tmp_path / f"{index}.png", Picture(frame))
    command = ["fuse", str(tmp_path / "0.png"), str(tmp_path / "1.png"), "-o", str(tmp_path / "o.png"), "--align"]
    assert main(command) == 2
    message = capfd.readouterr().err
    assert "frames 1 and 2 do not show the same scene" in message and message.count("\n") == 1
    assert message.endswith(f"{tmp_path}/0.png and {tmp_path}/1.png\n")
    unlike = [read_picture(EXAMPLES / name).pixels for name in ("courtyard_over.jpg", "sunset_middle.jpg")]
    with pytest.raises(InputError, match="frames 1 and 2 do not"):  # a few chance matches shrink one to a point
        align.register(unlike, 1)
    flat = [np.full((300, 400, 3), level, np.uint8) for level in (90, 200)]
    with pytest.raises(InputError, match="too little of it is exposed in both"):
        align.register(flat, 0)


def test_moved_pictures_cover_what_they_say(scene):
    matrix = hand("similarity")
    still, moved = Picture(expose(scene, 0)), Picture(expose(scene, 0, matrix, 1))
    (_, placed), lines = align.align_pictures([still, moved], ["a.jpg", "b.jpg"], 0)
    assert set(np.unique(placed.alpha)) == {0, 255} and 0.9 < (placed.alpha == 255).mean() < 0.99
    inside = cv2.erode(placed.alpha, np.ones((5, 5))) > 0
    difference = np.abs(placed.pixels.astype(int) - still.pixels)[inside]
    before = np.abs(moved.pixels.astype(int) - still.pixels)[inside]
    assert difference.mean() < 3 < 10 < before.mean()
    assert lines[0] == "aligned to a.jpg"
    assert lines[1].startswith("b.jpg: moved by ") and "(similarity, " in lines[1]
    (a, b), lines = align.align_pictures([still, moved], ["a.jpg", "b.jpg"], 0, crop=True)
    assert a.alpha is None and b.alpha is None and a.pixels.shape == b.pixels.shape
    assert 0.8 < a.pixels.size / still.pixels.size < 1 and "cropped to" in lines[-1]


def test_a_focus_stack_is_opaque_to_its_margins(scene):
    still, moved = Picture(expose(scene, 0)), Picture(expose(scene, 0, hand("similarity"), 1))
    (_, cut), _ = align.align_pictures([still, moved], ["a", "b"], 0)
    (_, filled), _ = align.align_pictures([still, moved], ["a", "b"], 0, fill=True)
    assert filled.alpha is None
    missing = cut.alpha == 0
    np.testing.assert_array_equal(filled.pixels[missing], still.pixels[missing])
    np.testing.assert_array_equal(filled.pixels[~missing], cut.pixels[~missing])


def test_common_rectangle():
    one, other = np.ones((50, 80), np.uint8), np.ones((50, 80), np.uint8)
    one[:3], other[:, 70:] = 0, 0
    assert align.common_rectangle([one, other], (50, 80)) == (slice(3, 50), slice(0, 70))
    assert align.common_rectangle([], (50, 80)) == (slice(0, 50), slice(0, 80))


@pytest.mark.parametrize("stops", [(0, 2), (-2, 2)])
def test_a_shift_is_noticed_without_alignment(scene, tmp_path, capfd, stops):
    frames = [expose(scene, stops[0]), expose(scene, stops[1], hand("translation", shift=(14, 5)), 1)]
    one, other, pixels = align.apparent_shift(frames)
    assert (one, other) == (0, 1) and abs(pixels - np.hypot(14, 5)) < 3
    for index, frame in enumerate(frames):
        write_picture(tmp_path / f"{index}.png", Picture(frame))
    command = ["fuse", str(tmp_path / "0.png"), str(tmp_path / "1.png"), "-o", str(tmp_path / "o.png")]
    assert main(command) == 0
    remark = capfd.readouterr().err
    assert remark.count("\n") == 1 and "are shifted by about 15 pixels: --align" in remark
    assert main([*command, "--align", "--crop"]) == 0
    said = capfd.readouterr().err
    assert "moved by" in said and "cropped to" in said and "are shifted" not in said
    fused = read_picture(tmp_path / "o.png")
    assert fused.alpha is None and fused.pixels.shape != frames[0].shape


@pytest.mark.parametrize(
    "stops, matrix, pixels",
    [
        ((-3, 1), hand("translation", shift=(4, -3)), 5),  # four stops apart, one of them dark
        ((0, 3), hand("translation", shift=(-20, 12)), 23),  # bright parts clipped
        ((-1, 1), hand("similarity", turn=1.5, shift=(0, 0), scale=1.0), 6.4),  # about the centre, which stays
        ((0, 2), hand("translation", shift=(150, 40)), 155),  # further than a tile
    ],
)
def test_small_shifts_turns_and_wide_steps_are_noticed(scene, stops, matrix, pixels):
    frames = [expose(scene, stops[0]), expose(scene, stops[1], matrix, 1)]
    found = align.apparent_shift(frames)
    assert found is not None and found[:2] == (0, 1) and abs(found[2] - pixels) < 0.2 * pixels
    grey = [frame[..., 1].astype(np.uint16) * 257 for frame in frames]
    assert align.apparent_shift(grey)[2] == pytest.approx(found[2], abs=1e-3)


def test_things_that_move_in_a_still_picture_are_no_shift(scene):
    frames = [expose(scene, 0), expose(scene, 2, None, 1)]
    frames[1][120:360, 150:500] = np.roll(frames[1], (25, 30), (0, 1))[120:360, 150:500]
    assert align.apparent_shift(frames) is None
    assert align.apparent_shift([np.full((300, 400, 3), level, np.uint8) for level in (90, 200)]) is None


def test_the_result_is_opaque_where_any_frame_is(scene, tmp_path):
    frames = [expose(scene, 0), expose(scene, 2, hand("translation", shift=(14, 5)), 1)]
    for index, frame in enumerate(frames):
        write_picture(tmp_path / f"{index}.png", Picture(frame))
    files = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    assert main(["fuse", *files, "-o", str(tmp_path / "o.png"), "--align"]) == 0
    fused = read_picture(tmp_path / "o.png")
    assert fused.alpha is None and fused.pixels.shape == frames[0].shape


def test_the_reference_stays_and_gives_its_exif(scene, tmp_path, capfd):
    from PIL import Image

    frames = [expose(scene, 0), expose(scene, 1, hand("translation"), 1)]
    for index, frame in enumerate(frames):
        exif = Image.Exif()
        exif[271] = f"Maker {index}"
        write_picture(tmp_path / f"{index}.png", Picture(frame, exif=exif.tobytes()))
    files = [str(tmp_path / f"{index}.png") for index in range(2)]
    for reference, index in ((files[1], 1), ("1", 0), ("2", 1)):
        assert main(["fuse", *files, "-o", str(tmp_path / "o.tif"), "--align", "--reference", reference]) == 0
        assert f"aligned to {files[index]}" in capfd.readouterr().err
        assert f"Maker {index}".encode() in read_picture(tmp_path / "o.tif").exif
    for options, message in (
        (["--align", "--reference", "3"], "--reference must be one of the pictures or a number from 1 to 2, got '3'"),
        (["--crop"], "--crop is for --align"),
        (["--reference", "1"], "--reference is for --align"),
    ):
        assert main(["fuse", *files, "-o", str(tmp_path / "x.tif"), *options]) == 2
        assert message in capfd.readouterr().err
