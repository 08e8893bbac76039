"""Colour, and pictures in files."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from ffmef.errors import InputError
from ffmef.imaging.colour import (
    grey_to_luminance,
    luminance,
    luminance_to_grey,
    merge_chroma,
    rgb_to_ycbcr,
    ycbcr_to_rgb,
)
from ffmef.imaging.io import Picture, check_target, read_picture, to_eight_bit, write_picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SUFFIXES = (".png", ".jpg", ".tif", ".bmp", ".webp")

random = np.random.default_rng(0)


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return random.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def exif_block(orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    exif[271] = "Maker"
    exif[282] = 72.0
    if orientation is not None:
        exif[274] = orientation
    exif.get_ifd(34665)[33434] = TiffImagePlugin.IFDRational(1, 60)
    exif.get_ifd(34665)[36867] = "2024:05:06 07:08:09"
    exif.get_ifd(34665)[37500] = b"offsets to nowhere"
    exif.get_ifd(34853)[1] = "N"
    return exif.tobytes()


def exif_content(block: bytes) -> tuple[dict, dict, dict]:
    exif = Image.Exif()
    exif.load(block)
    base = {tag: value for tag, value in exif.items() if tag not in (34665, 34853)}
    return base, dict(exif.get_ifd(34665)), dict(exif.get_ifd(34853))


# Colour


def test_colour_of_primaries_by_hand():
    ycbcr = rgb_to_ycbcr(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 100, 100]]], np.uint8))
    expected = [
        [16 + 255 * 0.256789, 128 - 255 * 0.148223, 128 + 255 * 0.439215],
        [16 + 255 * 0.504129, 128 - 255 * 0.290992, 128 - 255 * 0.367789],
        [16 + 255 * 0.097906, 128 + 255 * 0.439215, 128 - 255 * 0.071426],
        [16 + 85.8824, 128, 128],
    ]
    np.testing.assert_allclose(ycbcr[0], expected, atol=1e-4)
    assert ycbcr.dtype == np.float32


def test_colour_back_by_hand():
    rgb = ycbcr_to_rgb(np.array([[[116.0, 138.0, 98.0]]]))
    grey = 116.4383
    np.testing.assert_allclose(rgb[0, 0], [grey - 30 * 1.596027, grey - 10 * 0.391762 + 30 * 0.812969, grey + 20.1723])


def test_colour_round_trip():
    rgb = noise(9, 7, 3).astype(np.float64)
    np.testing.assert_allclose(ycbcr_to_rgb(rgb_to_ycbcr(rgb)), rgb, atol=1e-3)


def test_luminance_is_the_first_channel():
    rgb = noise(5, 6, 3)
    np.testing.assert_array_equal(luminance(rgb), rgb_to_ycbcr(rgb)[..., 0])


def test_grey_agrees_with_equal_channels():
    grey = noise(5, 6)
    np.testing.assert_allclose(grey_to_luminance(grey), luminance(np.dstack([grey] * 3)), atol=1e-4)
    np.testing.assert_allclose(luminance_to_grey(grey_to_luminance(grey)), grey, atol=1e-3)


def test_tensors_have_channels_third_from_last():
    rgb = noise(2, 5, 6, 3)
    tensor = torch.from_numpy(rgb).permute(0, 3, 1, 2)
    for convert in (rgb_to_ycbcr, ycbcr_to_rgb):
        expected = convert(rgb.astype(np.float32))
        np.testing.assert_allclose(convert(tensor).permute(0, 2, 3, 1), expected, atol=1e-4)
    np.testing.assert_allclose(luminance(tensor), luminance(rgb), atol=1e-4)
    np.testing.assert_allclose(luminance(torch.from_numpy(rgb), axis=-1), luminance(rgb), atol=1e-4)
    assert merge_chroma([torch.tensor([138.0]), torch.tensor([158.0])]).tolist() == [153.0]


def test_colour_is_differentiable():
    rgb = (torch.rand(1, 3, 4, 4, dtype=torch.float64) * 255).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: merge_chroma(ycbcr_to_rgb(rgb_to_ycbcr(x)).unbind(1)), rgb)


def test_colour_names_the_shape_it_refuses():
    with pytest.raises(ValueError, match=r"rgb must have 3 channels on axis -1, got shape \(4, 5\)"):
        luminance(np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"ycbcr must have 3 channels on axis -3, got shape \(2, 4, 5\)"):
        ycbcr_to_rgb(torch.zeros(2, 4, 5))


def test_chroma_merge_is_equation_1():
    chroma = [noise(8, 9, 2).astype(np.float64) for _ in range(3)]
    weights = [abs(plane - 128) for plane in chroma]
    expected = sum(c * w for c, w in zip(chroma, weights)) / sum(weights)
    np.testing.assert_allclose(merge_chroma(chroma), expected, rtol=1e-12)


def test_chroma_merge_without_colour_is_128():
    assert merge_chroma([np.full(3, 128.0), np.full(3, 128.0)]).tolist() == [128.0] * 3
    with pytest.raises(ValueError, match="at least 1 picture"):
        merge_chroma([])


# Round trips


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("with_alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("shape", [(21, 34, 3), (21, 34)], ids=["colour", "grey"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_round_trip(tmp_path, dtype, shape, with_alpha, suffix):
    pixels = noise(*shape, dtype=dtype)
    if suffix == ".jpg":  # smooth, so that its loss is small
        ramp = (np.arange(34) * (np.iinfo(dtype).max // 34)).astype(dtype)
        pixels = np.broadcast_to(ramp if len(shape) == 2 else ramp[:, None], shape).copy()
    alpha = noise(*shape[:2], dtype=dtype) if with_alpha else None
    written = write_picture(tmp_path / f"p{suffix}", Picture(pixels, alpha, SRGB, exif_block()))
    read = read_picture(tmp_path / f"p{suffix}")

    deep = suffix in (".png", ".tif")
    assert read.pixels.dtype == (dtype if deep else np.uint8)
    assert (read.alpha is not None) == (with_alpha and suffix not in (".jpg", ".bmp"))
    if read.alpha is not None:
        np.testing.assert_array_equal(read.alpha, alpha if deep else to_eight_bit(alpha))
    expected = pixels if deep else to_eight_bit(pixels)
    if read.pixels.ndim > expected.ndim:  # WebP, and 16-bit grey with alpha, are stored as colour
        assert suffix == ".webp" or (dtype == np.uint16 and with_alpha)
        expected = np.dstack([expected] * 3)
    difference = np.abs(read.pixels.astype(int) - expected)
    assert difference.max() <= (3 if suffix == ".jpg" else 0)
    assert read.format == written.format
    assert written.pixels.shape == read.pixels.shape and written.pixels.dtype == read.pixels.dtype
    assert read.icc == (SRGB if read.pixels.ndim == 3 and suffix != ".bmp" else None)
    if suffix != ".bmp":
        base, details, place = exif_content(read.exif)
        assert base == {271: "Maker", 282: 72.0}
        assert details == {33434: 1 / 60, 36867: "2024:05:06 07:08:09"}
        assert place == {1: "N"}


def test_sixteen_bit_files_are_read_by_other_programs(tmp_path):
    pixels, alpha = noise(70, 40, 3, dtype=np.uint16), noise(70, 40, dtype=np.uint16)
    for suffix in (".png", ".tif"):
        path = tmp_path / f"p{suffix}"
        write_picture(path, Picture(pixels, alpha, SRGB, exif_block()))
        bgra = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(bgra, np.dstack([pixels[..., ::-1], alpha]))
        with Image.open(path) as image:
            assert image.info["icc_profile"] == SRGB
            assert image.getexif().get_ifd(34665)[36867] == "2024:05:06 07:08:09"
    np.testing.assert_array_equal(tifffile.imread(path), np.dstack([pixels, alpha]))


def test_tiff_in_several_strips(tmp_path):
    pixels = noise(700, 600, 3)
    write_picture(tmp_path / "p.tif", Picture(pixels))
    with tifffile.TiffFile(tmp_path / "p.tif") as file:
        assert len(file.pages[0].dataoffsets) == 2
    np.testing.assert_array_equal(read_picture(tmp_path / "p.tif").pixels, pixels)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "p.tif"))[..., ::-1], pixels)


def test_jpeg_keeps_full_chroma(tmp_path):
    write_picture(tmp_path / "p.jpg", Picture(noise(16, 16, 3)))
    with Image.open(tmp_path / "p.jpg") as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3  # 4:4:4
        assert image.quantization[0][0] <= 2  # quality 95


def test_to_eight_bit_rounds():
    sixteen = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_eight_bit(sixteen), np.rint(sixteen / 257).astype(np.uint8))


# What other programs write


def tiff_bytes(pixels: np.ndarray, **options) -> bytes:
    target = io.BytesIO()
    tifffile.imwrite(target, pixels, photometric="rgb" if 3 in pixels.shape else "minisblack", **options)
    return target.getvalue()


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib", "predictor": True}, {"byteorder": ">"}, {"rowsperstrip": 5}, {"tile": (16, 16)}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_kinds(tmp_path, dtype, options):
    pixels = noise(20, 30, 3, dtype=dtype)
    (tmp_path / "p.tif").write_bytes(tiff_bytes(pixels, **options))
    np.testing.assert_array_equal(read_picture(tmp_path / "p.tif").pixels, pixels)
    (tmp_path / "g.tif").write_bytes(tiff_bytes(pixels[..., 0], **options))
    np.testing.assert_array_equal(read_picture(tmp_path / "g.tif").pixels, pixels[..., 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_in_planes(tmp_path, dtype):
    pixels = noise(20, 30, 3, dtype=dtype)
    (tmp_path / "p.tif").write_bytes(tiff_bytes(np.moveaxis(pixels, -1, 0).copy(), planarconfig="separate"))
    np.testing.assert_array_equal(read_picture(tmp_path / "p.tif").pixels, pixels)


def with_orientation(pixels: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray((pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels)
    image.getexif()[274] = orientation
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_with_lzw_and_orientation(tmp_path, orientation):
    pixels = noise(20, 30, 3, dtype=np.uint16)
    data = cv2.imencode(".tiff", pixels[..., ::-1])[1].tobytes()
    # OpenCV writes no orientation: put it in place of an entry that says what is so anyway (PlanarConfiguration 1).
    entry = struct.pack("<HHII", 284, 3, 1, 1)
    assert data.count(entry) == 1
    (tmp_path / "p.tif").write_bytes(data.replace(entry, struct.pack("<HHII", 274, 3, 1, orientation)))
    with tifffile.TiffFile(tmp_path / "p.tif") as file:
        assert file.pages[0].compression == tifffile.COMPRESSION.LZW
        assert file.pages[0].tags[274].value == orientation
    upright = np.asarray(ImageOps.exif_transpose(with_orientation(pixels, orientation)))
    np.testing.assert_array_equal(read_picture(tmp_path / "p.tif").pixels >> 8, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_applied_and_forgotten(tmp_path, suffix, orientation):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255, 0, 0
    pixels[:8, 8:16] = 0, 255, 0
    exif = Image.Exif()
    exif[271] = "Maker"
    exif[274] = orientation
    if suffix != ".tif":
        exif.get_ifd(34665)[40962], exif.get_ifd(34665)[40963] = 24, 16
    Image.fromarray(pixels).save(tmp_path / f"p{suffix}", exif=exif)
    with Image.open(tmp_path / f"p{suffix}") as stored:
        decoded = np.asarray(stored.convert("RGB")) if suffix == ".tif" else np.asarray(ImageOps.exif_transpose(stored))
    picture = read_picture(tmp_path / f"p{suffix}")
    np.testing.assert_array_equal(picture.pixels, decoded)
    assert picture.pixels.shape == ((24, 16, 3) if orientation >= 5 else (16, 24, 3))
    red = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
    assert picture.pixels[red][0] > 100  # the corner that EXIF says
    base, details, _ = exif_content(picture.exif)
    assert base == {271: "Maker"}
    if suffix != ".tif":
        assert (details[40962], details[40963]) == picture.pixels.shape[1::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation_of_sixteen_bit(tmp_path, suffix, orientation):
    pixels, alpha = noise(7, 9, 3, dtype=np.uint16), noise(7, 9, dtype=np.uint16)
    write_picture(tmp_path / f"p{suffix}", Picture(pixels, alpha, None, exif_block(orientation)))
    picture = read_picture(tmp_path / f"p{suffix}")
    upright = np.asarray(ImageOps.exif_transpose(with_orientation(pixels, orientation)))
    np.testing.assert_array_equal(picture.pixels >> 8, upright)
    upright = np.asarray(ImageOps.exif_transpose(with_orientation(alpha, orientation)))
    np.testing.assert_array_equal(picture.alpha >> 8, upright)


def test_png_grey_with_alpha_sixteen_bit(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    samples = noise(5, 6, 2, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 5, 16, 4, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "p.png").write_bytes(data)
    picture = read_picture(tmp_path / "p.png")
    np.testing.assert_array_equal(picture.pixels, samples[..., 0])
    np.testing.assert_array_equal(picture.alpha, samples[..., 1])


@pytest.mark.parametrize(
    "mode, transparent",
    [("1", False), ("P", False), ("P", True), ("LA", False), ("RGBA", False), ("CMYK", False)],
)
def test_pillow_modes(tmp_path, mode, transparent):
    image = Image.fromarray(noise(6, 7, 3)).convert(mode)
    path = tmp_path / ("p.tif" if mode == "CMYK" else "p.png")
    options = {"transparency": bytes(range(256))} if transparent else {}
    image.save(path, icc_profile=SRGB, **options)
    picture = read_picture(path)
    with Image.open(path) as stored:
        rgba = np.asarray(stored.convert("RGBA"))
    grey = mode in ("1", "LA")
    np.testing.assert_array_equal(picture.pixels, rgba[..., 0] if grey else rgba[..., :3])
    assert (picture.alpha is not None) == (transparent or mode in ("LA", "RGBA"))
    if picture.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, rgba[..., 3])
    assert picture.icc == (None if grey else SRGB)


def test_profile_of_another_colour_space_is_dropped(tmp_path):
    grey_profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    Image.fromarray(noise(6, 7, 3)).save(tmp_path / "p.png", icc_profile=grey_profile)
    assert read_picture(tmp_path / "p.png").icc is None
    Image.fromarray(noise(6, 7)).save(tmp_path / "g.png", icc_profile=grey_profile)
    assert read_picture(tmp_path / "g.png").icc == grey_profile


def test_content_decides_the_format(tmp_path):
    write_picture(tmp_path / "p.png", Picture(noise(6, 7, 3)))
    (tmp_path / "p.png").rename(tmp_path / "p.jpg")
    assert read_picture(tmp_path / "p.jpg").format == "PNG"


def test_damaged_exif_does_not_spoil_the_picture(tmp_path):
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "p.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffrubbish")
    assert read_picture(tmp_path / "p.jpg").exif is None


def test_exif_too_long_for_jpeg_is_left_out(tmp_path):
    exif = Image.Exif()
    exif[270] = "x" * 70000
    written = write_picture(tmp_path / "p.jpg", Picture(noise(8, 8, 3), exif=exif.tobytes()))
    assert written.exif is None and read_picture(tmp_path / "p.jpg").exif is None


def test_large_pictures_pass_the_decoder_s_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # the library refuses twice this
    write_picture(tmp_path / "p.png", Picture(noise(30, 30, 3)))
    assert read_picture(tmp_path / "p.png").pixels.shape == (30, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_reading_from_threads(tmp_path):
    pictures = [noise(40, 50, 3, dtype=np.uint16) for _ in range(6)]
    for index, pixels in enumerate(pictures):
        write_picture(tmp_path / f"{index}.png", Picture(pixels))
    read = {}

    def work(index: int) -> None:
        read[index] = read_picture(tmp_path / f"{index}.png").pixels

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, pixels in enumerate(pictures):
        np.testing.assert_array_equal(read[index], pixels)


# Files that cannot be used


def bad_file(tmp_path, kind: str):
    path = tmp_path / f"{kind}.png"
    jpeg = io.BytesIO()
    Image.fromarray(noise(40, 40, 3)).save(jpeg, "JPEG")
    jpeg = jpeg.getvalue()
    png = cv2.imencode(".png", noise(40, 40, 3, dtype=np.uint16))[1].tobytes()
    lzw = cv2.imencode(".tiff", noise(40, 40, 3, dtype=np.uint16))[1].tobytes()
    content = {
        "text": b"This is no picture.\n",
        "empty": b"",
        "gif": b"GIF89a" + bytes(40),
        "half_header": jpeg[:10],
        "half_jpeg": jpeg[: len(jpeg) // 2],
        "half_png": png[: len(png) // 2],
        "flipped_png": png[:2000] + bytes([png[2000] ^ 1]) + png[2001:],
        "half_tiff": tiff_bytes(noise(40, 40, 3, dtype=np.uint16))[:2000],
        "scratched_lzw_tiff": lzw[:100] + b"\xff" * 2000 + lzw[2100:],
        "signed_tiff": tiff_bytes(np.zeros((8, 8), np.int16)),
        "signed_rgb_tiff": tiff_bytes(np.zeros((8, 8, 3), np.int16)),
        "long_tiff": tiff_bytes(np.zeros((8, 8), np.uint32)),
    }
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("missing", "no such file"),
        ("directory", "is a directory"),
        ("empty", "the file is empty"),
        ("text", "not a PNG, JPEG, TIFF, BMP or WebP picture"),
        ("gif", "not a PNG, JPEG, TIFF, BMP or WebP picture"),
        ("signed_rgb_tiff", "must be unsigned integers or floating point"),
        ("half_header", "damaged"),
        ("half_jpeg", "damaged"),
        ("half_png", "damaged"),
        ("flipped_png", "damaged"),
        ("half_tiff", "damaged"),
        ("scratched_lzw_tiff", "damaged"),
        ("signed_tiff", "must be unsigned integers or floating point"),
        ("long_tiff", "8 to 16 bit"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path, capfd, kind, reason):
    path = bad_file(tmp_path, kind)
    with pytest.raises(InputError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert str(path) in message and reason in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")  # the decoders' own remarks stay away


@pytest.mark.parametrize(
    "target, reason",
    [
        ("p", "the extension must be one of .png"),
        ("p.gif", "the extension must be one of .png"),
        ("folder.png", "is a directory"),
        ("missing/p.png", "is not an existing directory"),
        ("file/p.png", "is not an existing directory"),
    ],
)
def test_bad_targets_are_named_with_the_reason(tmp_path, target, reason):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for attempt in (check_target, lambda path: write_picture(path, Picture(noise(4, 4, 3)))):
        with pytest.raises(InputError) as caught:
            attempt(tmp_path / target)
        assert str(tmp_path / target) in str(caught.value) and reason in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_too_large_for_the_format(tmp_path):
    with pytest.raises(InputError, match="WEBP holds at most 16383 pixels a side, got 16384 x 1"):
        write_picture(tmp_path / "p.webp", Picture(np.zeros((1, 16384, 3), np.uint8)))
    assert not os.listdir(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "p.png"
    target.write_bytes(b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ffmef.imaging.io.os.replace", full)
    with pytest.raises(InputError, match="p.png: cannot be written: No space left on device"):
        write_picture(target, Picture(noise(4, 4, 3)))
    assert os.listdir(tmp_path) == ["p.png"] and target.read_bytes() == b"before"


def test_permissions_and_links_stay(tmp_path):
    mask = os.umask(0o022)
    try:
        write_picture(tmp_path / "new.png", Picture(noise(4, 4, 3)))
        assert stat.S_IMODE((tmp_path / "new.png").stat().st_mode) == 0o644
        (tmp_path / "new.png").chmod(0o600)
        (tmp_path / "link.png").symlink_to(tmp_path / "new.png")
        pixels = noise(4, 4, 3)
        write_picture(tmp_path / "link.png", Picture(pixels))
    finally:
        os.umask(mask)
    assert (tmp_path / "link.png").is_symlink()
    assert stat.S_IMODE((tmp_path / "new.png").stat().st_mode) == 0o600
    np.testing.assert_array_equal(read_picture(tmp_path / "new.png").pixels, pixels)


def test_names_that_no_file_can_have(tmp_path):
    with pytest.raises(InputError, match="cannot be written: embedded null byte$"):
        check_target(tmp_path / "a\0b.png")
    with pytest.raises(InputError, match="cannot be written: File name too long$"):
        check_target(tmp_path / ("n" * 300 + ".png"))


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no /dev/zero here")
def test_a_device_is_not_read():
    """It would give bytes for ever."""
    with pytest.raises(InputError, match="^/dev/zero: is a device, not a picture$"):
        read_picture("/dev/zero")
