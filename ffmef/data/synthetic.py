"""Exposure brackets made from ordinary photographs and from radiance maps, so training needs no real brackets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ffmef.data.crops import Window, cut, draw_count, draw_window
from ffmef.data.pictures import read_each, read_rgb, shrink
from ffmef.data.scenes import HDR_EXTENSIONS, find_photographs
from ffmef.errors import InputError

# Relative luminance of linear RGB (BT.709).
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


class SyntheticBrackets:
    """Under- and over-exposed pictures of scenes that were photographed only once.

    A random camera curve turns a photograph back into linear light, and its large tones are spread to the range of a
    scene that needs a bracket. In some samples a second photograph, many times brighter, appears behind a sharp or soft
    edge, like a window. A radiance map has that range already; a panorama gives a random view. Each exposure is then
    taken from this light: a shutter that preserves highlights or shadows, photon and read noise, clipping, the camera's
    curve, rounding to 8 bit.

    Args:
        photographs: a folder, searched with its subfolders, or paths.
        count: pictures per sample, N: the first preserves highlights, the last shadows; others lie between in even
            stops.
        largest_count: half of the samples have more pictures, up to this many; 0: none has.
        order: ``"luminance"``, the darker first, or ``"random"``.
        windows: share of the samples with a second, brighter scene behind an edge.
        jitter: share of the samples whose darkest picture is up to 2.5 stops darker still, and of those whose brightest
            is up to 3 stops brighter: brackets that were set too wide.
        longest_side: photographs are kept no larger than this.
        names: keeps only photographs whose file name is among these; None keeps all.

    Attributes:
        names: of the photographs that can be used.
        skipped: ``{name: reason}``.
        light: the photographs (H, W, 3), uint8, and the radiance maps, float32.

    Raises:
        InputError: no photograph is found.
    """

    def __init__(
        self,
        photographs: str | Path | Sequence[Path],
        *,
        count: int = 2,
        largest_count: int = 0,
        order: str = "luminance",
        windows: float = 0.3,
        jitter: float = 0.0,
        longest_side: int | None = 640,
    ):
        if order not in ("luminance", "random"):
            raise ValueError(f"order must be 'luminance' or 'random', got {order!r}")
        if count < 2:
            raise ValueError(f"count must be at least 2, got {count}")
        paths = find_photographs(photographs) if isinstance(photographs, (str, Path)) else list(photographs)
        self.count, self.largest_count = count, largest_count
        self.order, self.windows, self.jitter = order, windows, jitter
        self.names, self.skipped, self.light = read_each(paths, lambda path: _read_light(path, longest_side))

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, index: int, size: int, recipe: str, rng: np.random.Generator) -> np.ndarray:
        """Return uint8 (N, size, size, 3) of photograph ``index``."""
        scene = self._scene(index, size, recipe, rng)
        if rng.random() < self.windows:
            other = self._scene(int(rng.integers(len(self))), size, recipe, rng)
            scene = _behind_window(scene, other, rng)
        gamma, bend = rng.uniform(1.9, 2.4), rng.uniform(0.0, 0.5)
        full_well, read_noise = 10 ** rng.uniform(3.0, 4.5), rng.uniform(0.0005, 0.003)
        sample = np.stack(
            [_take(scene * gain, gamma, bend, full_well, read_noise, rng) for gain in self._gains(scene, rng)]
        )
        if self.order == "random":
            rng.shuffle(sample)
        return sample

    def _scene(self, index: int, size: int, recipe: str, rng: np.random.Generator) -> np.ndarray:
        """Return linear light (size, size, 3), float32."""
        light = self.light[index]
        if light.dtype == np.uint8:
            part = cut(light, _window(light, size, recipe, rng), size)
            linear = (part.astype(np.float32) / 255) ** np.float32(rng.uniform(1.9, 2.4)) + 1e-4
            return _spread_tones(linear, rng)
        if light.shape[1] == 2 * light.shape[0]:
            return _view(light, size, rng)
        return np.maximum(cut(light, _window(light, size, recipe, rng), size), 0) + 1e-6

    def _gains(self, scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        luminance = scene @ LUMINANCE
        highlight = np.percentile(luminance, rng.uniform(92, 99.7))
        shadow = np.percentile(luminance, rng.uniform(3, 35))
        under = np.exp(rng.uniform(np.log(0.05), np.log(0.8))) / highlight
        over = np.exp(rng.uniform(np.log(0.02), np.log(0.3))) / shadow
        over = np.clip(over, under * 2 ** rng.uniform(2.5, 4.5), under * 2 ** rng.uniform(5.0, 8.0))
        if self.jitter:
            under *= 2 ** (-rng.uniform(0, 2.5) * (rng.random() < self.jitter))
            over *= 2 ** (rng.uniform(0, 3) * (rng.random() < self.jitter))
        return np.geomspace(under, over, draw_count(self.count, self.largest_count, rng)).astype(np.float32)


def _read_light(path: Path, longest_side: int | None) -> np.ndarray:
    if path.suffix.lower() not in HDR_EXTENSIONS:
        return read_rgb(path, longest_side)
    light = _read_radiance(path)
    if light.ndim != 3 or light.shape[2] < 3 or not np.isfinite(light[..., :3]).any():
        raise InputError(f"{path}: must hold finite RGB radiance, got an array of shape {light.shape}")
    light = np.nan_to_num(light[..., :3], posinf=65504.0, neginf=0.0)
    return shrink(np.ascontiguousarray(light.clip(0, 65504), np.float32), longest_side)


def _read_radiance(path: Path) -> np.ndarray:
    kind = path.suffix.lower()
    try:
        if kind == ".npy":
            return np.load(path)
        if kind == ".hdr":
            import cv2

            light = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
            if light is None:
                raise ValueError("not a Radiance picture")
            return light[..., ::-1]
        try:
            import OpenEXR
        except ImportError:
            raise InputError(f"{path}: reading .exr needs the package OpenEXR") from None
        with OpenEXR.File(str(path)) as file:
            channels = file.channels()
            for name in ("RGB", "RGBA"):
                if name in channels:
                    return np.asarray(channels[name].pixels, np.float32)
            return np.stack([np.asarray(channels[name].pixels, np.float32) for name in "RGB"], -1)
    except InputError:
        raise
    except Exception as error:  # decoders of damaged files raise almost anything
        raise InputError(f"{path}: damaged or not supported: {error}") from None


def _window(light: np.ndarray, size: int, recipe: str, rng: np.random.Generator) -> Window:
    height, width = light.shape[:2]
    return draw_window(height, width, size, recipe, rng)


def _spread_tones(linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stretch the blurred logarithm of light by 1 to 2.5 times; detail keeps its contrast."""
    import cv2

    logarithm = np.log2(linear @ LUMINANCE)
    base = cv2.GaussianBlur(logarithm, (0, 0), linear.shape[0] * rng.uniform(0.02, 0.15))
    return linear * np.exp2((base - base.mean()) * np.float32(rng.uniform(0.0, 1.5)))[..., None]


def _behind_window(scene: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return ``scene`` with ``other``, 2 to 6 stops brighter, in a random rectangle or half-plane."""
    import cv2

    size = scene.shape[0]
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    if rng.random() < 0.5:
        centre, half = rng.uniform(0.2, 0.8, 2), rng.uniform(0.12, 0.4, 2)
        mask = (np.abs(rows - centre[0]) < half[0]) & (np.abs(columns - centre[1]) < half[1])
    else:
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25)
        bend = rng.uniform(0, 0.12) * np.sin(rng.uniform(4, 20) * columns + rng.uniform(0, 6))
        mask = np.sin(angle) * (rows - 0.5 + bend) + np.cos(angle) * (columns - 0.5) > offset
    mask = mask.astype(np.float32)
    if rng.random() < 0.5:
        mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.4, 3.0))
    level = np.median(scene @ LUMINANCE) / np.median(other @ LUMINANCE) * 2 ** rng.uniform(2, 6)
    return scene * (1 - mask[..., None]) + other * (mask * np.float32(level))[..., None]


def _view(panorama: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random perspective view of an equirectangular panorama, 40 to 100 degrees wide, near the horizon."""
    import cv2

    height, width = panorama.shape[:2]
    half = np.tan(np.radians(rng.uniform(40, 100)) / 2)
    yaw, pitch = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(-30, 30))
    x, y = np.meshgrid(np.linspace(-half, half, size), np.linspace(-half, half, size))
    depth = np.cos(pitch) + y * np.sin(pitch)
    down = y * np.cos(pitch) - np.sin(pitch)
    longitude = (np.arctan2(x, depth) + yaw) % (2 * np.pi)
    latitude = np.arctan2(down, np.hypot(x, depth))
    columns = (longitude / (2 * np.pi) * width).astype(np.float32)
    rows = ((latitude / np.pi + 0.5) * height - 0.5).astype(np.float32)
    return cv2.remap(panorama, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP) + 1e-6


def _take(
    light: np.ndarray, gamma: float, bend: float, full_well: float, read_noise: float, rng: np.random.Generator
) -> np.ndarray:
    """Photograph linear light as 8 bit; 1.0 is the brightest recorded value."""
    noise = rng.standard_normal(light.shape, np.float32)
    light = light + noise * np.sqrt(light.clip(0, 1) / np.float32(full_well) + np.float32(read_noise) ** 2)
    curve = light.clip(0, 1) ** np.float32(1 / gamma)
    curve = (1 - bend) * curve + bend * (curve * curve * (3 - 2 * curve))
    return (curve * 255 + 0.5).astype(np.uint8)
