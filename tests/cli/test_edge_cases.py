"""Rare cases of files and command lines: closed streams, alpha of every kind, frames that hold nothing."""

from __future__ import annotations

import io
import itertools
import pkgutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

import ffmef
from ffmef import align, cli, commands, deghost
from ffmef.errors import InputError
from ffmef.imaging.io import Picture, read_picture
from ffmef.pipeline import fuse_pictures


def _scene(height=40, width=56, stops=0.0, dtype=np.uint8):
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [np.sin(columns / (5 + k)) + np.cos(rows / (7 - k)) for k in range(3)]
    noise = np.random.default_rng(1).normal(0, 0.05, (height, width, 3))
    light = np.clip((np.stack(planes, -1) * 0.2 + 0.5 + noise) * 2.0**stops, 0, 1)
    return light.astype(dtype) if dtype(0.5) else np.rint(light * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture
def pair(tmp_path):
    paths = [str(tmp_path / name) for name in ("dark.png", "bright.png")]
    for path, stops in zip(paths, (-1.5, 1)):
        Image.fromarray(_scene(stops=stops)).save(path)
    return paths


# Streams that the caller closed


def _in_shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess:
    command = f'"$@" {redirection}'
    program = [sys.executable, "-m", "ffmef.cli", "fuse", *arguments]
    return subprocess.run(["/bin/sh", "-c", command, "sh", *program], capture_output=True, timeout=120)


def test_closed_standard_error_changes_nothing(pair, tmp_path):
    done = _in_shell("2>&-", *pair, "-o", str(tmp_path / "fused.png"))
    assert done.returncode == 0
    Image.open(tmp_path / "fused.png").load()
    done = _in_shell("2>&-", *pair, "-o", "-")
    assert done.returncode == 0
    Image.open(io.BytesIO(done.stdout)).load()  # no line of the report in it


@pytest.mark.parametrize(("redirection", "picture", "output"), [(">&-", None, "-"), ("<&-", "-", "fused.png")])
def test_a_closed_stream_that_is_needed_costs_one_line(pair, tmp_path, redirection, picture, output):
    output = output if output == "-" else str(tmp_path / output)
    done = _in_shell(redirection, picture or pair[0], pair[1], "-o", output)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and b"closed" in done.stderr
    assert not (tmp_path / "fused.png").exists()


# Mistakes on the command line


@pytest.mark.parametrize("arguments", [["--bogus"], ["-o"], []])
def test_a_mistake_in_the_options_costs_one_line(pair, capsys, arguments):
    with pytest.raises(SystemExit) as raised:
        cli.main(["fuse", *pair, *arguments])
    assert raised.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_unknown_option_is_reported_by_its_command(capsys):
    given = {"fuse": ["a", "b", "-o", "c"], "batch": ["a", "-o", "b"], "evaluate": ["a", "-o", "b"]}
    given |= {"export": ["--weights", "mef", "-o", "a.onnx"], "train": ["-o", "a"]}
    for command in (found.name for found in pkgutil.iter_modules(commands.__path__)):
        with pytest.raises(SystemExit) as raised:
            cli.main([command, *given.get(command, []), "--bogus", "x\n"])
        said = capsys.readouterr().err
        assert raised.value.code == 2 and len(said.splitlines()) == 1
        assert said.startswith(f"ffmef {command}: ") and "--bogus" in said, said
    with pytest.raises(SystemExit):
        cli.main(["--bogus", "train"])
    assert capsys.readouterr().err.startswith("ffmef: ")


def test_a_deghosting_frame_out_of_range_is_named_as_it_was_given(pair, tmp_path, capsys):
    assert cli.main(["fuse", *pair, "-o", str(tmp_path / "f.png"), "--deghost-from", "3"]) == 2
    assert "--deghost-from must be a number from 1 to 2, got 3" in capsys.readouterr().err


# Alpha


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_alpha_multiplied_into_the_samples_of_a_tiff_is_undone(tmp_path, dtype, channels, compression):
    colours = _scene(dtype=dtype)[..., :channels]
    opaque = 65535 if dtype == np.uint16 else 1
    alpha = np.full(colours.shape[:2], opaque // 2 if dtype == np.uint16 else 0.5, dtype)
    alpha[:, :5] = 0
    alpha[:, 5:9] = opaque
    multiplied = colours * (alpha / opaque)[..., None]
    multiplied = (np.rint(multiplied) if dtype == np.uint16 else multiplied).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.dstack([multiplied, alpha]),
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="contig",
        extrasamples=["assocalpha"],
        compression=compression,
    )
    picture = read_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.alpha, alpha)
    there = alpha > 0
    got, wanted = (
        picture.pixels[there].astype(float),
        np.squeeze(colours, -1)[there] if channels == 1 else colours[there],
    )
    assert np.abs(got - wanted).max() <= (1.01 if dtype == np.uint16 else 1e-6)


def test_alpha_in_floating_point_is_a_share(tmp_path):
    alpha = np.full((40, 56), 5, np.float32)
    alpha[0] = -1
    tifffile.imwrite(
        tmp_path / "a.tif", np.dstack([_scene(dtype=np.float32), alpha]), photometric="rgb", extrasamples=["unassalpha"]
    )
    assert set(np.unique(read_picture(tmp_path / "a.tif").alpha)) == {0, 1}
    alpha[3, 3] = np.nan
    tifffile.imwrite(
        tmp_path / "a.tif", np.dstack([_scene(dtype=np.float32), alpha]), photometric="rgb", extrasamples=["unassalpha"]
    )
    with pytest.raises(InputError, match="alpha must be numbers, got NaN"):
        read_picture(tmp_path / "a.tif")


# Frames that hold nothing


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_frame_that_is_transparent_everywhere_is_as_if_it_were_not_there(dtype):
    frames = [_scene(stops=stops, dtype=dtype) for stops in (-2, 0, 1)]
    empty = np.zeros(frames[0].shape[:2], dtype)
    fused = fuse_pictures([Picture(frames[0], empty), Picture(frames[2])])
    assert np.array_equal(fused.pixels, frames[2]) and fused.alpha is None
    fused = fuse_pictures([Picture(frames[2]), Picture(frames[0], empty), Picture(frames[1])])
    assert np.array_equal(fused.pixels, ffmef.fuse(frames[1:]))
    grey = frames[2][..., 0]
    assert np.array_equal(fuse_pictures([Picture(frames[0], empty), Picture(grey)]).pixels, np.dstack([grey] * 3))


def test_an_image_without_valid_pixels_cannot_be_what_moved_objects_come_from():
    frames = [_scene(stops=stops) for stops in (-2, 0, 1)]
    validity = [np.zeros(frames[0].shape[:2], np.uint8), None, None]
    fused = ffmef.fuse(frames, validity=validity, deghost=2)
    assert np.array_equal(fused, ffmef.fuse(frames[1:], deghost=1))
    with pytest.raises(InputError, match="deghost must name a frame that can be used"):
        ffmef.fuse(frames, validity=validity, deghost=0)


@pytest.mark.parametrize("shape", [(2, 1, 3), (40, 56, 3), (60, 80)])
def test_equal_frames_are_aligned_whatever_they_show(shape):
    frame = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8), (0, 0), 2)
    found = align.register([frame, frame.copy()], 0)
    assert [alignment.kind for alignment in found] == ["none", "none"]


# Ghosts in rare pictures


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_frame_that_moved_everywhere_takes_what_the_reference_shows(dtype):
    still = _scene(dtype=dtype)
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    moved = white - still
    fused = ffmef.fuse([still, moved], deghost=0).astype(float)
    assert np.abs(fused - still).mean() < 0.03 * white


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 1), (3, 3, 3), (1, 64, 3), (7, 5)])
def test_pictures_of_a_few_pixels_have_no_ghosts(shape):
    frames = [np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8) for seed in range(3)]
    assert ffmef.fuse(frames, deghost=True).shape == shape


def test_the_best_exposed_of_equally_good_frames_does_not_depend_on_the_order():
    frame = _scene()
    frames = [frame, frame[::-1].copy(), frame[:, ::-1].copy()]
    first = ffmef.fuse(frames, deghost=True)
    for order in itertools.permutations(frames):
        assert np.array_equal(ffmef.fuse(list(order), deghost=True), first)
        assert np.array_equal(order[deghost.best_exposed(order)], frames[deghost.best_exposed(frames)])
        assert np.array_equal(order[align.best_exposed(order)], frames[align.best_exposed(frames)])
