"""Scenes of real pictures: decoded once, kept small in memory, cropped into samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ffmef.data.crops import cut, draw_count, draw_window
from ffmef.errors import InputError
from ffmef.imaging.io import read_picture, to_eight_bit

log = logging.getLogger(__name__)


def read_rgb(path: Path, longest_side: int | None = None) -> np.ndarray:
    """Return a picture file as uint8 (H, W, 3), shrunk to sides of at most ``longest_side``.

    Raises:
        InputError: the file is missing or damaged.
    """
    pixels = to_eight_bit(read_picture(path).pixels)
    pixels = np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels
    return shrink(pixels, longest_side)


def read_each(
    paths: Sequence[Path], read: Callable[[Path], np.ndarray]
) -> tuple[list[str], dict[str, str], list[np.ndarray]]:
    """Return the names of the readable photographs, ``{name: reason}`` of the others, and what was read."""
    names, skipped, found = [], {}, []
    for path in paths:
        try:
            found.append(read(path))
            names.append(path.name)
        except InputError as error:
            skipped[path.name] = str(error)
            log.warning("photograph left out: %s", error)
    return names, skipped, found


def shrink(pixels: np.ndarray, longest_side: int | None) -> np.ndarray:
    """Return a picture shrunk by area averages to sides of at most ``longest_side``; None keeps it."""
    import cv2

    height, width = pixels.shape[:2]
    if longest_side is None or max(height, width) <= longest_side:
        return pixels
    scale = longest_side / max(height, width)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)


class PictureScenes:
    """Aligned pictures of scenes, each with two or more exposures (or foci, or spectra).

    All files are decoded at the start and kept as uint8. Scenes with a file that is missing, damaged or of another size
    are reported once and left out.

    Args:
        scenes: ``{name: paths}`` as :func:`ffmef.data.find_scenes` returns it.
        count: pictures per sample, N.
        largest_count: half of the samples have more, up to this many or all that the scene has; 0: none has.
        order: ``"luminance"``, the darker first; ``"given"``, as the paths are ordered; ``"random"``.
        gap: least difference in mean grey level between neighbours in a sample of a bracket with more than ``count``
            exposures; if a bracket has none so far apart, its darkest and brightest are taken.
        jitter: share of the samples whose dark picture is darkened further or whose bright one is brightened further.
        glare: share of the samples in which a lamp dazzles the last picture, the visible one of an infrared-visible
            pair.
        longest_side: pictures are kept no larger than this.

    Attributes:
        names: of the scenes that can be used.
        skipped: ``{name: reason}``.
    """

    def __init__(
        self,
        scenes: Mapping[str, Sequence[Path]],
        *,
        count: int = 2,
        largest_count: int = 0,
        order: str = "luminance",
        gap: float = 40.0,
        jitter: float = 0.0,
        glare: float = 0.0,
        longest_side: int | None = 640,
    ):
        if order not in ("luminance", "given", "random"):
            raise ValueError(f"order must be 'luminance', 'given' or 'random', got {order!r}")
        self.count, self.largest_count = count, largest_count
        self.order, self.gap, self.jitter, self.glare = order, gap, jitter, glare
        self.names: list[str] = []
        self.skipped: dict[str, str] = {}
        self._pictures: list[list[np.ndarray]] = []
        self._levels: list[list[float]] = []
        for name, paths in scenes.items():
            try:
                pictures = self._read(paths, longest_side)
            except InputError as error:
                self.skipped[name] = str(error)
                log.warning("scene %s left out: %s", name, error)
                continue
            self.names.append(name)
            self._pictures.append(pictures)
            self._levels.append([float(picture.mean()) for picture in pictures])

    def _read(self, paths: Sequence[Path], longest_side: int | None) -> list[np.ndarray]:
        if len(paths) < self.count:
            raise InputError(f"must have at least {self.count} pictures, got {len(paths)}")
        pictures = [read_rgb(path, longest_side) for path in paths]
        for path, picture in zip(paths, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                sizes = [f"{p.shape[1]} x {p.shape[0]}" for p in (pictures[0], picture)]
                raise InputError(f"{path}: must be {sizes[0]} like the first picture of its scene, got {sizes[1]}")
        if self.order == "luminance":
            pictures.sort(key=lambda picture: picture.mean())
        return pictures

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, index: int, size: int, recipe: str, rng: np.random.Generator) -> np.ndarray:
        """Return uint8 (N, size, size, 3) of scene ``index``."""
        pictures = self._pictures[index]
        count = draw_count(self.count, min(self.largest_count, len(pictures)), rng)
        chosen = self._choose(self._levels[index], count, rng)
        height, width = pictures[0].shape[:2]
        window = draw_window(height, width, size, recipe, rng)
        sample = np.stack([cut(pictures[i], window, size) for i in chosen])
        if self.jitter and rng.random() < self.jitter:
            sample = _expose_further(sample, rng)
        if self.glare and rng.random() < self.glare:
            sample[-1] = _dazzled(sample[-1], sample[0], rng)
        if self.order == "random":
            rng.shuffle(sample)
        return sample

    def whole(self, index: int) -> np.ndarray:
        """Return the darkest to brightest pictures of scene ``index`` uncut, uint8 (N, H, W, 3)."""
        levels = self._levels[index]
        chosen = list(range(self.count)) if len(levels) == self.count else _spread(levels, self.count)
        return np.stack([self._pictures[index][i] for i in chosen])

    def _choose(self, levels: list[float], count: int, rng: np.random.Generator) -> list[int]:
        if len(levels) == count:
            return list(range(count))
        for _ in range(20):
            chosen = sorted(rng.choice(len(levels), count, replace=False).tolist())
            ordered = sorted(levels[i] for i in chosen)
            if all(b - a >= self.gap for a, b in zip(ordered, ordered[1:])):
                return chosen
        return _spread(levels, count)


def _spread(levels: list[float], count: int) -> list[int]:
    by_level = np.argsort(levels, kind="stable")
    spread = np.linspace(0, len(levels) - 1, count).round().astype(int)
    return sorted(by_level[spread].tolist())


def _expose_further(sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darken the darkest picture or brighten the brightest, with clipping, as a wider bracket would."""
    levels = sample.mean((1, 2, 3))
    if rng.random() < 0.5:
        index, gain = int(levels.argmin()), rng.uniform(0.4, 1.0)
    else:
        index, gain = int(levels.argmax()), rng.uniform(1.0, 1.6)
    table = np.clip(np.arange(256) * gain + 0.5, 0, 255).astype(np.uint8)
    sample[index] = table[sample[index]]
    return sample


def _dazzled(picture: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a picture with a lamp that hides what the other picture shows: white inside, a halo around it."""
    size = picture.shape[0]
    places = rng.uniform(0.1, 0.9, (4, 2)) * size
    reach = size * np.exp(rng.uniform(np.log(0.06), np.log(0.3)))
    # Of four places, take the one where the other picture varies most.
    centre = max(places, key=lambda place: _variation(other, place, reach))
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    stretch = np.exp(rng.uniform(-0.4, 0.4))
    distance = np.hypot((rows - centre[0]) * stretch, (columns - centre[1]) / stretch) / reach
    lamp = rng.uniform(1, 3) * np.exp(-(distance ** rng.uniform(2, 6))) + rng.uniform(0, 0.3) * np.exp(-distance)
    light = (picture.astype(np.float32) / 255) ** 2.2 + lamp[..., None].astype(np.float32)
    return np.rint(np.clip(light, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)


def _variation(picture: np.ndarray, place: np.ndarray, reach: float) -> float:
    (top, left), (bottom, right) = np.maximum(place - reach, 0).astype(int), (place + reach).astype(int) + 1
    return float(picture[top:bottom, left:right].std())
