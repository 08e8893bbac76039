"""Further kinds of files and names: PNM, GIF, films, CMYK by its profile, gain maps, pipes as targets, odd names."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tifffile
from PIL import Image

from ffmef import cli, files
from ffmef.errors import InputError
from ffmef.imaging import png
from ffmef.imaging.io import Picture, read_picture, write_picture

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (24, 36, 3), dtype=np.uint8)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, image in (("a.png", COLOUR // 2), ("b.png", COLOUR)):
        write_picture(name, Picture(image))
    return "a.png", "b.png"


@pytest.mark.parametrize("white", [1, 100, 255, 1023, 65535])
@pytest.mark.parametrize("kind", [5, 6])
def test_white_of_a_pnm_file_is_its_own(tmp_path, kind, white):
    shape = (5, 7, 3) if kind == 6 else (5, 7)
    samples = RNG.integers(0, white + 1, shape)
    samples.flat[:2] = 0, white
    data = samples.astype(">u2" if white > 255 else "u1").tobytes()
    (tmp_path / "p.pnm").write_bytes(b"P%d\n# a remark 9 9\n7 5\n%d\n" % (kind, white) + data)
    picture = read_picture(tmp_path / "p.pnm")
    top = 65535 if white > 255 else 255
    assert picture.pixels.dtype == (np.uint16 if white > 255 else np.uint8)
    np.testing.assert_array_equal(picture.pixels, np.rint(samples * (top / white)))


def test_plain_pnm_and_damaged_ones(tmp_path):
    (tmp_path / "p.pgm").write_bytes(b"P2 3 1 255\n0 7 255\n")
    assert read_picture(tmp_path / "p.pgm").pixels.tolist() == [[0, 7, 255]]
    for content in (b"P5 4 4 255\n" + bytes(15), b"P5 0 4 255\n", b"P6 4 4 70000\n" + bytes(99), b"P5 4 x\n"):
        (tmp_path / "p.pgm").write_bytes(content)
        with pytest.raises(InputError, match=r"p\.pgm: damaged"):
            read_picture(tmp_path / "p.pgm")
    (tmp_path / "p.pgm").write_bytes(b"P5 99999 99999 255\n")
    with pytest.raises(InputError, match="at most 1073741824 pixels"):
        read_picture(tmp_path / "p.pgm")


def test_gif_and_further_frames(tmp_path):
    first, second = (Image.fromarray(image).quantize() for image in (COLOUR, COLOUR[::-1].copy()))
    first.save(tmp_path / "p.gif", save_all=True, append_images=[second])
    picture = read_picture(tmp_path / "p.gif")
    assert picture.format == "GIF" and picture.remarks == ("the first of 2 pictures in the file is used",)
    np.testing.assert_array_equal(picture.pixels, np.asarray(first.convert("RGB")))


@pytest.mark.parametrize(
    "start, name",
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (b"#?RADIANCE\n", "a Radiance HDR picture"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\0\0\0\x18ftypisom", "a film"),
    ],
)
def test_files_that_are_not_read_are_named(tmp_path, start, name):
    (tmp_path / "p.jpg").write_bytes(start + bytes(40))
    with pytest.raises(InputError, match=f"p.jpg: is {name}, which is not read: convert it"):
        read_picture(tmp_path / "p.jpg")


def test_sixteen_bit_tiff_in_which_white_is_zero(tmp_path):
    samples = RNG.integers(0, 65536, (9, 11), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", 65535 - samples, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(tmp_path / "p.tif").pixels, samples)


def cmyk_profile() -> bytes:
    """A table of 2 x 2 x 2 x 2 corners: lightness is 100 less 60 times magenta, every other ink does nothing."""
    corners = [(1 - 0.6 * (corner >> 2 & 1), 0.5, 0.5) for corner in range(16)]
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table += 4 * ramp + bytes(round(255 * v + 0.5 * (k > 0)) for c in corners for k, v in enumerate(c)) + 3 * ramp
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    tags, place, bodies = [], 128 + 4 + 3 * 12, b""
    for name, body in ((b"A2B0", table), (b"wtpt", white), (b"cprt", text)):
        body += bytes(-len(body) % 4)
        tags.append(name + struct.pack(">II", place + len(bodies), len(body)))
        bodies += body
    body = struct.pack(">I", 3) + b"".join(tags) + bodies
    header = bytearray(128)
    header[:4], header[8:12] = struct.pack(">I", 128 + len(body)), b"\x02\x40\0\0"
    header[12:24], header[36:40] = b"prtrCMYKLab ", b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    return bytes(header) + body


def test_cmyk_is_converted_by_its_profile(tmp_path):
    inks = np.zeros((4, 4, 4), np.uint8)
    inks[..., 0], inks[2:, :, 1] = 255, 255  # cyan everywhere, magenta below
    picture = Image.fromarray(inks, "CMYK")
    picture.save(tmp_path / "p.tif", icc_profile=cmyk_profile())
    read = read_picture(tmp_path / "p.tif")
    assert read.remarks == () and read.icc is None
    above, below = read.pixels[0, 0].astype(int), read.pixels[3, 0].astype(int)
    assert np.ptp(above) <= 4 and np.ptp(below) <= 4 and above.min() >= 250  # no cyan: the profile knows none
    assert abs(below.mean() - 94) <= 8  # a lightness of 40
    picture.save(tmp_path / "q.tif")
    read = read_picture(tmp_path / "q.tif")
    assert read.pixels[0, 0].tolist() == [0, 255, 255] and "CMYK without a usable ICC profile" in read.remarks[0]


def test_profiles_that_do_not_fit_are_remarked(tmp_path):
    for name, profile in (("garbage", b"garbage" * 20), ("lab", bytes(16) + b"Lab " + bytes(200))):
        Image.fromarray(COLOUR).save(tmp_path / f"{name}.png", icc_profile=profile)
        (remark,) = read_picture(tmp_path / f"{name}.png").remarks
        assert "damaged or of another colour space" in remark


@pytest.mark.parametrize(
    "kind, body, remark",
    [
        (b"gAMA", (100000).to_bytes(4, "big"), "its gamma of 1 is not applied: sRGB is assumed"),
        (b"gAMA", (45455).to_bytes(4, "big"), None),
        (b"cICP", bytes([9, 16, 0, 1]), "its colour space (cICP 9, 16) is not converted: sRGB is assumed"),
        (b"cICP", bytes([1, 13, 0, 1]), None),
    ],
)
def test_a_png_of_another_tone_curve_is_remarked(tmp_path, kind, body, remark):
    write_picture(tmp_path / "p.png", Picture(np.zeros((4, 5, 3), np.uint16)))
    data = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(data[:33] + png._chunk(kind, body) + data[33:])
    assert read_picture(tmp_path / "p.png").remarks == ((remark,) if remark else ())


def test_gain_maps_and_further_pictures_of_a_jpeg(tmp_path):
    first, second = Image.fromarray(COLOUR), Image.fromarray(COLOUR[:8, :8].copy())
    xmp = b'<x:xmpmeta xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"/>'
    first.save(tmp_path / "g.jpg", format="MPO", save_all=True, append_images=[second], xmp=xmp)
    assert read_picture(tmp_path / "g.jpg").remarks == ("its HDR gain map is left out: the standard picture is used",)
    first.save(tmp_path / "m.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_picture(tmp_path / "m.jpg").remarks == ("the first of 2 pictures in the file is used",)
    first.save(tmp_path / "p.jpg")
    assert read_picture(tmp_path / "p.jpg").remarks == ()


# Targets and names


def test_a_pipe_takes_the_data_and_stays(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    taken = []
    reader = threading.Thread(target=lambda: taken.append(pipe.read_bytes()))
    reader.start()
    files.write(pipe, bytes(200_000))
    reader.join(20)
    assert taken == [bytes(200_000)] and pipe.is_fifo() and os.listdir(tmp_path) == ["pipe.png"]


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="there is no /dev/stdout")
def test_standard_output_by_its_name_is_a_pipe_too(pair):
    command = [sys.executable, "-m", "ffmef", "fuse", *pair, pair[0], "-o", "/dev/stdout", "--format", "PNG"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(io.BytesIO(done.stdout)).size == read_picture(pair[0]).pixels.shape[1::-1]
    assert done.stdout.endswith(b"IEND\xaeB`\x82")
    assert f"remark: {pair[0]} is given 2 times and counts as often" in done.stderr.decode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_device_is_one_line(pair, capsys):
    assert cli.main(["fuse", *pair, "-o", "/dev/full", "--format", "png"]) == 2
    assert capsys.readouterr().err == "ffmef fuse: /dev/full: cannot be written: No space left on device\n"
    assert not os.path.isfile("/dev/full")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_help_into_a_full_device_fails():
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(files.__file__) + "/.."}
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "ffmef", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (2, b"ffmef: standard output: No space left on device\n")


def test_format_names_what_the_extension_does_not(pair, capsys):
    assert cli.main(["fuse", *pair, "-o", "plain", "--format", "tif"]) == 0
    assert read_picture("plain").format == "TIFF"
    assert cli.main(["fuse", *pair, "-o", "o.png", "--format", "tif"]) == 2
    assert "--format tif contradicts the extension of the target o.png" in capsys.readouterr().err
    assert not os.path.exists("o.png")


@pytest.mark.parametrize("name", ["two\nlines.png", "\x1b[31mred.png", "bad\udcff.png"])
def test_names_with_odd_characters_stay_on_one_line(pair, capfd, name):
    assert cli.main(["fuse", pair[0], name, "-o", "o.png"]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "\x1b" not in err and "no such file" in err
    assert cli.main(["fuse", *pair, "-o", name]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 1 and os.path.exists(name)


def test_a_terminal_without_the_letters_of_a_name(pair):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.path.dirname(files.__file__) + "/.."}
    command = [sys.executable, "-m", "ffmef", "fuse", *pair, "-o", "grün.png"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.startswith(b"gr\\xfcn.png: 36 x 24")


BLOCKED = """
import sys, time
class Finder:
    @staticmethod
    def find_spec(name, *_):
        if name == "argparse":
            print("importing", flush=True)
            time.sleep(30)
import ffmef.start
sys.meta_path.insert(0, Finder)
sys.modules.pop("argparse", None)
ffmef.start.main()
"""


def test_an_interruption_while_modules_are_imported_is_one_line(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(files.__file__) + "/.."}
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = process.communicate(timeout=25)
    assert (process.returncode, err) == (130, b"ffmef: interrupted\n") and time.monotonic() - started < 10
