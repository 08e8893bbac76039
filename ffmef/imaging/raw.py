"""Camera raw files: recognised by their content, developed by LibRaw (rawpy), never replaced by their thumbnail."""

from __future__ import annotations

import io
import struct

import numpy as np

from ffmef.errors import InputError

_REDUCED = 1  # NewSubfileType of a thumbnail
_CFA, _LINEAR_RAW = 32803, 34892  # PhotometricInterpretation
_DNG_VERSION, _MAKE, _SUB_IFDS = 50706, 271, 330
# Compression schemes that only cameras write: Sony, Samsung and others, Nikon, Pentax, Kodak.
_CAMERA_COMPRESSIONS = {32767, 32769, 32770, 34713, 65000, 65535}
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_MOST_DIRECTORIES, _MOST_ENTRIES = 32, 1000
_MAKERS = {"NIKON": "NEF", "SONY": "ARW", "PENTAX": "PEF", "SAMSUNG": "SRW", "CANON": "CR2", "HASSELBLAD": "3FR"}


def kind_of_tiff(data: bytes) -> str | None:
    """Return the kind of raw file that a TIFF file is, such as DNG or NEF, or None for a picture.

    A raw file has a DNG version, or a directory of sensor samples (colour filter array or linear raw), or a thumbnail
    first and the pictures in sub-directories, or a camera's own compression.
    """
    directories = _directories(data)
    if not directories:
        return None
    first = directories[0]
    if _DNG_VERSION in first:
        return "DNG"
    make = str(first.get(_MAKE, ("",))[0]).upper()
    sensor = any(directory.get(262, (0,))[0] in (_CFA, _LINEAR_RAW) for directory in directories)
    behind = first.get(254, (0,))[0] & _REDUCED and _SUB_IFDS in first
    packed = make and any(directory.get(259, (1,))[0] in _CAMERA_COMPRESSIONS for directory in directories)
    if sensor or behind or packed:
        return next((kind for maker, kind in _MAKERS.items() if make.startswith(maker)), "TIFF of a sensor")
    return None


def _directories(data: bytes) -> list[dict[int, tuple]]:
    """Return the directories of a classic TIFF file and their sub-directories, as far as they can be read."""
    order = "<" if data[:2] == b"II" else ">"
    if data[:4] not in (b"II*\0", b"MM\0*") or len(data) < 8:
        return []
    waiting, seen = [struct.unpack_from(order + "I", data, 4)[0]], set()
    found: list = []
    while waiting and len(found) < _MOST_DIRECTORIES:
        offset = waiting.pop(0)
        if offset == 0 or offset in seen or offset + 2 > len(data):
            continue
        seen.add(offset)
        count = struct.unpack_from(order + "H", data, offset)[0]
        end = offset + 2 + 12 * count
        if count > _MOST_ENTRIES or end > len(data):
            continue
        entries = (_entry(data, order, start) for start in range(offset + 2, end, 12))
        directory = {tag: values for tag, values in entries if values}
        found.append(directory)
        waiting += directory.get(_SUB_IFDS, ())
        if end + 4 <= len(data):
            waiting.append(struct.unpack_from(order + "I", data, end)[0])
    return found


def _entry(data: bytes, order: str, start: int) -> tuple[int, tuple]:
    """Return one tag with its integers or text; empty for other types and for values outside the file."""
    tag, kind, count = struct.unpack_from(order + "HHI", data, start)
    size = _TYPE_SIZES.get(kind, 0) * count
    place = start + 8 if size <= 4 else struct.unpack_from(order + "I", data, start + 8)[0]
    if not size or place + size > len(data) or count > 4096:
        return tag, ()
    if kind == 2:
        return tag, (data[place : place + size].split(b"\0")[0].decode("latin-1"),)
    code = {1: "B", 3: "H", 4: "I", 13: "I"}.get(kind)
    return tag, struct.unpack_from(f"{order}{count}{code}", data, place) if code else ()


def develop(data: bytes, kind: str, white_balance: tuple[float, ...] | None = None) -> tuple[np.ndarray, tuple]:
    """Return a raw file as upright uint16 RGB (H, W, 3) in sRGB, and the white balance that was used.

    LibRaw develops linearly at 16 bit, without brightening or a camera's tone curve, so exposures keep their ratios;
    the sRGB curve is applied last, because fusion expects display values.

    Args:
        data: the whole file.
        kind: its kind, for messages.
        white_balance: gains of red, green, blue and second green, from another frame of the bracket; None means the
            camera's, or daylight if it recorded none.

    Raises:
        InputError: rawpy is missing, or LibRaw cannot develop the file.
    """
    try:
        import rawpy
    except ImportError:
        raise InputError(
            f"is a camera raw file ({kind}); developing it needs rawpy: pip install 'ffmef[raw]'"
        ) from None
    try:
        with rawpy.imread(io.BytesIO(data)) as file:
            if white_balance is None:
                white_balance = tuple(float(gain) for gain in file.camera_whitebalance)
                if not all(gain > 0 for gain in white_balance[:3]):
                    white_balance = tuple(float(gain) for gain in file.daylight_whitebalance)
                if len(white_balance) < 4 or white_balance[3] <= 0:
                    white_balance = (*white_balance[:3], white_balance[1])
            linear = file.postprocess(
                output_bps=16,
                gamma=(1, 1),
                no_auto_bright=True,
                user_wb=list(white_balance),
                output_color=rawpy.ColorSpace.sRGB,
                highlight_mode=rawpy.HighlightMode.Clip,
            )
    except Exception as error:  # LibRaw's errors, or a sensor that it does not know
        raise InputError(f"is a camera raw file ({kind}) that cannot be developed: {_text(error)}") from None
    return np.take(_srgb_table(), linear), white_balance


def _srgb_table() -> np.ndarray:
    linear = np.arange(65536) / 65535
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)
    return np.rint(curved * 65535).astype(np.uint16)


def _text(error: Exception) -> str:
    argument = error.args[0] if error.args else error
    text = argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)
    return " ".join(text.split()) or type(error).__name__
