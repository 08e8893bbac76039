"""Pictures in files: PNG, JPEG, TIFF, BMP and WebP, 8 and 16 bit, with alpha, ICC profile and EXIF."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import shutil
import stat
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from ffmef.errors import InputError

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
}
_NAMES = "PNG, JPEG, TIFF, BMP or WebP"
_EXTENSIONS = ", ".join(FORMATS)
_SIXTEEN_BIT = ("PNG", "TIFF")
_WITH_ALPHA = ("PNG", "TIFF", "WEBP")
_LARGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}
_LARGEST_PICTURE = 1 << 30  # pixels; OpenCV's own limit, ten times the largest sensor

_STRIP_SAMPLES = 1 << 20  # samples of a TIFF strip
_ORIENTATION, _EXIF_IFD, _GPS_IFD = 274, 34665, 34853
# What describes the photograph. The rest of a TIFF directory describes the file that is left behind.
_DESCRIPTIVE_TAGS = {270, 271, 272, 282, 283, 296, 305, 306, 315, 33432}
_MAKER_NOTE, _EXIF_WIDTH, _EXIF_HEIGHT, _INTEROP_IFD = 37500, 40962, 40963, 40965
_JPEG_SEGMENT = 65533

_process_settings = threading.RLock()


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright, with what its file said about it.

    Attributes:
        pixels: uint8 or uint16, (H, W, 3) for colour in the order R, G, B, or (H, W) for grey.
        alpha: same dtype, (H, W), the largest value for opaque, or None.
        icc: ICC profile that fits the pixels, or None.
        exif: EXIF block, beginning with ``Exif`` and two zero bytes, or None. Its orientation is already applied.
        format: name of the file format: PNG, JPEG, TIFF, BMP or WEBP.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "PNG"


def read_picture(path: str | os.PathLike) -> Picture:
    """Read one picture file, decided by its content and not by its name.

    8- and 16-bit samples are kept as they are; palettes, bilevel, CMYK and YCbCr pictures become 8-bit grey or RGB. The
    EXIF orientation is applied. Of a file with several pages or frames the first is read.

    Args:
        path: a PNG, JPEG, TIFF, BMP or WebP file.

    Returns:
        The picture, pixels uint8 or uint16.

    Raises:
        InputError: the file is missing, not readable, no picture, damaged, or of a sample type other than 8 or 16 bit.
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        with _open(data) as image:
            return _decode(image, data, path)
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"{path}: not a {_NAMES} picture, or its header is damaged or of a rare kind") from None
    except MemoryError:
        raise InputError(f"{path}: not enough memory to decode it") from None
    except Exception as error:  # decoders of damaged files raise almost anything
        raise InputError(f"{path}: damaged or not supported: {_one_line(error)}") from None


def write_picture(path: str | os.PathLike, picture: Picture) -> Picture:
    """Write a picture into the format that the extension of its path names.

    PNG and TIFF keep 8 and 16 bit and compress without loss; WebP is lossless, 8 bit; JPEG is quality 95 without chroma
    subsampling, 8 bit; BMP is 8 bit. Where the format has only 8 bit, 16-bit samples are divided by 257 and rounded;
    where it has no alpha (JPEG, BMP), alpha is left out. The file appears complete or not at all: it is written under
    a temporary name beside the target and then renamed.

    Args:
        path: target ending in .png, .jpg, .jpeg, .tif, .tiff, .bmp or .webp. An existing file is replaced.
        picture: what to write; ``picture.format`` is ignored.

    Returns:
        The picture as the file holds it: after the reductions above, before JPEG's losses.

    Raises:
        InputError: the extension names no known format, the picture is too large for it, or the file cannot be written.
    """
    path = Path(path)
    picture = _fit(picture, check_target(path), path)
    try:
        data = _encode(picture)
    except MemoryError:
        raise InputError(f"{path}: not enough memory to encode it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be encoded as {picture.format}: {_one_line(error)}") from None
    try:
        _write_bytes(path, data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    return picture


def check_target(path: str | os.PathLike) -> str:
    """Return the format that a target's extension names; raise early what :func:`write_picture` would raise late.

    Raises:
        InputError: the extension names no known format, the target is a directory, or its directory does not exist or
            does not permit writing.
    """
    path = Path(path)
    name = FORMATS.get(path.suffix.lower())
    if name is None:
        raise InputError(f"{path}: the extension must be one of {_EXTENSIONS}, got {path.suffix or 'none'!r}")
    try:
        is_folder, directory = path.is_dir(), Path(os.path.realpath(path)).parent
        path.exists()  # a name that is too long is one for existing files too
        has_directory = directory.is_dir()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise InputError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    if is_folder:
        raise InputError(f"{path}: cannot be written: is a directory")
    if not has_directory:
        raise InputError(f"{path}: cannot be written: {directory} is not an existing directory")
    if not os.access(directory, os.W_OK):
        raise InputError(f"{path}: cannot be written: no permission to write in {directory}")
    return name


@contextlib.contextmanager
def hidden_decoder_messages() -> Iterator[None]:
    """Keep off the terminal what C libraries print about a damaged file, for commands: the error says it in one line.

    It redirects the standard error of the whole process, so a library must not do it on its own.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
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
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise InputError(f"{path}: the file is empty")
    return data


def _open(data: bytes) -> ImageFile.ImageFile:
    with _quiet_decoders():
        return Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "TIFF", "BMP", "WEBP"])


def _decode(image: ImageFile.ImageFile, data: bytes, path: Path) -> Picture:
    width, height = image.size
    if width * height > _LARGEST_PICTURE:
        raise InputError(f"{path}: at most {_LARGEST_PICTURE} pixels, got {width} x {height}")
    name = "JPEG" if image.format == "MPO" else image.format
    sixteen = name == "PNG" and data[24] == 16 or name == "TIFF" and _tiff_bits(image) == 16
    if name == "PNG" and not sixteen:
        image.load()  # its EXIF may come after the pixels
    orientation, exif = _read_exif(image)
    profile = image.info.get("icc_profile")
    if sixteen and name == "PNG":
        _open(data).verify()  # OpenCV does not check the sums of the chunks
        pixels, alpha = _split(_opencv(data), grey_alpha=data[25] == 4)
    elif sixteen:
        pixels, alpha = _split(_sixteen_bit_tiff(image, data))
    else:
        pixels, alpha = _eight_bit(image, path)
        if name == "TIFF":
            orientation = image.getexif().get(_ORIENTATION, 1)  # Pillow turns a TIFF itself, and drops the tag
    pixels = _turn(pixels, orientation)
    alpha = None if alpha is None else _turn(alpha, orientation)
    return Picture(pixels, alpha, _fitting_profile(profile, pixels), exif, name)


def _eight_bit(image: Image.Image, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    image.load()
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{path}: samples must be 8 or 16 bit integers, got mode {image.mode} ({image.format})")
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
    if channels < 3 or grey_alpha:
        return np.ascontiguousarray(samples[..., 0]), alpha
    return np.ascontiguousarray(samples[..., :3]), alpha


def _opencv(data: bytes) -> np.ndarray:
    import cv2

    with _quiet_decoders():
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("the 16-bit samples cannot be decoded")
    if samples.ndim == 3 and samples.shape[2] >= 3:
        samples[..., :3] = samples[..., 2::-1].copy()  # OpenCV's order is B, G, R
    return samples


def _tiff_bits(image: ImageFile.ImageFile) -> int:
    bits = set(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    formats = set(image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
    if formats != {1}:
        raise ValueError(f"samples must be unsigned integers, got TIFF sample format {sorted(formats)}")
    return max(bits)


def _sixteen_bit_tiff(image: ImageFile.ImageFile, data: bytes) -> np.ndarray:
    import tifffile

    with _quiet_decoders(), tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        if page.photometric not in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
            raise ValueError(f"16-bit TIFF must be RGB or grey, got {page.photometric.name}")
        planar = page.planarconfig != tifffile.PLANARCONFIG.CONTIG and page.samplesperpixel > 1
        if page.compression in tifffile.TIFF.DECOMPRESSORS or planar:
            samples = page.asarray()
            return np.moveaxis(samples, 0, -1) if planar else samples
    # tifffile leaves LZW and a few others to a further package. libtiff reads them, and turns the picture upright.
    return _turn_back(_opencv(data), image.getexif().get(_ORIENTATION, 1))


def _fitting_profile(profile: bytes | None, pixels: np.ndarray) -> bytes | None:
    """Keep a profile only where its colour space is that of the pixels: a CMYK profile says nothing about RGB."""
    space = b"RGB " if pixels.ndim == 3 else b"GRAY"
    return profile if profile and profile[16:20] == space else None


@contextlib.contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Let large pictures in, and keep the decoders' remarks off the terminal: what matters is raised as an error.

    All of these are settings of the process, so one thread at a time.
    """
    import cv2

    opencv = cv2.utils.logging
    tifffile = logging.getLogger("tifffile")
    with _process_settings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        level = opencv.setLogLevel(opencv.LOG_LEVEL_SILENT)
        disabled, tifffile.disabled = tifffile.disabled, True
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
            opencv.setLogLevel(level)
            tifffile.disabled = disabled


# Orientation and EXIF


def _turn(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Return the samples upright, given EXIF orientation 1 to 8."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return np.ascontiguousarray(samples)


def _turn_back(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Undo :func:`_turn`: its inverse is itself, but for the quarter turns, which are each other's."""
    return _turn(samples, {6: 8, 8: 6}.get(orientation, orientation))


def _read_exif(image: Image.Image) -> tuple[int, bytes | None]:
    """Return the orientation and a clean EXIF block without it. Damaged EXIF is dropped: the picture is still good."""
    try:
        source = image.getexif()
        orientation = source.get(_ORIENTATION, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        clean = Image.Exif()
        for tag in _DESCRIPTIVE_TAGS & set(source):
            clean[tag] = source[tag]
        details = dict(source.get_ifd(_EXIF_IFD))
        # Maker notes hold absolute offsets, which are wrong once moved; the interoperability directory likewise.
        details.pop(_MAKER_NOTE, None)
        details.pop(_INTEROP_IFD, None)
        if orientation in (5, 6, 7, 8) and {_EXIF_WIDTH, _EXIF_HEIGHT} <= set(details):
            details[_EXIF_WIDTH], details[_EXIF_HEIGHT] = details[_EXIF_HEIGHT], details[_EXIF_WIDTH]
        if details:
            clean.get_ifd(_EXIF_IFD).update(details)
        place = dict(source.get_ifd(_GPS_IFD))
        if place:
            clean.get_ifd(_GPS_IFD).update(place)
        return orientation, (clean.tobytes() if len(clean) or details or place else None)
    except Exception:  # as many ways to be damaged as there are cameras
        return 1, None


# Writing


def _fit(picture: Picture, name: str, path: Path) -> Picture:
    """Reduce a picture to what a format can hold."""
    height, width = picture.pixels.shape[:2]
    if max(height, width) > _LARGEST_SIDE.get(name, max(height, width)):
        raise InputError(f"{path}: {name} holds at most {_LARGEST_SIDE[name]} pixels a side, got {width} x {height}")
    pixels, alpha = picture.pixels, picture.alpha
    if name not in _WITH_ALPHA:
        alpha = None
    if name not in _SIXTEEN_BIT:
        pixels = to_eight_bit(pixels)
        alpha = None if alpha is None else to_eight_bit(alpha)
    if pixels.ndim == 2 and (name == "WEBP" or pixels.dtype == np.uint16 and alpha is not None):
        pixels = np.dstack([pixels] * 3)  # WebP has no grey; few programs, and not Pillow, read 16-bit grey with alpha
    icc, exif = (None, None) if name == "BMP" else (picture.icc, picture.exif)
    if name == "JPEG" and len(exif or b"") > _JPEG_SEGMENT:
        exif = None  # JPEG has one segment for it
    return Picture(pixels, alpha, _fitting_profile(icc, pixels), exif, name)


def to_eight_bit(samples: np.ndarray) -> np.ndarray:
    """Return uint16 samples (H, W, ...) as uint8, divided by 257 and rounded; uint8 as it is.

    >>> to_eight_bit(np.array([[0, 128, 129, 65535]], np.uint16)).tolist()
    [[0, 0, 1, 255]]
    """
    if samples.dtype == np.uint8:
        return samples
    eight = np.empty(samples.shape, np.uint8)
    for row, source in zip(eight, samples):
        row[...] = (source.astype(np.uint32) + 128) // 257
    return eight


def _encode(picture: Picture) -> bytes:
    if picture.format == "TIFF":
        return _encode_tiff(picture)
    if picture.pixels.dtype == np.uint16:
        return _encode_png16(picture)
    options = {
        "PNG": {"compress_level": 3},  # under half the time of level 6, a fifth larger
        "JPEG": {"quality": 95, "subsampling": 0},
        "BMP": {},
        "WEBP": {"lossless": True, "quality": 0, "method": 0, "exact": True},  # a tenth of the time of the defaults
    }[picture.format]
    if picture.icc:
        options["icc_profile"] = picture.icc
    if picture.exif:
        options["exif"] = picture.exif
    target = io.BytesIO()
    Image.fromarray(_joined(picture)).save(target, picture.format, **options)
    return target.getvalue()


def _joined(picture: Picture) -> np.ndarray:
    return picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])


def _encode_png16(picture: Picture) -> bytes:
    """Encode with OpenCV, which keeps 16 bit where Pillow does not, and put profile and EXIF behind the header."""
    import cv2

    samples = _joined(picture)
    if samples.ndim == 3:
        samples = samples[..., [2, 1, 0, 3][: samples.shape[2]]]
    encoded, buffer = cv2.imencode(".png", samples, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not encoded:
        raise ValueError("OpenCV cannot encode it")
    data = buffer.tobytes()
    end_of_header = 8 + 25  # signature, IHDR
    chunks = b""
    if picture.icc:
        chunks += _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc))
    if picture.exif:
        chunks += _png_chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0"))
    return data[:end_of_header] + chunks + data[end_of_header:]


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _encode_tiff(picture: Picture) -> bytes:
    """Write the directory with Pillow and the samples ourselves: Pillow has no 16-bit RGB, nor EXIF if compressing."""
    samples = _joined(picture)
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, channels = samples.shape
    bits = 8 * samples.itemsize
    rows = max(1, _STRIP_SAMPLES // (width * channels))
    strips = [_tiff_strip(samples[row : row + rows]) for row in range(0, height, rows)]
    sizes = tuple(len(strip) for strip in strips)

    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    if picture.exif:
        source = Image.Exif()
        source.load(picture.exif)
        for tag, value in source.items():
            directory[tag] = source.get_ifd(tag) if tag in (_EXIF_IFD, _GPS_IFD) else value
    directory[TiffImagePlugin.IMAGEWIDTH] = width
    directory[TiffImagePlugin.IMAGELENGTH] = height
    directory[TiffImagePlugin.BITSPERSAMPLE] = (bits,) * channels
    directory[TiffImagePlugin.COMPRESSION] = 8  # Adobe deflate
    directory[TiffImagePlugin.PREDICTOR] = 2  # differences along a row
    directory[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 2 if channels >= 3 else 1
    directory[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    directory[TiffImagePlugin.ROWSPERSTRIP] = rows
    directory[TiffImagePlugin.STRIPBYTECOUNTS] = sizes
    # Counted from the end of the directory, where the strips follow; Pillow adds its length.
    directory[TiffImagePlugin.STRIPOFFSETS] = tuple(itertools.accumulate(sizes[:-1], initial=0))
    if picture.alpha is not None:
        directory[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha that is not multiplied into the colours
    if picture.icc:
        directory[TiffImagePlugin.ICCPROFILE] = picture.icc
    target = io.BytesIO()
    directory.save(target)
    target.writelines(strips)
    return target.getvalue()


def _tiff_strip(samples: np.ndarray) -> bytes:
    differences = samples.copy()
    differences[:, 1:] -= samples[:, :-1]
    return zlib.compress(differences.astype(differences.dtype.newbyteorder("<"), copy=False), 3)


def _write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name in the same directory, then rename: the target is never half a file."""
    target = Path(os.path.realpath(path))  # a link stays a link
    temporary = target.with_name(f".ffmef-{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
