"""Binary PGM and PPM, as dcraw writes them: Pillow reduces 16-bit colour to 8 bit, OpenCV ignores the white level."""

from __future__ import annotations

import re

import numpy as np

from ffmef.errors import InputError

_SPACE = rb"(?:\s|#[^\n]*\n)+"
_HEADER = re.compile(rb"P([56])" + _SPACE.join([b"", rb"(\d{1,10})", rb"(\d{1,10})", rb"(\d{1,10})"]) + rb"\s")


def decode(data: bytes) -> np.ndarray:
    """Return the samples, (H, W) or (H, W, 3), uint8 or uint16, scaled from the file's white level.

    >>> decode(b"P5 2 1 # two pixels\\n1023 " + bytes([0, 0, 3, 255])).tolist()
    [[0, 65535]]
    """
    header = _HEADER.match(data)
    if header is None:
        raise ValueError("its header is damaged")
    kind, width, height, white = map(int, header.groups())
    if not (width and height and 0 < white < 65536):
        raise ValueError("its header is damaged")
    channels = 3 if kind == 6 else 1
    if width * height > 1 << 30:
        raise InputError(f"at most {1 << 30} pixels, got {width} x {height}")
    stored, dtype = (np.dtype(">u2"), np.uint16) if white > 255 else (np.dtype("u1"), np.uint8)
    size = width * height * channels
    if len(data) - header.end() < size * stored.itemsize:
        raise ValueError("image file is truncated")
    samples = np.frombuffer(data, stored, size, header.end())
    top = np.iinfo(dtype).max
    if white != top:  # one table for all samples
        table = np.rint(np.minimum(np.arange(top + 1), white) * (top / white)).astype(dtype)
        samples = table[samples]
    return samples.astype(dtype).reshape((height, width, 3) if channels == 3 else (height, width))
