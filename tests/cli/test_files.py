"""The truth about files: raw, float, deep and multi-page, orientation, profiles, ranges, and what a target may be."""

from __future__ import annotations

import functools
import io
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from ffmef.cli import main
from ffmef.errors import InputError
from ffmef.imaging import bracket, exr, formats, metadata, paths, raw
from ffmef.imaging.io import Picture, decode_picture, read_picture, write_picture

EXAMPLES = Path(__file__).parents[2] / "examples"
SUNSET = [EXAMPLES / f"sunset_{name}.jpg" for name in ("under", "middle", "over")]

random = np.random.default_rng(0)


@pytest.fixture(scope="module")
def sunset() -> list[np.ndarray]:
    return [read_picture(path).pixels[100:260, 100:340] for path in SUNSET]


def fuse(*arguments) -> int:
    return main(["fuse", *map(str, arguments)])


# Raw files


def dng(path: Path, gains=(0.5, 1.0, 0.25), scale: float = 1.0, size: int = 64) -> Path:
    """Write a linear DNG of a grey card: camera samples are grey divided by the gains that the camera noted."""
    grey = 0.2 * scale
    samples = np.round(65535 * grey * np.asarray(gains)[None, None] * np.ones((size, size, 1))).astype(np.uint16)
    rational = lambda values: sum(((round(v * 10000), 10000) for v in values), ())  # noqa: E731
    xyz_to_camera = np.linalg.inv([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    tags = [
        (271, 2, 0, "Maker", True),
        (50706, 1, 4, (1, 4, 0, 0), True),
        (50708, 2, 0, "Maker Model", True),
        (50721, 10, 9, rational(xyz_to_camera.ravel()), True),
        (50728, 5, 3, rational(gains), True),  # AsShotNeutral
        (50717, 4, 1, 65535, True),
        (50778, 3, 1, 21, True),
    ]
    tifffile.imwrite(path, samples, photometric=34892, extratags=tags, metadata=None, software=False)
    return path


def test_raw_files_are_developed_and_share_one_white_balance(tmp_path):
    pytest.importorskip("rawpy")
    first, second = dng(tmp_path / "a.dng"), dng(tmp_path / "b.tif", gains=(0.25, 1.0, 0.5), scale=0.5)
    alone = [read_picture(path) for path in (first, second)]
    for picture, grey in zip(alone, (0.2, 0.1)):
        assert picture.format == "DNG" and picture.pixels.dtype == np.uint16 and picture.pixels.shape == (64, 64, 3)
        middle = picture.pixels[20:40, 20:40].reshape(-1, 3).mean(0)
        np.testing.assert_allclose(middle, 65535 * exr.encode_display(np.float64(grey)), rtol=0.01)  # linear, then sRGB
    pictures, remarks = bracket.read_bracket([first, second])
    assert pictures[0].white_balance == pictures[1].white_balance
    red, _, blue = pictures[1].pixels[20:40, 20:40].reshape(-1, 3).mean(0)
    assert red < 0.75 * blue  # the second frame's own balance would make it grey
    assert any("white balance of" in line and "a.dng" in line for line in remarks)


@pytest.mark.parametrize("kind", ["DNG", "CR2", "RAF", "ORF", "RW2", "CR3", "NEF", "ARW", "sub"])
def test_raw_files_are_never_read_by_their_thumbnail(tmp_path, capfd, monkeypatch, kind):
    """A thumbnail in front, sensor samples behind; the name says TIFF. Without rawpy the line names it."""
    target = io.BytesIO()
    tags = {
        "DNG": [(50706, 1, 4, (1, 4, 0, 0), True)],
        "NEF": [(271, 2, 0, "NIKON CORPORATION", True)],
        "ARW": [(271, 2, 0, "SONY", True)],
    }.get(kind, [])
    with tifffile.TiffWriter(target) as file:
        thumbnail = {"photometric": "rgb", "subfiletype": 1, "extratags": tags, "metadata": None}
        file.write(random.integers(0, 255, (24, 32, 3), np.uint8), subifds=kind != "DNG", **thumbnail)
        if kind != "DNG":
            file.write(random.integers(0, 999, (48, 64), np.uint16), photometric="cfa" if kind != "sub" else None)
    data = target.getvalue()
    heads = {
        "CR2": b"II*\0\x10\0\0\0CR\x02\0",
        "RAF": b"FUJIFILMCCD-RAW 0201",
        "ORF": b"IIRO\x08\0\0\0",
        "RW2": b"IIU\0\x08\0\0\0",
        "CR3": b"\0\0\0\x18ftypcrx \0\0\0\x01",
    }
    path = tmp_path / "a.tif"
    path.write_bytes(heads.get(kind, b"") + data[len(heads.get(kind, b"")) :])
    target = tmp_path / "fused.png"
    for module in ("rawpy", None):
        if module is None:
            monkeypatch.setitem(sys.modules, "rawpy", None)
        if fuse(path, path, "-o", target) == 0:  # LibRaw is broad-minded about sensors
            assert module == "rawpy" and read_picture(target).pixels.shape[:2] == (48, 64)
            target.unlink()
            continue
        error = capfd.readouterr().err.splitlines()[-1]
        assert "raw file" in error, error
        assert not target.exists()
    assert "pip install 'ffmef[raw]'" in error


def test_pictures_are_not_taken_for_raw_files(tmp_path):
    """Pyramids keep smaller versions in sub-directories; pages may be reduced ones; scanners have makers."""
    pixels = random.integers(0, 255, (64, 64, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        tags = [(271, 2, 0, "SONY", True)]
        file.write(pixels, photometric="rgb", subifds=1, extratags=tags, metadata=None)
        file.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
    assert raw.kind_of_tiff((tmp_path / "pyramid.tif").read_bytes()) is None
    np.testing.assert_array_equal(read_picture(tmp_path / "pyramid.tif").pixels, pixels)


def test_damaged_directories_end():
    for data in (
        b"II*\0\x08\0\0\0",
        b"II*\0\x08\0\0\0\x01\0" + bytes(12) + struct.pack("<I", 8),
        b"MM\0*" + b"\xff" * 40,
    ):
        assert raw.kind_of_tiff(data) is None
    loop = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 330, 4, 1, 8) + struct.pack("<I", 8)
    assert raw.kind_of_tiff(loop) is None


# Floating point


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(12, 17, 3), (12, 17)], ids=["colour", "grey"])
def test_float_tiff(tmp_path, shape, dtype, options):
    if options.get("predictor"):
        pytest.importorskip("imagecodecs")
    pixels = random.random(shape).astype(dtype)
    tags = [(274, 3, 1, 6, True)]
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "f.tif", pixels, photometric=photometric, extratags=tags, metadata=None, **options)
    picture = read_picture(tmp_path / "f.tif")
    assert picture.pixels.dtype == np.float32 and picture.orientation == 6
    np.testing.assert_array_equal(picture.pixels, np.rot90(pixels, -1).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_big_tiff_is_turned(tmp_path, dtype, order):
    pixels = random.integers(0, 200, (12, 17, 3)).astype(dtype)
    options = {"photometric": "rgb", "bigtiff": True, "byteorder": order, "extratags": [(274, 3, 1, 6, True)]}
    tifffile.imwrite(tmp_path / "f.tif", pixels, **options)
    np.testing.assert_array_equal(read_picture(tmp_path / "f.tif").pixels, np.rot90(pixels, -1))


def test_tiff_that_pillow_cannot_read(tmp_path):
    """12 bits packed, a compression of later times, and a channel that nobody says is alpha."""
    pytest.importorskip("imagecodecs")
    samples = random.integers(0, 4096, (12, 17)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "12.tif", samples, bitspersample=12, photometric="minisblack")
    np.testing.assert_array_equal(read_picture(tmp_path / "12.tif").pixels, np.rint(samples * (65535 / 4095)))
    pixels = random.integers(0, 256, (12, 17, 4)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", compression="jpegxl", extrasamples=["unassalpha"])
    picture = read_picture(tmp_path / "x.tif")
    np.testing.assert_array_equal(np.dstack([picture.pixels, picture.alpha]), pixels)
    for deep in (pixels, pixels.astype(np.uint16)):
        tifffile.imwrite(tmp_path / "u.tif", deep, photometric="rgb", extrasamples=["unspecified"])
        picture = read_picture(tmp_path / "u.tif")
        np.testing.assert_array_equal(picture.pixels, deep[..., :3])
        assert picture.alpha is None and picture.remarks == (
            "a channel of no stated meaning is left out: it may be a mask or alpha",
        )


@pytest.mark.parametrize("suffix", [".tif", ".exr"])
@pytest.mark.parametrize("with_alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("shape", [(21, 34, 3), (21, 34)], ids=["colour", "grey"])
def test_float_round_trip(tmp_path, shape, with_alpha, suffix):
    if suffix == ".exr":
        pytest.importorskip("OpenEXR")
    pixels = random.random(shape).astype(np.float32)
    alpha = random.uniform(0.1, 1, shape[:2]).astype(np.float32) if with_alpha else None
    written = write_picture(tmp_path / f"f{suffix}", Picture(pixels, alpha))
    read = read_picture(tmp_path / f"f{suffix}")
    assert written.pixels.dtype == read.pixels.dtype == np.float32
    np.testing.assert_allclose(read.pixels, pixels, atol=0 if suffix == ".tif" else 1e-6)
    assert (read.alpha is not None) == with_alpha
    if with_alpha:
        np.testing.assert_array_equal(read.alpha, alpha)
    if suffix == ".tif" and not with_alpha:
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "f.tif"), pixels)


def test_layers_and_parts_of_exr(tmp_path, capsys):
    library = pytest.importorskip("OpenEXR")
    plane = random.random((6, 7)).astype(np.float32)
    kind = {"type": library.scanlineimage, "compression": library.ZIP_COMPRESSION}

    def read(*parts: dict) -> Picture:
        with library.File([library.Part({**kind, "name": str(n)}, part) for n, part in enumerate(parts)]) as file:
            file.write(str(tmp_path / "f.exr"))
        return read_picture(tmp_path / "f.exr")

    curve = "linear light is encoded by the sRGB curve"
    layer = {f"View.Combined.{colour}": plane for colour in "RGB"} | {"View.Depth.Z": plane}
    assert read(layer).remarks == ("its layer View.Combined is used", curve)
    assert read(layer).pixels.shape == (6, 7, 3)
    assert read({"Z": plane}).remarks == ("its only channel, Z, is used as grey", curve)
    assert read({"Y": plane}, {"Y": plane}).remarks == ("the first of 2 parts of the file is used", curve)
    with pytest.raises(InputError, match="or one layer of them, got a.R, b.R"):
        read({"a.R": plane, "b.R": plane})
    damaged = tmp_path / "f.exr"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged or not supported"):
        read_picture(damaged)
    assert capsys.readouterr().out == ""  # the picture itself may go there


def test_exr_holds_linear_light(tmp_path):
    library = pytest.importorskip("OpenEXR")
    write_picture(tmp_path / "f.exr", Picture(np.full((4, 5, 3), 188, np.uint8)))
    with library.File(str(tmp_path / "f.exr"), separate_channels=True) as file:
        assert sorted(file.channels()) == ["B", "G", "R"]
        np.testing.assert_allclose(file.channels()["G"].pixels, 0.5029, atol=1e-3)


@pytest.mark.parametrize("dtype, depth", [(np.uint8, 8), (np.uint16, 16)])
def test_float_becomes_what_the_target_holds(tmp_path, sunset, dtype, depth, capfd):
    for index, frame in enumerate(sunset):
        tifffile.imwrite(tmp_path / f"{index}.tif", (frame / 255).astype(np.float32), photometric="rgb")
        tifffile.imwrite(tmp_path / f"i{index}.tif", frame * np.uint16(257), photometric="rgb")
    frames = [tmp_path / f"{index}.tif" for index in range(3)]
    assert fuse(*frames, "-o", tmp_path / "f.png", "--output-depth", depth) == 0
    assert fuse(*(tmp_path / f"i{index}.tif" for index in range(3)), "-o", tmp_path / "i.png") == 0
    fused, integer = (read_picture(tmp_path / f"{name}.png").pixels for name in "fi")
    assert fused.dtype == dtype
    top = np.iinfo(dtype).max
    np.testing.assert_allclose(fused / top, integer / 65535, atol=0.51 / top + 1e-3)
    assert fuse(*frames, "-o", tmp_path / "f.tif") == 0
    assert read_picture(tmp_path / "f.tif").pixels.dtype == np.float32


def test_floats_beyond_the_range(tmp_path, sunset, capfd):
    for index, frame in enumerate(sunset):
        tifffile.imwrite(tmp_path / f"{index}.tif", (frame / 255 * 4).astype(np.float32), photometric="rgb")
        tifffile.imwrite(tmp_path / f"r{index}.tif", (frame / 255).astype(np.float32), photometric="rgb")
    frames = [str(tmp_path / f"{index}.tif") for index in range(3)]
    pictures, remarks = bracket.read_bracket(frames)
    assert len(remarks) == 1 and "from 0 to 4 are clipped to the range 0 to 1" in remarks[0]
    assert max(picture.pixels.max() for picture in pictures) == 1
    stretched, remarks = bracket.read_bracket(frames, stretch=True)
    plain, _ = bracket.read_bracket([str(tmp_path / f"r{index}.tif") for index in range(3)])
    assert len(remarks) == 1 and "stretched" in remarks[0]
    for one, other in zip(stretched, plain):
        np.testing.assert_allclose(one.pixels, other.pixels, atol=1e-6)
    tifffile.imwrite(tmp_path / "nan.tif", np.full(sunset[0].shape, np.nan, np.float32), photometric="rgb")
    with pytest.raises(InputError, match="nan.tif: samples must be numbers, got NaN"):
        bracket.read_bracket([frames[0], tmp_path / "nan.tif"])


# Other formats


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind, plugin", [("AVIF", None), ("HEIF", "pillow_heif"), ("JXL", "pillow_jxl")])
def test_plugin_formats(tmp_path, kind, plugin, orientation):
    if plugin is not None:
        module = pytest.importorskip(plugin)
        if kind == "HEIF":
            module.register_heif_opener()
    elif not __import__("PIL.features").features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255, 0, 0
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "Maker"
    Image.fromarray(pixels).save(tmp_path / "p.png", kind, quality=95, exif=exif.tobytes())
    assert formats.recognise((tmp_path / "p.png").read_bytes()) == kind
    picture = read_picture(tmp_path / "p.png")
    assert picture.format == kind
    upright = np.rot90(pixels, -1) if orientation == 6 else pixels
    assert picture.pixels.shape == upright.shape
    assert np.abs(picture.pixels.astype(int) - upright).mean() < 5
    assert b"Maker" in picture.exif


@pytest.mark.parametrize("kind, module", [("HEIF", "pillow_heif"), ("JXL", "pillow_jxl"), ("EXR", "OpenEXR")])
def test_a_missing_library_is_named(monkeypatch, kind, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(Image.OPEN, kind, raising=False)
    head = {"HEIF": b"\0\0\0\x18ftypheic", "JXL": b"\xff\x0a", "EXR": b"\x76\x2f\x31\x01"}[kind] + bytes(40)
    with pytest.raises(
        InputError, match=rf"^p: is an? .* picture, which needs {module}: pip install 'ffmef\[formats\]'$"
    ):
        decode_picture(head, "p")


def test_several_pages_are_remarked(tmp_path):
    pages = random.integers(0, 255, (3, 20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", pages, photometric="rgb")
    picture = read_picture(tmp_path / "p.tif")
    np.testing.assert_array_equal(picture.pixels, pages[0])
    assert picture.remarks == ("the first of 3 pictures in the file is used",)
    images = [Image.fromarray(page) for page in pages]
    images[0].save(tmp_path / "p.webp", save_all=True, append_images=images[1:], lossless=True)
    assert read_picture(tmp_path / "p.webp").remarks == picture.remarks
    images[0].save(tmp_path / "one.webp", lossless=True)
    assert read_picture(tmp_path / "one.webp").remarks == ()


# Orientation


def save_with_tag(path: Path, pixels: np.ndarray, tag: int) -> Path:
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("odd", [2, 3, 6, 8])
@pytest.mark.parametrize("common", [1, 6, 3])
def test_a_tag_that_contradicts_the_pixels(tmp_path, sunset, common, odd):
    """The camera pointed down: one frame says that it lies otherwise, its pixels do not."""
    if odd == common:
        pytest.skip("nothing differs")
    tags = (common, common, odd)
    files = [save_with_tag(tmp_path / f"{i}.png", f, tag) for i, (f, tag) in enumerate(zip(sunset, tags))]
    pictures, remarks = bracket.read_bracket(files)
    for picture, frame in zip(pictures, sunset):
        np.testing.assert_array_equal(picture.pixels, metadata.turn(frame, common))
    assert len(remarks) == 1 and f"orientation tags differ ({common}, {common}, {odd})" in remarks[0]


@pytest.mark.parametrize("odd", [3, 6])
def test_a_tag_that_the_pixels_agree_with(tmp_path, sunset, odd):
    square = [frame[:, :160] for frame in sunset]
    files = [save_with_tag(tmp_path / f"{i}.png", f, 1) for i, f in enumerate(square[:2])]
    files.append(save_with_tag(tmp_path / "odd.png", metadata.turn_back(square[2], odd), odd))
    pictures, remarks = bracket.read_bracket(files)
    np.testing.assert_array_equal(pictures[2].pixels, square[2])
    assert remarks == []


def test_sizes_that_differ_name_the_tag(tmp_path, sunset, capfd):
    files = [save_with_tag(tmp_path / "a.png", sunset[0], 1), save_with_tag(tmp_path / "b.png", sunset[1][:-8], 6)]
    assert fuse(*files, "-o", tmp_path / "o.png") == 2
    assert "EXIF orientation tags differ: 1 and 6" in capfd.readouterr().err


# Infrared and narrow ranges


def test_infrared_of_another_size(tmp_path, sunset):
    smooth = cv2.GaussianBlur(cv2.cvtColor(sunset[1], cv2.COLOR_RGB2GRAY), (0, 0), 4)
    write_picture(tmp_path / "ir.png", Picture(cv2.resize(smooth, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)))
    write_picture(tmp_path / "vi.png", Picture(sunset[1]))
    (infrared, visible), remarks = bracket.read_bracket([tmp_path / "ir.png", tmp_path / "vi.png"], "vif")
    assert infrared.pixels.shape == visible.pixels.shape[:2]
    assert np.abs(infrared.pixels.astype(int) - smooth).mean() < 1
    assert "scaled from 120 x 80 to 240 x 160" in remarks[0] and "differ" not in remarks[0]
    write_picture(tmp_path / "ir.png", Picture(cv2.resize(smooth, (120, 86), interpolation=cv2.INTER_AREA)))
    (infrared, _), remarks = bracket.read_bracket([tmp_path / "ir.png", tmp_path / "vi.png"], "vif")
    assert np.abs(infrared.pixels.astype(int) - smooth).mean() < 1
    assert "one field of view is assumed, though their shapes differ by 7%" in remarks[0]
    write_picture(tmp_path / "ir.png", Picture(smooth[:, :100]))
    with pytest.raises(InputError, match="size or the shape of .*, 240 x 160 .*, got 100 x 160"):
        bracket.read_bracket([tmp_path / "ir.png", tmp_path / "vi.png"], "vif")


@pytest.mark.parametrize("offset, gain", [(7200, 5.5), (28815, 10)], ids=["counts", "centikelvin"])
def test_radiometric_infrared(tmp_path, sunset, offset, gain):
    heat = cv2.cvtColor(sunset[1], cv2.COLOR_RGB2GRAY)
    write_picture(tmp_path / "ir.png", Picture((offset + heat.astype(float) * gain).astype(np.uint16)))
    write_picture(tmp_path / "vi.png", Picture(sunset[1]))
    files = [tmp_path / "ir.png", tmp_path / "vi.png"]
    for stretch in (False, True):
        (infrared, visible), remarks = bracket.read_bracket(files, "vif", stretch=stretch)
        low, high = np.percentile(heat[::2, ::2], (0.1, 99.9))
        expected = np.clip((heat - low) / (high - low), 0, 1)
        np.testing.assert_allclose(infrared.pixels / 65535, expected, atol=0.01)
        np.testing.assert_array_equal(visible.pixels, sunset[1] * np.uint16(257))
        assert len(remarks) == 1 and "stretched from" in remarks[0]
    # What uses its range, and what has 8 bits, is left alone.
    for pixels in (heat.astype(np.uint16) * 200, heat // 8):
        write_picture(tmp_path / "ir.png", Picture(pixels))
        (infrared, _), remarks = bracket.read_bracket(files, "vif")
        np.testing.assert_array_equal(infrared.pixels, pixels)
        assert not remarks
    for palette, told in ((cv2.COLORMAP_JET, 1), (None, 0)):  # false colours are said, three equal channels are none
        shown = np.dstack([heat] * 3) if palette is None else cv2.applyColorMap(heat, palette)[..., ::-1]
        write_picture(tmp_path / "ir.png", Picture(np.ascontiguousarray(shown)))
        remarks = bracket.read_bracket(files, "vif")[1]
        assert len(remarks) == told and all("in colour and its luminance is fused" in remark for remark in remarks)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_few_bits_in_a_deep_file(tmp_path, sunset, bits, capfd):
    for index, frame in enumerate(sunset):
        deep = np.rint(frame / 255 * (2**bits - 1)).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{index}.tif", deep, photometric="rgb")
    files = [tmp_path / f"{index}.tif" for index in range(3)]
    assert fuse(*files, "-o", tmp_path / "dark.png") == 0
    remark = capfd.readouterr().err
    assert remark.count("\n") == 1 and f"% of the range, as of {bits}-bit samples: --stretch" in remark
    pictures, remarks = bracket.read_bracket(files, stretch=True)
    assert len(remarks) == 1
    for picture, frame in zip(pictures, sunset):  # one factor for the bracket: exposures keep their relation
        np.testing.assert_allclose(picture.pixels / 65535, frame / 255, atol=1 / 2**bits)


def test_dark_eight_bit_brackets_are_not_remarked(tmp_path, sunset):
    files = []
    for index in range(2):
        files.append(tmp_path / f"{index}.png")
        write_picture(files[-1], Picture(sunset[0] // 8))
    assert bracket.read_bracket(files)[1] == []


# Profiles and EXIF


@functools.cache  # a profile holds the time of its making: two in different seconds are not equal
def wide_profile() -> bytes:
    """sRGB with red and blue swapped: as valid as any profile, and its conversion is known."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for place in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12):
        name = bytes(data[place : place + 4])
        swapped = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ", b"rTRC": b"bTRC", b"bTRC": b"rTRC"}
        data[place : place + 4] = swapped.get(name, name)
    return bytes(data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_mixed_profiles_are_converted_to_the_first(tmp_path, sunset, dtype):
    if dtype != np.uint8:
        pytest.importorskip("imagecodecs")
    scale = {"u1": np.uint8(1), "u2": np.uint16(257), "f4": np.float32(1 / 255)}[np.dtype(dtype).str[1:]]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_picture(tmp_path / "a.tif", Picture((sunset[0] * scale).astype(dtype), icc=srgb))
    write_picture(tmp_path / "b.tif", Picture((sunset[1][..., ::-1] * scale).astype(dtype), icc=wide_profile()))
    pictures, remarks = bracket.read_bracket([tmp_path / "a.tif", tmp_path / "b.tif"])
    assert pictures[1].icc == pictures[0].icc == srgb and pictures[1].pixels.dtype == dtype
    np.testing.assert_allclose(pictures[1].pixels / float(scale), sunset[1], atol=2)
    assert len(remarks) == 1 and "b.tif: colours converted from" in remarks[0]
    # Without a profile a picture counts as sRGB.
    write_picture(tmp_path / "a.tif", Picture((sunset[0] * scale).astype(dtype)))
    pictures, _ = bracket.read_bracket([tmp_path / "a.tif", tmp_path / "b.tif"])
    assert pictures[1].icc is None
    np.testing.assert_allclose(pictures[1].pixels / float(scale), sunset[1], atol=2)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_damaged_profile_counts_as_none(tmp_path, sunset, order):
    for name, icc in (("a", wide_profile()), ("b", wide_profile()[:200])):
        write_picture(tmp_path / f"{name}.png", Picture(sunset[0], icc=icc))
    paths = [tmp_path / f"{name}.png" for name in order]
    pictures, remarks = bracket.read_bracket(paths)
    target = wide_profile() if order == "ab" else None
    assert [picture.icc for picture in pictures] == [target, target]
    expected = metadata.convert_profile(sunset[0], *((None, target) if order == "ab" else (wide_profile(), None)))
    assert np.array_equal(pictures[1].pixels, expected) and np.array_equal(pictures[0].pixels, sunset[0])
    assert sum("b.png: its ICC profile is damaged and left out: sRGB is assumed" in remark for remark in remarks) == 1


def test_exif_of_the_result_has_no_thumbnail_and_no_orientation(tmp_path, sunset):
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 3
    exif.get_ifd(34665)[33434] = 0.01
    thumbnail = io.BytesIO()
    Image.fromarray(sunset[0][:20, :20]).save(thumbnail, "JPEG")
    exif.get_ifd(1)[513], exif.get_ifd(1)[514] = 0, len(thumbnail.getvalue())
    block = exif.tobytes()
    for index, frame in enumerate(sunset[:2]):
        Image.fromarray(frame).save(tmp_path / f"{index}.jpg", exif=block)
    assert fuse(tmp_path / "0.jpg", tmp_path / "1.jpg", "-o", tmp_path / "o.jpg") == 0
    with Image.open(tmp_path / "o.jpg") as image:
        found = image.getexif()
        assert found[271] == "Maker" and 274 not in found and not found.get_ifd(1)
        assert found.get_ifd(34665)[33434] == pytest.approx(0.01)


# Targets and sources


@pytest.fixture
def pair(tmp_path, sunset) -> list[Path]:
    for name, frame in zip("ab", sunset):
        write_picture(tmp_path / f"{name}.png", Picture(frame[:40, :50]))
    return [tmp_path / "a.png", tmp_path / "b.png"]


@pytest.mark.parametrize("spelling", ["same", "dots", "symlink", "hard link", "link to folder", "role"])
def test_an_output_that_is_an_input_is_refused(tmp_path, pair, capfd, spelling):
    before = pair[0].read_bytes()
    output = pair[0]
    if spelling == "dots":
        (tmp_path / "sub").mkdir()
        output = f"{tmp_path}/sub/../a.png"
    elif spelling == "symlink":
        output = tmp_path / "link.png"
        output.symlink_to(pair[0])
    elif spelling == "hard link":
        output = tmp_path / "hard.png"
        os.link(pair[0], output)
    elif spelling == "link to folder":
        (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
        output = tmp_path / "folder" / "a.png"
    inputs = ["--task", "vif", "--infrared", pair[0], "--visible", pair[1]] if spelling == "role" else pair
    assert fuse(*inputs, "-o", output) == 2
    error = capfd.readouterr().err
    assert "must not be one of the inputs" in error and error.count("\n") == 1
    assert pair[0].read_bytes() == before


def ffmef_process(*arguments, data: bytes | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ffmef", "fuse", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, env=environment, timeout=120)


def test_standard_input_and_output(tmp_path, pair):
    assert fuse(*pair, "-o", tmp_path / "o.tif") == 0
    done = ffmef_process("-", pair[1], "-o", "-", "--format", "tif", data=pair[0].read_bytes())
    assert done.returncode == 0 and done.stdout == (tmp_path / "o.tif").read_bytes()
    assert done.stderr.startswith(b"standard output: 50 x 40, 8 bit")
    done = ffmef_process("-", pair[1], "-o", "-", data=b"")
    assert (done.returncode, done.stdout) == (2, b"") and b"standard input) is empty" in done.stderr


def test_wildcards_that_no_shell_expanded(tmp_path, pair, monkeypatch):
    for number in (10, 9, 1):
        (tmp_path / f"f{number}.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert paths.expand(["f*.jpg", "-"]) == ["f1.jpg", "f9.jpg", "f10.jpg", "-"]
    (tmp_path / "f[1].jpg").write_bytes(b"")
    assert paths.expand(["f[1].jpg"]) == ["f[1].jpg"]
    with pytest.raises(InputError, match=r"^x\*.jpg: no such file, nor any that the pattern matches$"):
        paths.expand(["x*.jpg"])
    with pytest.raises(InputError, match="at most once"):
        paths.expand(["-", "-"])
    assert fuse("?.png", "-o", "o.jpg") == 0
    assert read_picture("o.jpg").pixels.shape == (40, 50, 3)


def test_quality_compression_and_depth(tmp_path, pair, capfd):
    def size(name: str, *options) -> int:
        assert fuse(*pair, "-o", tmp_path / name, *options) == 0
        return (tmp_path / name).stat().st_size

    assert size("o.jpg", "--quality", 50) < size("o.jpg")
    with Image.open(tmp_path / "o.jpg") as image:
        assert image.quantization[0][0] == 2 and [part[1:3] for part in image.layer] == [(1, 1)] * 3  # 95, 4:4:4
    assert size("o.webp", "--quality", 50) < size("o.webp")
    for name in ("o.png", "o.tif"):
        sizes = [size(name, "--compression", level) for level in (0, 1, 9)]
        assert sizes[0] > sizes[1] >= sizes[2]
    size("o.tif", "--compression", 0)
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        assert file.pages[0].compression == 1
    np.testing.assert_array_equal(read_picture(tmp_path / "o.tif").pixels, read_picture(tmp_path / "o.png").pixels)
    size("deep.png", "--output-depth", 16)
    deep = read_picture(tmp_path / "deep.png").pixels
    assert deep.dtype == np.uint16 and (deep % 257 != 0).mean() > 0.5  # fused at 16 bit, not widened afterwards
    capfd.readouterr()
    for options, message in (
        (("-o", "o.png", "--quality", 90), "--quality is for JPEG and WebP"),
        (("-o", "o.jpg", "--quality", 101), "--quality must be at most 100"),
        (("-o", "o.png", "--compression", 10), "--compression must be at most 9"),
        (("-o", "o.png", "--output-depth", 12), "--output-depth must be 8 or 16, got 12"),
        (("-o", "o.jpg", "--output-depth", 16), "--output-depth 16 is for PNG and TIFF"),
        (("-o", "-", "--format", "gif"), "--format must be one of"),
    ):
        assert fuse(*pair, *options) == 2
        assert message in capfd.readouterr().err


# Ctrl-C

INTERRUPTER = """
import os, signal, sys
moment, number = sys.argv.pop(1), int(sys.argv.pop(1))
def interrupt(*_, **__):
    os.kill(os.getpid(), number)
    for _ in range(10000):
        pass
    raise ImportError("went on after the signal")
import ffmef.cli
if moment == "import":
    class Finder:
        find_spec = staticmethod(lambda name, *_: interrupt() if name == "numpy" or name == "PIL" else None)
    for name in [n for n in sys.modules if n.split(".")[0] in ("PIL",)]:
        del sys.modules[name]
    sys.meta_path.insert(0, Finder)
else:
    from ffmef import pipeline
    from ffmef.imaging import bracket, io
    if moment == "read":
        bracket._read_all = interrupt
    elif moment == "fuse":
        pipeline.fuse_pictures = interrupt
    else:
        os.replace = interrupt
sys.exit(ffmef.cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("moment", "number", "word"),
    [(moment, signal.SIGINT, "interrupted") for moment in ("import", "read", "fuse", "write")]
    + [("write", signal.SIGTERM, "terminated"), ("write", signal.SIGHUP, "terminated")],
)
def test_an_interruption_is_one_line(tmp_path, pair, moment, number, word):
    before = sorted(os.listdir(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [
        sys.executable,
        "-c",
        INTERRUPTER,
        moment,
        str(int(number)),
        "fuse",
        *map(str, pair),
        "-o",
        str(tmp_path / "o.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"ffmef fuse: {word}\n")
    assert sorted(os.listdir(tmp_path)) == before


def test_decoders_are_hushed_by_threads_together(capfd):
    """The last one shows standard error again, whatever the order in which they end."""
    from ffmef.imaging.io import hidden_decoder_messages

    first, second = hidden_decoder_messages(), hidden_decoder_messages()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(2, b"hidden")
    second.__exit__(None, None, None)
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"
