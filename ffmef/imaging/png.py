"""16-bit PNG, which Pillow reduces to 8 bit: OpenCV codes the samples, and we insert the profile and EXIF chunks."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_SRGB_CODES = (1, 13)  # primaries and transfer in cICP


def decode_opencv(data: bytes, dtypes: tuple = (np.uint16,)) -> np.ndarray:
    """Return the samples of a PNG or TIFF file, channels in the order R, G, B, A."""
    import cv2

    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if samples is None or samples.dtype not in dtypes:
        raise ValueError(f"the {' or '.join(np.dtype(dtype).name for dtype in dtypes)} samples cannot be decoded")
    if samples.ndim == 3 and samples.shape[2] >= 3:
        samples[..., :3] = samples[..., 2::-1].copy()  # OpenCV's order is B, G, R
    return samples


def remarks(data: bytes) -> tuple[str, ...]:
    """Return a remark if a file states another tone curve or colour space than sRGB by a number, not by a profile."""
    head = data[: max(0, data.find(b"IDAT"))]
    coded = head.find(b"cICP")
    if coded >= 0:
        primaries, transfer = head[coded + 4 : coded + 6]
        if (primaries, transfer) != _SRGB_CODES:
            return (f"its colour space (cICP {primaries}, {transfer}) is not converted: sRGB is assumed",)
        return ()
    if b"iCCP" in head or b"sRGB" in head or b"gAMA" not in head:
        return ()
    gamma = int.from_bytes(head[head.find(b"gAMA") + 4 :][:4], "big") / 100000
    if abs(gamma - 1 / 2.2) < 0.02:
        return ()
    return (f"its gamma of {gamma:.4g} is not applied: sRGB is assumed",)


def encode16(samples: np.ndarray, icc: bytes | None, exif: bytes | None, level: int) -> bytes:
    """Return a file with uint16 samples, (H, W) or (H, W, 2 to 4)."""
    import cv2

    if samples.ndim == 3:
        samples = samples[..., [2, 1, 0, 3][: samples.shape[2]]]
    encoded, buffer = cv2.imencode(".png", samples, [cv2.IMWRITE_PNG_COMPRESSION, level])
    if not encoded:
        raise ValueError("OpenCV cannot encode it")
    data = buffer.tobytes()
    end_of_header = 8 + 25  # signature, IHDR
    chunks = b""
    if icc:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif:
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return data[:end_of_header] + chunks + data[end_of_header:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
