"""Pictures in files: read by content, written by extension, with alpha, ICC profile and EXIF."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.MpoImagePlugin import MpoImageFile

from ffmef import files
from ffmef.errors import InputError
from ffmef.imaging import formats, metadata
from ffmef.imaging.formats import FORMATS, check_target

__all__ = [
    "FORMATS", "Picture", "check_target", "decode_picture", "encode_picture", "hidden_decoder_messages",
    "read_picture", "to_eight_bit", "write_picture",
]  # fmt: skip

_SIXTEEN_BIT = ("PNG", "TIFF", "EXR")
_FLOAT = ("TIFF", "EXR")
_WITH_ALPHA = ("PNG", "TIFF", "WEBP", "EXR")
_LARGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}
_LARGEST_PICTURE = 1 << 30  # pixels; OpenCV's own limit, ten times the largest sensor
_JPEG_SEGMENT = 65533
_HEAD = 1 << 18  # bytes in which a file says what it holds
_GAIN_MAPS = (b"http://ns.adobe.com/hdr-gain-map/1.0/", b"urn:iso:std:iso:ts:21496:-1", b"HDRGainMap")
_PLUGINS = {"AVIF": "pillow_avif", "HEIF": "pillow_heif", "JXL": "pillow_jxl"}

_process_settings = threading.RLock()
_hiding = 0  # threads that are hiding decoders' messages
hidden_error_streams: list[int] = []  # the real standard error, while hidden_decoder_messages redirects it


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright, with what its file said about it.

    Attributes:
        pixels: uint8, uint16 or float32 (white is 1), (H, W, 3) for colour in the order R, G, B, or (H, W) for grey.
        alpha: same dtype, (H, W), the largest value (1) for opaque, or None.
        icc: an ICC profile that fits the pixels, or None.
        exif: the EXIF block, beginning with ``Exif`` and two zero bytes, or None. Its orientation is already applied.
        format: name of the file format: PNG, JPEG, TIFF, BMP, WEBP, GIF, PNM, EXR, AVIF, HEIF, JXL or a kind of raw
            file.
        orientation: the EXIF orientation that was applied, 1 to 8.
        white_balance: the gains with which a raw file was developed, or None.
        remarks: what was guessed or left out in reading.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "PNG"
    orientation: int = 1
    white_balance: tuple[float, ...] | None = None
    remarks: tuple[str, ...] = field(default=())


def read_picture(path: str | os.PathLike, *, white_balance: tuple[float, ...] | None = None) -> Picture:
    """Read one picture file; its content decides the format, not its name.

    8-bit, 16-bit and float samples are kept as they are; palettes, bilevel, CMYK and YCbCr pictures become 8-bit grey
    or RGB, CMYK by its profile; samples of PGM and PPM are scaled from their own white; OpenEXR's linear light becomes
    display values; AVIF, HEIF and JPEG XL become 8 bit. Camera raw files are developed by rawpy, an extra. The EXIF
    orientation is applied. From a file with several pages or frames, only the first is read, and a remark says so.

    Args:
        path: a PNG, JPEG, TIFF, BMP, WebP, GIF, PGM, PPM, OpenEXR, AVIF, HEIF, JPEG XL or camera raw file.
        white_balance: for raw files: the gains of another frame, which a bracket shares; None means the camera's.

    Returns:
        The picture, pixels uint8, uint16 or float32.

    Raises:
        InputError: the file is missing, unreadable, damaged or no picture, its samples are neither 8 to 16 bit unsigned
            nor floating point, or the library that reads its format is missing.
    """
    path = Path(path)
    return decode_picture(_read_bytes(path), str(path), white_balance=white_balance)


def decode_picture(data: bytes, name: str, *, white_balance: tuple[float, ...] | None = None) -> Picture:
    """Decode the content of a picture file, as :func:`read_picture` does; ``name`` begins the messages."""
    kind = formats.recognise(data)
    if kind is None and not data:
        raise InputError(f"{name}: the file is empty")
    try:
        if kind == "TIFF":
            from ffmef.imaging import raw

            kind = raw.kind_of_tiff(data) or kind
        if kind is not None and kind not in ("GIF", "PNM", *_PLUGINS, *formats.FORMATS.values()):
            return _decode_raw(data, kind, white_balance)
        if kind == "PNM" and data[1:2] in b"56":
            from ffmef.imaging import pnm

            return Picture(pnm.decode(data), format="PNM")
        if kind == "EXR":
            return _decode_exr(data)
        if kind == "TIFF":
            return _decode_tiff(data)
        with _open(data, kind) as image:
            return _decode(image, data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except Image.UnidentifiedImageError:
        other = formats.name_of_other(data)
        if other is not None:
            raise InputError(f"{name}: is {other}, which is not read: convert it to PNG or TIFF") from None
        raise InputError(f"{name}: not a {formats.NAMES} picture, or its header is damaged or of a rare kind") from None
    except MemoryError:
        raise InputError(f"{name}: not enough memory to decode it") from None
    except Exception as error:  # decoders of damaged files raise almost anything
        raise InputError(f"{name}: damaged or not supported: {_one_line(error)}") from None


def write_picture(
    path: str | os.PathLike,
    picture: Picture,
    *,
    quality: int | None = None,
    compression: int = 3,
    depth: int | None = None,
) -> Picture:
    """Write a picture in the format that the extension of its path names.

    PNG and TIFF keep 8 and 16 bit, TIFF and OpenEXR floating point, compressed without loss; WebP is lossless unless a
    quality is given, 8 bit; JPEG has no chroma subsampling, 8 bit; BMP is 8 bit. If the format has only 8 bit,
    16-bit samples are divided by 257 and rounded; if it has no alpha (JPEG, BMP), alpha is left out. The file
    appears complete or not at all: it is written under a temporary name beside the target and then renamed.

    Args:
        path: target ending in .png, .jpg, .jpeg, .tif, .tiff, .bmp, .webp or .exr. An existing file is replaced.
        picture: what to write; ``picture.format`` is ignored.
        quality: 1 to 100, of JPEG (None: 95) and WebP (None: lossless).
        compression: effort of PNG and TIFF, 0 (TIFF: none) to 9.
        depth: 8 or 16 bits per sample; None keeps the picture's depth as far as the format has it.

    Returns:
        The picture as the file holds it: after the reductions above, before JPEG's losses.

    Raises:
        InputError: the extension names no known format, the picture is too large for it, or the file cannot be written.
    """
    path = Path(path)
    name = check_target(path)
    data, picture = encode_picture(picture, name, str(path), quality=quality, compression=compression, depth=depth)
    files.write(path, data)
    return picture


def encode_picture(
    picture: Picture,
    format: str,
    name: str,
    *,
    quality: int | None = None,
    compression: int = 3,
    depth: int | None = None,
) -> tuple[bytes, Picture]:
    """Return the bytes that :func:`write_picture` writes, and the picture as they hold it."""
    picture = _fit(picture, format, name, depth)
    try:
        return _encode(picture, quality, compression), picture
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except MemoryError:
        raise InputError(f"{name}: not enough memory to encode it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be encoded as {format}: {_one_line(error)}") from None


@contextlib.contextmanager
def hidden_decoder_messages() -> Iterator[None]:
    """Keep C libraries' messages about a damaged file off the terminal, for commands, whose errors are one line.

    It redirects standard error of the whole process, so a library must not use it unasked. Threads share it: the first
    one hides messages, the last one shows them again.
    """
    global _hiding
    with _process_settings:
        if _hiding == 0:
            sys.stderr.flush()
            hidden_error_streams.append(os.dup(2))
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        _hiding += 1
    try:
        yield
    finally:
        with _process_settings:
            _hiding -= 1
            if _hiding == 0:
                sys.stderr.flush()
                saved = hidden_error_streams.pop()
                os.dup2(saved, 2)
                os.close(saved)


# Reading


def _read_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            kind = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):  # /dev/zero never ends
                raise InputError(f"{path}: is a device, not a picture")
            data = file.read()
    except InputError:
        raise
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory, not a picture") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise InputError(f"{path}: cannot be read: {files.reason(error)}") from None
    if not data:
        raise InputError(f"{path}: the file is empty")
    return data


def _open(data: bytes, kind: str | None) -> ImageFile.ImageFile:
    if kind is None:
        readers = ["PNG", "JPEG", "TIFF", "BMP", "WEBP"]
    else:
        if kind in _PLUGINS:
            _load_plugin(kind)
        readers = ["PPM" if kind == "PNM" else kind]
    with _quiet_decoders():
        return Image.open(io.BytesIO(data), formats=readers)


def open_lazily(path: Path, kind: str) -> ImageFile.ImageFile:
    """Open a picture and read only its header, for what it says about the picture."""
    if kind in _PLUGINS:
        _load_plugin(kind)
    with _quiet_decoders():
        return Image.open(path, formats=["PPM" if kind == "PNM" else kind])


def _load_plugin(kind: str) -> None:
    """Let Pillow read a format that needs a plug-in, or say which package is missing."""
    Image.preinit()
    Image.init()
    if kind in Image.OPEN:
        return
    try:
        if kind == "HEIF":
            import pillow_heif

            pillow_heif.register_heif_opener()
        else:
            __import__(_PLUGINS[kind])
    except ImportError:
        title = {"JXL": "JPEG XL"}.get(kind, kind)
        raise InputError(f"is a {title} picture, which needs {_PLUGINS[kind]}: pip install 'ffmef[formats]'") from None


def _decode(image: ImageFile.ImageFile, data: bytes) -> Picture:
    _check_size(*image.size)
    own = image.format or ""
    name = {"MPO": "JPEG", "PPM": "PNM"}.get(own, own)
    remarks = _remarks(image, data)
    sixteen = name == "PNG" and data[24] == 16
    if name == "PNG" and not sixteen:
        image.load()  # its EXIF may come after the pixels
    orientation, exif = metadata.read_exif(image.getexif)
    profile = image.info.get("icc_profile")
    if sixteen:
        from ffmef.imaging.png import decode_opencv

        _open(data, name).verify()  # OpenCV does not verify the chunks' checksums
        pixels, alpha = _split(decode_opencv(data), grey_alpha=data[25] == 4)
    else:
        pixels, alpha = _eight_bit(image)
        if name in ("TIFF", "AVIF", "HEIF", "JXL"):
            # Pillow and the plug-ins turn these themselves and drop the tag; a tag that is left is still to be applied.
            orientation = image.getexif().get(metadata.ORIENTATION, 1)
    return _upright(pixels, alpha, profile, exif, name, orientation, remarks)


def _upright(pixels, alpha, profile, exif, name, orientation, remarks=()) -> Picture:
    pixels = metadata.turn(pixels, orientation)
    alpha = None if alpha is None else metadata.turn(alpha, orientation)
    profile = metadata.fitting_profile(profile, pixels)
    return Picture(pixels, alpha, profile, exif, name, orientation, None, tuple(remarks))


def _check_size(width: int, height: int) -> None:
    if width * height > _LARGEST_PICTURE:
        raise InputError(f"at most {_LARGEST_PICTURE} pixels, got {width} x {height}")


def _remarks(image: ImageFile.ImageFile, data: bytes) -> tuple[str, ...]:
    """Return remarks about what is lost by reading only the first picture of a file as the screen shows it."""
    remarks: tuple[str, ...] = ()
    gain_map = any(name in data[:_HEAD] for name in _GAIN_MAPS)
    if gain_map:
        remarks += ("its HDR gain map is left out: the standard picture is used",)
    if image.format == "PNG":
        from ffmef.imaging import png

        remarks += png.remarks(data)
    if image.format != "MPO":
        remarks += _frames_remark(getattr(image, "n_frames", 1))
    elif isinstance(image, MpoImageFile) and not gain_map:
        # Cameras store previews and thumbnails beside the picture; nobody misses those.
        kinds = [entry["Attribute"]["MPType"] for entry in (image.mpinfo or {}).get(0xB002, ())[1:]]
        others = sum(not kind.startswith("Large Thumbnail") for kind in kinds)
        remarks += _frames_remark(1 + others if others else 1)
    return remarks + metadata.profile_remarks(image)


def _frames_remark(count: int) -> tuple[str, ...]:
    return (f"the first of {count} pictures in the file is used",) if count > 1 else ()


def _decode_tiff(data: bytes) -> Picture:
    from ffmef.imaging import tiff

    dtype = tiff.sample_type(data)
    remarks = _frames_remark(tiff.pages(data)) + tiff.remarks(data)
    orientation, exif = tiff.orientation_and_exif(data)
    if dtype == np.uint8 and not tiff.beyond_pillow(data):
        with _open(data, "TIFF") as image:
            _check_size(*image.size)
            profile = image.info.get("icc_profile")
            remarks += metadata.profile_remarks(image)
            pixels, alpha = _eight_bit(image)  # turned by Pillow
            pixels = metadata.turn_back(pixels, orientation)
            alpha = None if alpha is None else metadata.turn_back(alpha, orientation)
    else:
        profile = tiff.profile(data)
        pixels, alpha = _split(tiff.decode(data))
    return _upright(pixels, alpha, profile, exif, "TIFF", orientation, remarks)


def _decode_exr(data: bytes) -> Picture:
    from ffmef.imaging import exr

    samples, remarks = exr.decode(data)
    pixels, alpha = _split(samples)
    return Picture(pixels, alpha, format="EXR", remarks=remarks)


def _decode_raw(data: bytes, kind: str, white_balance: tuple[float, ...] | None) -> Picture:
    from ffmef.imaging import raw

    pixels, used = raw.develop(data, kind, white_balance)
    classic = data[:4] in (b"II*\0", b"MM\0*")
    _, exif = metadata.read_exif(lambda: metadata.tiff_exif(data)) if classic else (1, None)
    return Picture(pixels, exif=exif, format=kind, white_balance=used)


def _eight_bit(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    image.load()
    if image.mode.startswith(("I", "F")):
        raise InputError(f"samples must be 8 or 16 bit integers, got mode {image.mode} ({image.format})")
    if image.mode == "CMYK":
        image = metadata.from_cmyk(image)
    grey = image.mode in ("1", "L", "LA", "La")
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        samples = np.asarray(image.convert("LA" if grey else "RGBA"))
    else:
        samples = np.asarray(image.convert("L" if grey else "RGB"))
    return _split(samples, grey_alpha=grey)


def _split(samples: np.ndarray, grey_alpha: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Separate alpha, the last of two or four channels, from the picture."""
    if samples.ndim == 2:
        return samples, None
    channels = samples.shape[2]
    alpha = np.ascontiguousarray(samples[..., -1]) if channels in (2, 4) else None
    if alpha is not None and alpha.dtype.kind == "f":
        if np.isnan(alpha).any():
            raise InputError("alpha must be numbers, got NaN")
        alpha = np.clip(alpha, 0, 1)
    if channels < 3 or grey_alpha:
        return np.ascontiguousarray(samples[..., 0]), alpha
    return np.ascontiguousarray(samples[..., :3]), alpha


@contextlib.contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Allow large pictures, and keep Pillow's warnings off the terminal: anything important is raised as an error.

    These are settings of the process, so only one thread runs this at a time.
    """
    with _process_settings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


# Writing


def _fit(picture: Picture, format: str, name: str, depth: int | None) -> Picture:
    """Reduce a picture to what a format can hold."""
    height, width = picture.pixels.shape[:2]
    largest = _LARGEST_SIDE.get(format, max(height, width))
    if max(height, width) > largest:
        raise InputError(f"{name}: {format} holds at most {largest} pixels a side, got {width} x {height}")
    pixels, alpha = picture.pixels, picture.alpha
    if format not in _WITH_ALPHA:
        alpha = None
    if format == "EXR" or (depth is None and pixels.dtype.kind == "f" and format in _FLOAT):
        dtype: np.dtype = np.dtype(np.float32)
    elif format not in _SIXTEEN_BIT or depth == 8 or (depth is None and pixels.dtype == np.uint8):
        dtype = np.dtype(np.uint8)
    else:
        dtype = np.dtype(np.uint16)
    pixels = to_depth(pixels, dtype)
    alpha = None if alpha is None else to_depth(alpha, dtype)
    if pixels.ndim == 2 and (format == "WEBP" or (pixels.dtype == np.uint16 and alpha is not None)):
        pixels = np.dstack([pixels] * 3)  # WebP has no grey; few programs, and not Pillow, read 16-bit grey with alpha
    icc, exif = (None, None) if format in ("BMP", "EXR") else (picture.icc, picture.exif)
    if format == "JPEG" and len(exif or b"") > _JPEG_SEGMENT:
        exif = None  # too large: JPEG has only one segment for it
    return Picture(pixels, alpha, metadata.fitting_profile(icc, pixels), exif, format)


def to_depth(samples: np.ndarray, dtype) -> np.ndarray:
    """Return samples (H, W, ...) in another type: 255, 65535 and 1.0 are white; integers are rounded, floats clipped.

    >>> to_depth(np.array([[0, 51, 255]], np.uint8), np.uint16).tolist()
    [[0, 13107, 65535]]
    >>> to_depth(np.array([[0.2, 1.5]], np.float32), np.uint8).tolist()
    [[51, 255]]
    """
    dtype = np.dtype(dtype)
    if samples.dtype == dtype:
        return samples
    if dtype == np.uint8 and samples.dtype == np.uint16:
        return to_eight_bit(samples)
    if dtype == np.uint16 and samples.dtype == np.uint8:
        return samples * np.uint16(257)
    converted = np.empty(samples.shape, dtype)
    for row, source in zip(converted, samples):  # by rows: intermediate results then need no memory
        if dtype.kind == "f":
            row[...] = source / dtype.type(1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max)
        else:
            row[...] = np.rint(np.clip(source, 0, 1) * np.float64(np.iinfo(dtype).max))
    return converted


def to_eight_bit(samples: np.ndarray) -> np.ndarray:
    """Return uint16 samples (H, W, ...) as uint8, divided by 257 and rounded; uint8 as it is; floats 0..1 as 0..255.

    >>> to_eight_bit(np.array([[0, 128, 129, 65535]], np.uint16)).tolist()
    [[0, 0, 1, 255]]
    """
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype.kind == "f":
        return to_depth(samples, np.uint8)
    eight = np.empty(samples.shape, np.uint8)
    for row, source in zip(eight, samples):
        row[...] = (source.astype(np.uint32) + 128) // 257
    return eight


def _encode(picture: Picture, quality: int | None, compression: int) -> bytes:
    samples = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    if picture.format == "EXR":
        from ffmef.imaging import exr

        return exr.encode(picture.pixels, picture.alpha)
    if picture.format == "TIFF":
        from ffmef.imaging import tiff

        alpha = picture.alpha is not None
        return tiff.encode(samples, alpha=alpha, icc=picture.icc, exif=picture.exif, level=compression)
    if picture.pixels.dtype == np.uint16:
        from ffmef.imaging import png

        return png.encode16(samples, picture.icc, picture.exif, compression)
    lossless = {"lossless": True, "quality": 0, "method": 0, "exact": True}  # takes a tenth of the defaults' time
    options: dict[str, Any] = {
        "PNG": {"compress_level": compression},
        "JPEG": {"quality": quality or 95, "subsampling": 0},
        "BMP": {},
        "WEBP": {"quality": quality} if quality else lossless,
    }[picture.format]
    if picture.icc:
        options["icc_profile"] = picture.icc
    if picture.exif:
        options["exif"] = picture.exif
    target = io.BytesIO()
    Image.fromarray(samples).save(target, picture.format, **options)
    return target.getvalue()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
