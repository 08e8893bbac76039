"""OpenEXR pictures: linear light in the file, display values (sRGB curve) in memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from ffmef.errors import InputError


def _library():
    try:
        import OpenEXR
    except ImportError:
        raise InputError("is an OpenEXR picture, which needs OpenEXR: pip install 'ffmef[formats]'") from None
    return OpenEXR


def encode_display(linear: np.ndarray) -> np.ndarray:
    """Apply the sRGB curve, continued beyond white and mirrored below black.

    >>> encode_display(np.array([0, 0.0031308, 1.0])).round(4).tolist()
    [0.0, 0.0404, 1.0]
    """
    size = np.abs(linear)
    curved = np.where(size <= 0.0031308, 12.92 * size, 1.055 * np.maximum(size, 0.0031308) ** (1 / 2.4) - 0.055)
    return np.copysign(curved, linear)


def decode_display(display: np.ndarray) -> np.ndarray:
    """Undo :func:`encode_display`."""
    size = np.abs(display)
    linear = np.where(size <= 0.04045, size / 12.92, ((np.maximum(size, 0.04045) + 0.055) / 1.055) ** 2.4)
    return np.copysign(linear, display)


def decode(data: bytes) -> np.ndarray:
    """Return float32 (H, W, 3 or 4) or (H, W), display values.

    Raises:
        InputError: OpenEXR is missing, or the file holds neither R, G, B nor a grey channel.
    """
    library = _library()
    with tempfile.TemporaryDirectory(prefix="ffmef-") as folder:  # the library reads only from files
        path = os.path.join(folder, "picture.exr")
        Path(path).write_bytes(data)
        with library.File(path, separate_channels=True) as file:
            channels = {name: np.array(channel.pixels, np.float32) for name, channel in file.channels().items()}
    if {"R", "G", "B"} <= set(channels):
        names = ["R", "G", "B"]
    else:
        names = ["Y"] if "Y" in channels else list(channels) if len(channels) == 1 else []
    if not names:
        raise InputError(f"must hold channels R, G and B, or Y, got {', '.join(sorted(channels))}")
    alpha = channels["A"] if names != ["A"] and "A" in channels else None
    if alpha is not None:  # OpenEXR's colours are multiplied by alpha
        share = np.where(alpha > 0, alpha, 1)
        channels |= {name: (channels[name] / share).astype(np.float32) for name in names}
    planes = [encode_display(channels[name]) for name in names] + ([] if alpha is None else [alpha])
    return (planes[0] if len(planes) == 1 else np.dstack(planes)).astype(np.float32)


def encode(samples: np.ndarray, alpha: np.ndarray | None) -> bytes:
    """Return a file with display values in [0, 1], (H, W, 3) or (H, W), as 32-bit linear light."""
    library = _library()
    linear = decode_display(samples).astype(np.float32)
    names = "RGB" if linear.ndim == 3 else "Y"
    planes = np.atleast_3d(linear)
    if alpha is not None:
        planes = planes * alpha[..., None]
    channels = {name: np.ascontiguousarray(planes[..., index]) for index, name in enumerate(names)}
    if alpha is not None:
        channels["A"] = np.ascontiguousarray(alpha, np.float32)
    header = {"compression": library.ZIP_COMPRESSION, "type": library.scanlineimage}
    with tempfile.TemporaryDirectory(prefix="ffmef-") as folder:
        path = os.path.join(folder, "picture.exr")
        with library.File(header, channels) as file:
            file.write(path)
        return Path(path).read_bytes()
