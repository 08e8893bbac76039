"""Reads 16-bit and floating-point TIFF, and writes all TIFF: Pillow can do neither."""

from __future__ import annotations

import io
import itertools
import logging
import zlib

import numpy as np

from ffmef.errors import InputError
from ffmef.imaging import metadata
from ffmef.imaging.png import decode_opencv

_STRIP_SAMPLES = 1 << 20  # samples per strip
_UNSIGNED, _FLOAT = 1, 3  # SampleFormat
_ICC_PROFILE = 34675
_ORIENTATION = 274
_UNKNOWN, _ASSOCIATED = 0, 1  # ExtraSamples: of no stated meaning; alpha that is multiplied into the colours
_BIG_ENDIAN_BIG_TIFF = b"MM\0+"
_WEBP = 50001  # compression that Pillow knows, but its wheels do not decode


def sample_type(data: bytes) -> np.dtype:
    """Return the type that holds a file's samples: uint8 (also for fewer bits), uint16 (also for 9 to 15) or float32.

    Raises:
        InputError: the samples are signed, complex, or integers of another width.
    """
    with _opened(data) as file:
        page = file.pages[0]
        bits, kind = page.bitspersample, page.sampleformat
    if kind == _FLOAT and bits in (16, 32, 64):
        return np.dtype(np.float32)
    if kind != _UNSIGNED:
        raise InputError(f"samples must be unsigned integers or floating point, got TIFF sample format {int(kind)}")
    if bits not in (1, 2, 4, *range(8, 17)):
        raise InputError(f"samples must be 8 to 16 bit integers or floating point, got {bits} bit integers")
    return np.dtype(np.uint16 if bits > 8 else np.uint8)


def beyond_pillow(data: bytes) -> bool:
    """Return whether Pillow cannot read a file because of its byte order or compression."""
    from PIL import TiffImagePlugin

    if data[:4] == _BIG_ENDIAN_BIG_TIFF:
        return True
    with _opened(data) as file:
        scheme = int(file.pages[0].compression)
    return scheme == _WEBP or scheme not in TiffImagePlugin.COMPRESSION_INFO


def orientation_and_exif(data: bytes) -> tuple[int, bytes | None]:
    """Return the EXIF orientation and a clean EXIF block, as :func:`ffmef.imaging.metadata.read_exif` does."""
    if data[:4] not in (_BIG_ENDIAN_BIG_TIFF, b"II+\0"):
        return metadata.read_exif(lambda: metadata.tiff_exif(data))
    with _opened(data) as file:  # Pillow misreads the directories of BigTIFF
        tag = file.pages[0].tags.get(_ORIENTATION)
    return (int(tag.value) if tag is not None and tag.value in range(1, 9) else 1), None


def remarks(data: bytes) -> tuple[str, ...]:
    """Return a remark if a file has a channel of no stated meaning, which is left out."""
    with _opened(data) as file:
        extra = tuple(file.pages[0].extrasamples)
    return ("a channel of no stated meaning is left out: it may be a mask or alpha",) if _UNKNOWN in extra else ()


def pages(data: bytes) -> int:
    """Return how many full-size pictures a file holds."""
    with _opened(data) as file:
        return sum(not page.is_reduced and not page.is_mask for page in file.pages[:1000])


def _opened(data: bytes):
    import tifffile

    logging.getLogger("tifffile").disabled = True  # anything important is raised
    return tifffile.TiffFile(io.BytesIO(data))


def decode(data: bytes) -> np.ndarray:
    """Return the samples, not turned: of :func:`sample_type`, (H, W) or (H, W, channels), alpha not multiplied in."""
    samples = _decode(data)
    with _opened(data) as file:
        extra, bits = tuple(file.pages[0].extrasamples), file.pages[0].bitspersample
    if samples.dtype == np.uint16 and bits < 16:
        white = (1 << bits) - 1
        samples = ((samples.astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)
    if samples.ndim == 3 and extra[:1] == (_UNKNOWN,):
        return samples[..., : samples.shape[2] - len(extra)]
    if samples.ndim == 3 and samples.shape[2] in (2, 4) and extra[:1] == (_ASSOCIATED,):
        return _divided(samples)
    return samples


def _divided(samples: np.ndarray) -> np.ndarray:
    """Divide the other channels by the last one, alpha, which was multiplied into them."""
    opaque = np.float32(np.iinfo(samples.dtype).max if samples.dtype.kind == "u" else 1)
    alpha = samples[..., -1:].astype(np.float32)
    colours = samples[..., :-1] * (opaque / np.where(alpha > 0, alpha, opaque))
    if samples.dtype.kind == "u":
        colours = np.rint(np.minimum(colours, opaque))
    return np.concatenate([colours.astype(samples.dtype), samples[..., -1:]], -1)


def _decode(data: bytes) -> np.ndarray:
    import tifffile

    with _opened(data) as file:
        page = file.pages[0]
        integers = page.sampleformat == _UNSIGNED
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and integers and page.samplesperpixel == 1:
            return (1 << page.bitspersample) - 1 - page.asarray()
        if page.photometric not in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
            raise ValueError(f"TIFF of its depth or compression must be RGB or grey, got {page.photometric.name}")
        planar = page.planarconfig != tifffile.PLANARCONFIG.CONTIG and page.samplesperpixel > 1
        predictable = page.predictor in tifffile.TIFF.UNPREDICTORS
        packed = integers and page.bitspersample not in (8, 16)
        if (page.compression in tifffile.TIFF.DECOMPRESSORS and predictable) or planar or packed:
            samples = page.asarray()
            samples = np.moveaxis(samples, 0, -1) if planar else samples
            return samples if samples.dtype.kind == "u" else samples.astype(np.float32)
    # tifffile needs a further package for LZW and a few others. libtiff reads them, and turns the picture upright.
    samples = decode_opencv(data, (np.uint8, np.uint16, np.float32, np.float64))
    samples = samples if samples.dtype.kind == "u" else samples.astype(np.float32)
    orientation, _ = orientation_and_exif(data)
    return metadata.turn_back(samples, orientation)


def profile(data: bytes) -> bytes | None:
    """Return the ICC profile of the first page."""
    with _opened(data) as file:
        tag = file.pages[0].tags.get(_ICC_PROFILE)
        return bytes(tag.value) if tag is not None else None


def encode(samples: np.ndarray, *, alpha: bool, icc: bytes | None, exif: bytes | None, level: int) -> bytes:
    """Return a file with uint8, uint16 or float32 samples, (H, W) or (H, W, channels).

    Pillow writes the directory and we write the strips: Pillow has no 16-bit RGB, and no EXIF with compression.

    Args:
        alpha: the last channel is alpha, not multiplied into the colours.
        level: of deflate, 0 to 9; 0 stores without compression.
    """
    from PIL import Image, TiffImagePlugin

    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, channels = samples.shape
    real = samples.dtype.kind == "f"
    rows = max(1, _STRIP_SAMPLES // (width * channels))
    strips = [_strip(samples[row : row + rows], level) for row in range(0, height, rows)]
    sizes = tuple(len(strip) for strip in strips)

    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    if exif:
        source = Image.Exif()
        source.load(exif)
        for tag, value in source.items():
            directory[tag] = source.get_ifd(tag) if tag in (metadata.EXIF_IFD, metadata.GPS_IFD) else value
    directory[TiffImagePlugin.IMAGEWIDTH] = width
    directory[TiffImagePlugin.IMAGELENGTH] = height
    directory[TiffImagePlugin.BITSPERSAMPLE] = (8 * samples.itemsize,) * channels
    directory[TiffImagePlugin.COMPRESSION] = 8 if level else 1  # Adobe deflate
    if level and not real:
        directory[TiffImagePlugin.PREDICTOR] = 2  # differences along a row
    directory[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 2 if channels >= 3 else 1
    directory[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    if real:
        directory[TiffImagePlugin.SAMPLEFORMAT] = (_FLOAT,) * channels
    directory[TiffImagePlugin.ROWSPERSTRIP] = rows
    directory[TiffImagePlugin.STRIPBYTECOUNTS] = sizes
    # Counted from the end of the directory, where the strips follow; Pillow adds its length.
    directory[TiffImagePlugin.STRIPOFFSETS] = tuple(itertools.accumulate(sizes[:-1], initial=0))
    if alpha:
        directory[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha that is not multiplied into the colours
    if icc:
        directory[TiffImagePlugin.ICCPROFILE] = icc
    target = io.BytesIO()
    directory.save(target)
    target.writelines(strips)
    return target.getvalue()


def _strip(samples: np.ndarray, level: int) -> bytes:
    little = samples.dtype.newbyteorder("<")
    if not level:
        return samples.astype(little, copy=False).tobytes()
    if samples.dtype.kind != "f":
        differences = samples.copy()
        differences[:, 1:] -= samples[:, :-1]
        samples = differences
    return zlib.compress(samples.astype(little, copy=False).data, level)
