"""OpenEXR pictures: linear light in the file, display values (sRGB curve) in memory."""

from __future__ import annotations

import contextlib
import io
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


def decode(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return float32 (H, W, 3 or 4) or (H, W), display values, and remarks.

    Raises:
        InputError: OpenEXR is missing, or the file holds neither R, G, B nor a grey channel.
    """
    library = _library()
    with tempfile.TemporaryDirectory(prefix="ffmef-") as folder:  # the library reads only from files
        path = os.path.join(folder, "picture.exr")
        Path(path).write_bytes(data)
        # It prints warnings about damaged files, to where the result may have to go.
        with contextlib.redirect_stdout(io.StringIO()), library.File(path, separate_channels=True) as file:
            channels = {name: np.array(channel.pixels, np.float32) for name, channel in file.channels().items()}
            parts = len(file.parts)
    prefix, names, remarks = _chosen(list(channels))
    if parts > 1:
        remarks += (f"the first of {parts} parts of the file is used",)
    alpha = channels.get(f"{prefix}A")
    if alpha is not None:  # OpenEXR's colours are multiplied by alpha
        share = np.where(alpha > 0, alpha, 1)
        channels |= {name: (channels[name] / share).astype(np.float32) for name in names}
    planes = [encode_display(channels[name]) for name in names] + ([] if alpha is None else [alpha])
    remarks += ("linear light is encoded by the sRGB curve",)
    return (planes[0] if len(planes) == 1 else np.dstack(planes)).astype(np.float32), remarks


def _chosen(channels: list[str]) -> tuple[str, list[str], tuple[str, ...]]:
    """Return the prefix of the layer to read, its channels, and remarks about what is guessed or left out."""
    if {"R", "G", "B"} <= set(channels):
        return "", ["R", "G", "B"], ()
    if "Y" in channels:
        lost = ("RY and BY are left out: the picture is grey",) if {"RY", "BY"} <= set(channels) else ()
        return "", ["Y"], lost
    layers = [name[:-1] for name in channels if name.endswith(".R")]
    layers = [layer for layer in layers if {f"{layer}G", f"{layer}B"} <= set(channels)]
    if len(layers) == 1:
        return layers[0], [f"{layers[0]}{colour}" for colour in "RGB"], (f"its layer {layers[0][:-1]} is used",)
    if len(channels) == 1:
        return "-", channels, (f"its only channel, {channels[0]}, is used as grey",)
    raise InputError(f"must hold channels R, G and B, or Y, or one layer of them, got {', '.join(sorted(channels))}")


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
