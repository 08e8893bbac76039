"""Which format a file has, by its first bytes, and which one a target's extension names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ffmef import files
from ffmef.errors import InputError

# What can be written, by extension.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".exr": "EXR",
}
# Further extensions that folders of pictures may hold.
READ_ONLY = (".avif", ".heic", ".heif", ".hif", ".jxl", ".ppm", ".pgm")
RAW = (
    ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".raf", ".orf", ".rw2", ".pef", ".srw",
    ".3fr", ".fff", ".iiq", ".erf", ".kdc", ".dcr", ".mrw", ".x3f",
)  # fmt: skip
NAMES = "PNG, JPEG, TIFF, BMP or WebP"

_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
    b"crx ": "CR3",
}
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"\x76\x2f\x31\x01", "EXR"),
    (b"\xff\x0a", "JXL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (b"FUJIFILMCCD-RAW", "RAF"),
    (b"IIRO", "ORF"),
    (b"IIRS", "ORF"),
    (b"MMOR", "ORF"),
    (b"IIU\0", "RW2"),
    (b"FOVb", "X3F"),
    (b"\0MRM", "MRW"),
    (b"II\x1a\0\0\0HEAPCCDR", "CRW"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    *((start, "TIFF") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)
# Formats that are recognised only so that a message can name them.
_OTHERS = (
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"#?RGBE", "a Radiance HDR picture"),
    (b"8BPS", "a Photoshop document"),
    (b"gimp xcf", "a GIMP document"),
    (b"SIMPLE  =", "a FITS file"),
    (b"%PDF", "a PDF document"),
    (b"\x1aE\xdf\xa3", "a film"),
)
_FILM_BRANDS = (b"isom", b"iso2", b"mp41", b"mp42", b"M4V ", b"qt  ", b"avc1")
_PNM = re.compile(rb"P[1-6]\s")
RAW_KINDS = ("CR3", "CR2", "RAF", "ORF", "RW2", "X3F", "MRW", "CRW")


def recognise(data: bytes) -> str | None:
    """Return the format that a file's first bytes show, raw kinds included, or None.

    A raw file that is a TIFF inside counts as TIFF here; :func:`ffmef.imaging.raw.kind_of_tiff` tells the two apart.

    >>> recognise(b"FUJIFILMCCD-RAW 0201"), recognise(b"Dear diary")
    ('RAF', None)
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        size = min(int.from_bytes(data[:4], "big"), 256)
        brands = [data[8:12], *(data[start : start + 4] for start in range(16, size, 4))]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    if _PNM.match(data[:3]):
        return "PNM"
    name = next((name for start, name in _SIGNATURES if data.startswith(start)), None)
    return "CR2" if name == "TIFF" and data[8:10] == b"CR" else name


def name_of_other(data: bytes) -> str | None:
    """Return in words what a recognised but unreadable file is, or None.

    >>> name_of_other(b"8BPS and so on")
    'a Photoshop document'
    """
    if data[4:8] == b"ftyp" and data[8:12] in _FILM_BRANDS:
        return "a film"
    return next((name for start, name in _OTHERS if data.startswith(start)), None)


def check_target(path: str | os.PathLike, extension: str | None = None) -> str:
    """Return the format that a target's extension names, and raise errors of ``write_picture`` before any work is done.

    Args:
        path: the target.
        extension: with a dot; replaces that of a name whose extension says nothing, such as a device's.

    Raises:
        InputError: the extension names no known format, the target is a directory, or its directory does not exist or
            does not permit writing.
    """
    if not os.fspath(path):
        raise InputError("the name of the target must not be empty")
    path = Path(path)
    name = FORMATS.get(path.suffix.lower()) or FORMATS.get(extension or "")
    if name is None and os.path.isdir(path):
        raise InputError(f"{path}: cannot be written: is a directory; name a file in it, such as {path / 'fused.jpg'}")
    if name is None:
        raise InputError(f"{path}: the extension must be one of {', '.join(FORMATS)}, got {path.suffix or 'none'!r}")
    try:
        is_folder, directory = path.is_dir(), Path(os.path.realpath(path)).parent
        path.exists()  # raises for a name that is too long, like writing
        has_directory = directory.is_dir()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise InputError(f"{path}: cannot be written: {files.reason(error)}") from None
    if is_folder:
        raise InputError(f"{path}: cannot be written: is a directory")
    if not has_directory:
        raise InputError(f"{path}: cannot be written: {directory} is not an existing directory")
    if not os.access(directory, os.W_OK):
        raise InputError(f"{path}: cannot be written: no permission to write in {directory}")
    return name
