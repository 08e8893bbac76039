"""``ffmef fuse``: what it writes, what it prints, and that a mistake costs one line and nothing else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ffmef
import ffmef.pipeline
from ffmef import models, picture
from ffmef.cli import main
from ffmef.imaging.io import Picture, read_picture, write_picture

EXAMPLES = Path(__file__).parents[2] / "examples"
UNDER, OVER = EXAMPLES / "courtyard_under.jpg", EXAMPLES / "courtyard_over.jpg"


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """A weights file of the right shape, so that these tests depend on nobody's training."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    models.save(models.FFMEF(), path)
    return str(path)


@pytest.fixture
def pair(tmp_path) -> list[str]:
    """A small pair in a folder of its own, beside which nothing may be left."""
    random = np.random.default_rng(0)
    paths = []
    for name, high in (("under", 90), ("over", 255)):
        write_picture(tmp_path / f"{name}.png", Picture(random.integers(0, high, (24, 20, 3), np.uint8)))
        paths.append(str(tmp_path / f"{name}.png"))
    return paths


def ffmef_fuse(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(ffmef.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ffmef.cli", "fuse", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


# What it does


def test_the_command(tmp_path, weights):
    target = tmp_path / "fused.png"
    done = ffmef_fuse(OVER, UNDER, "-o", target, "--weights", weights, "--threads", 1, "--backend", "reference")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{target}: 576 x 384, 8 bit, backend reference, ")
    assert done.stdout.endswith(" s\n") and done.stdout.count("\n") == 1
    expected = ffmef.fuse([read_picture(UNDER).pixels, read_picture(OVER).pixels], "mef", weights, backend="reference")
    np.testing.assert_array_equal(read_picture(target).pixels, expected)
    assert os.listdir(tmp_path) == ["fused.png"]


def test_the_order_of_the_arguments_does_not_matter(tmp_path, pair, weights):
    assert main(["fuse", *pair, "-o", str(tmp_path / "a.tif"), "--weights", weights]) == 0
    assert main(["fuse", *pair[::-1], "-o", str(tmp_path / "b.tif"), "--weights", weights]) == 0
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_roles_of_infrared_and_visible(tmp_path, pair, weights):
    roles = ["--infrared", pair[1], "--visible", pair[0]]
    target = tmp_path / "fused.png"
    assert main(["fuse", "--task", "vif", *roles, "-o", str(target), "--weights", weights]) == 0
    images = {"infrared": read_picture(pair[1]).pixels, "visible": read_picture(pair[0]).pixels}
    np.testing.assert_array_equal(read_picture(target).pixels, ffmef.fuse(images, "vif", weights))


def test_depth_alpha_and_metadata_arrive(tmp_path, weights, capsys):
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[271] = "Maker"
    for name, high in (("under", 20000), ("over", 65536)):
        pixels = random.integers(0, high, (24, 20, 3), np.uint16)
        alpha = np.full((24, 20), high - 1, np.uint16)
        write_picture(tmp_path / f"{name}.tif", Picture(pixels, alpha, None, exif.tobytes()))
    sources = [str(tmp_path / "under.tif"), str(tmp_path / "over.tif")]
    for suffix, remarks in ((".png", 0), (".jpg", 2)):
        target = tmp_path / f"fused{suffix}"
        assert main(["fuse", *sources, "-o", str(target), "--weights", weights]) == 0
        fused = read_picture(target)
        assert b"Maker" in fused.exif
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 1 + remarks
    assert printed[1:] == [
        f"{target}: reduced from 16 to 8 bit, because JPEG has no more",
        f"{target}: alpha left out, because JPEG has none",
    ]
    fused = read_picture(tmp_path / "fused.png")
    assert fused.pixels.dtype == np.uint16 and (fused.alpha == 19999).all()


def test_threads(tmp_path, pair, monkeypatch):
    given, fuse_pictures = [], ffmef.pipeline.fuse_pictures

    def listening(*arguments, threads, **options):
        given.append(threads)
        return fuse_pictures(*arguments, threads=threads, **options)

    monkeypatch.setattr(ffmef.pipeline, "fuse_pictures", listening)
    for options in (["--threads", "2"], ["--threads", "1"], []):
        assert main(["fuse", *pair, "-o", str(tmp_path / "fused.png"), *options]) == 0
    assert given == [2, 1, None]


@pytest.mark.parametrize("fault", ["not built", "other sources"])
def test_a_native_library_that_cannot_be_used_is_remarked_once(fault, tmp_path, pair, weights, monkeypatch, capsys):
    if fault == "not built":
        monkeypatch.setattr(picture, "_picture", None)
        monkeypatch.setattr(picture, "missing", "the native library was not built")
    else:
        monkeypatch.setattr(picture, "_read_network", lambda *_: None)
    assert main(["fuse", *pair, "-o", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("ffmef fuse: remark: torch fuses, which takes seconds longer: the native library was ")
    assert said.count("\n") == 1 and "'make build'" in said
    # Torch fuses these in any case, and its own kernels are there.
    for options in (["--weights", weights], ["--task", "mff"], ["--backend", "reference"]):
        assert main(["fuse", *pair, "-o", str(tmp_path / "a.png"), *options]) == 0
        assert "torch fuses" not in capsys.readouterr().err


def test_an_existing_file_is_replaced(tmp_path, pair, weights):
    target = tmp_path / "fused.png"
    target.write_text("before")
    assert main(["fuse", *pair, "-o", str(target), "--weights", weights]) == 0
    assert read_picture(target).pixels.shape == (24, 20, 3)


# Mistakes


def make(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.png"
    jpeg = io.BytesIO()
    Image.new("RGB", (20, 24), "red").save(jpeg, "JPEG")
    tiff = io.BytesIO()  # libtiff prints what it thinks of the scratch
    Image.effect_noise((20, 24), 50).save(tiff, "TIFF", compression="tiff_lzw", strip_size=100)
    sixteen = cv2.imencode(".png", np.random.default_rng(0).integers(0, 65536, (24, 20, 3), np.uint16))[1].tobytes()
    content = {
        "text": b"Dear diary,\n",
        "empty": b"",
        "half_jpeg": jpeg.getvalue()[: len(jpeg.getvalue()) * 3 // 4],
        "half_png": sixteen[: len(sixteen) // 2],
        "scratched_tiff": tiff.getvalue()[:60] + b"\xff" * 100 + tiff.getvalue()[160:],
    }
    if kind == "directory":
        path.mkdir()
    elif kind == "larger":
        write_picture(path, Picture(np.zeros((24, 21, 3), np.uint8)))
    elif kind != "missing":
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("missing", "no such file"),
        ("directory", "is a directory, not a picture"),
        ("empty", "the file is empty"),
        ("text", "not a PNG, JPEG, TIFF, BMP or WebP picture"),
        ("half_jpeg", "damaged or not supported: "),
        ("half_png", "damaged or not supported: "),
        ("scratched_tiff", "damaged or not supported: "),
        ("larger", "must have the size of {under}, 20 x 24 (width x height), got 21 x 24"),
    ],
)
def test_a_bad_picture(tmp_path, pair, capfd, kind, reason):
    bad = make(tmp_path, kind)
    expect_mistake(tmp_path, capfd, [pair[0], bad], f"{bad}", reason.format(under=pair[0]))


def test_a_bad_picture_in_a_process_of_its_own(tmp_path, pair):
    before = sorted(os.listdir(tmp_path))
    bad = make(tmp_path, "scratched_tiff")
    done = ffmef_fuse(pair[0], bad, "-o", tmp_path / "fused.png")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"ffmef fuse: {bad}: ") and done.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == sorted([*before, bad.name])


def expect_mistake(folder: Path, capfd, arguments: list, *parts: str) -> None:
    if "-o" not in arguments:
        arguments = [*arguments, "-o", folder / "fused.png"]
    before = sorted(os.listdir(folder))
    capfd.readouterr()
    assert main(["fuse", *map(str, arguments)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("ffmef fuse: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err
    assert sorted(os.listdir(folder)) == before


def test_a_picture_of_one_pixel(tmp_path, capfd):
    write_picture(tmp_path / "one.png", Picture(np.zeros((1, 1, 3), np.uint8)))
    expect_mistake(tmp_path, capfd, [tmp_path / "one.png"] * 2, "one.png must have at least 2 pixels", "got 1 x 1")


def test_a_picture_of_two_pixels_is_enough(tmp_path, weights):
    write_picture(tmp_path / "two.png", Picture(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)))
    two, target = str(tmp_path / "two.png"), str(tmp_path / "fused.png")
    assert main(["fuse", two, two, "-o", target, "--weights", weights]) == 0


def test_bad_weights(tmp_path, pair, capfd):
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "empty.pth").write_text("")
    save_file({"layer": torch.zeros(3)}, tmp_path / "other.safetensors")
    for name in ("text.pth", "text.safetensors", "empty.pth", "other.safetensors", "missing.pth"):
        path = tmp_path / name
        expect_mistake(tmp_path, capfd, [*pair, "--weights", path], str(path))
    expect_mistake(tmp_path, capfd, [*pair, "--weights", tmp_path], str(tmp_path))
    expect_mistake(tmp_path, capfd, [*pair, "--weights", "nonsense"], "nonsense")


def test_bad_options(tmp_path, pair, capfd, weights):
    good = [*pair, "--weights", weights]
    expect_mistake(tmp_path, capfd, [*good, "--backend", "abacus"], "backend must be one of", "'abacus'")
    expect_mistake(tmp_path, capfd, [*good, "--engine", "steam"], "--engine must be one of", "'steam'")
    expect_mistake(tmp_path, capfd, [*good, "--backend", "steam"], "backend must be one of", "'steam'")
    expect_mistake(tmp_path, capfd, [*good, "--device", "abacus"], "device 'abacus' cannot be used")
    expect_mistake(tmp_path, capfd, [*good, "--device", ""], "device '' cannot be used: ")
    expect_mistake(tmp_path, capfd, [*good, "--device", "meta"], "device 'meta' cannot be used: ")
    expect_mistake(tmp_path, capfd, [*good, "--device", "privateuseone"], "device 'privateuseone' cannot be used: ")
    expect_mistake(tmp_path, capfd, [*good, "--threads", 0], "--threads must be at least 1, got 0")
    expect_mistake(tmp_path, capfd, [*good, "--threads", 2**31], "--threads must be at most 4096, got 2147483648")
    expect_mistake(tmp_path, capfd, [*good, "--threads", "many"], "--threads must be a whole number, got 'many'")
    expect_mistake(tmp_path, capfd, [*good, "--task", "hdr"], "--task must be one of mef, mff, vif, got 'hdr'")
    expect_mistake(tmp_path, capfd, [pair[0], "--weights", weights], "PICTURE must be given at least twice, got 1")
    expect_mistake(tmp_path, capfd, [*good, "--visible", pair[0]], "--visible is for --task vif, got --task mef")
    vif = ["--task", "vif", "--weights", weights]
    expect_mistake(tmp_path, capfd, [*vif, "--infrared", pair[0]], "got no --visible")
    roles = ["--infrared", pair[0], "--visible", pair[1]]
    expect_mistake(tmp_path, capfd, [*vif, *roles, pair[0]], "takes its pictures by --infrared and --visible")


@pytest.mark.parametrize(
    "target, reason",
    [
        ("fused", "the extension must be one of .png"),
        ("fused.gif", "the extension must be one of .png"),
        ("folder.png", "is a directory"),
        ("missing/fused.png", "missing is not an existing directory"),
        ("n" * 300 + ".png", "cannot be written: File name too long"),
    ],
)
def test_a_bad_target(tmp_path, pair, capfd, target, reason):
    (tmp_path / "folder.png").mkdir()
    expect_mistake(tmp_path, capfd, [*pair, "-o", tmp_path / target], str(tmp_path / target), reason)


def test_a_folder_without_permission(tmp_path, pair, capfd, monkeypatch):
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr("ffmef.imaging.io.os.access", lambda path, mode: False)  # root may write anywhere
    target = tmp_path / "closed" / "p.png"
    expect_mistake(tmp_path, capfd, [*pair, "-o", target], f"{target}: cannot be written: no permission to write in")


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(28, "No space left on device", "fused.png"), "ffmef info: fused.png: No space left on device\n"),
        (OSError(36, "File name too long", "n" * 5000), f"ffmef info: {'n' * 200} ...: File name too long\n"),
        (OSError("anything"), "ffmef info: anything\n"),
        (MemoryError(), "ffmef info: there is not enough memory\n"),
        (
            RuntimeError("can't start new thread"),
            "ffmef info: the system permits no further thread: it lacks memory, or",
        ),
        (
            ImportError("x.so: failed to map segment from shared object"),
            "ffmef info: there is not enough memory to load",
        ),
        (Exception("alloc.cpp:73: error: (-4:Insufficient memory)"), "ffmef info: there is not enough memory\n"),
    ],
)
def test_what_the_system_refuses_is_one_line_in_every_command(error, line, monkeypatch, capsys):
    def refused(args):
        raise error

    monkeypatch.setattr("ffmef.commands.info.run", refused)
    assert main(["info"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1


def test_errors_of_the_program_itself_are_no_mistakes(monkeypatch):
    monkeypatch.setattr("ffmef.commands.info.run", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
@pytest.mark.parametrize("megabytes", [150, 250, 350])
def test_little_memory_is_one_line(pair, tmp_path, megabytes):
    """Also while libraries are loaded, of which OpenCV's OpenBLAS crashes where there is no memory for its threads."""
    limited = (
        "import resource, os, sys; most = int(sys.argv[1]) << 20; resource.setrlimit(resource.RLIMIT_AS, (most, most));"
        "os.execv(sys.executable, [sys.executable, '-m', 'ffmef', *sys.argv[2:]])"
    )
    command = ["fuse", "--task", "mff", *map(str, pair), "-o", str(tmp_path / "o.png")]
    done = subprocess.run([sys.executable, "-c", limited, str(megabytes), *command], capture_output=True, text=True)
    assert done.returncode in (0, 2), done
    assert done.returncode == 0 or ("memory" in done.stderr and done.stderr.count("\n") == 1)


def test_python_m_ffmef_is_the_command():
    command = [sys.executable, "-m", "ffmef"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"ffmef {ffmef.__version__}\n")
    failed = subprocess.run([*command, "fuse", "no-such.png", "-o", "x.png"], capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith("ffmef fuse:") and "Traceback" not in failed.stderr
