"""Which format a file has, by its first bytes, and which one a target's extension names."""

from __future__ import annotations

import os
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
# What folders of pictures may hold besides.
READ_ONLY = (".avif", ".heic", ".heif", ".hif", ".jxl")
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
    *((start, "TIFF") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)
RAW_KINDS = ("CR3", "CR2", "RAF", "ORF", "RW2", "X3F", "MRW", "CRW")


def recognise(data: bytes) -> str | None:
    """Return the format that the first bytes of a file tell, raw kinds included, or None.

    A raw file that is a TIFF inside counts as TIFF here; :func:`ffmef.imaging.raw.kind_of_tiff` tells those apart.

    >>> recognise(b"FUJIFILMCCD-RAW 0201"), recognise(b"Dear diary")
    ('RAF', None)
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        size = min(int.from_bytes(data[:4], "big"), 256)
        brands = [data[8:12], *(data[start : start + 4] for start in range(16, size, 4))]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    name = next((name for start, name in _SIGNATURES if data.startswith(start)), None)
    return "CR2" if name == "TIFF" and data[8:10] == b"CR" else name


def check_target(path: str | os.PathLike) -> str:
    """Return the format that a target's extension names; raise early what ``write_picture`` would raise late.

    Raises:
        InputError: the extension names no known format, the target is a directory, or its directory does not exist or
            does not permit writing.
    """
    path = Path(path)
    name = FORMATS.get(path.suffix.lower())
    if name is None:
        raise InputError(f"{path}: the extension must be one of {', '.join(FORMATS)}, got {path.suffix or 'none'!r}")
    try:
        is_folder, directory = path.is_dir(), Path(os.path.realpath(path)).parent
        path.exists()  # a name that is too long is one for existing files too
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
