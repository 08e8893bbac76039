"""Focus stacks made from ordinary photographs, together with the all-in-focus scene as the truth for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ffmef.data.crops import Window, cut, draw_count
from ffmef.data.pictures import read_each, read_rgb
from ffmef.data.scenes import HDR_EXTENSIONS, find_photographs

Blur = Callable[[np.ndarray, float], np.ndarray]

_RADII = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 11], np.float32)  # of blurs interpolated for slanted planes


class SyntheticStacks:
    """Scenes of one to five depths, photographed with the focus at two or more distances.

    A photograph, level or slanted in depth, lies behind up to four shapes cut from other photographs. Each frame blurs
    every layer together with its edge, by a disc or a Gaussian that grows with the distance from the focus, and
    composites the layers back to front, in linear light or on display values. Some frames are magnified or
    moved by a fraction of a pixel, as they are after alignment, or differ in exposure by a hundredth; noise, rounding
    to 8 bit and, in some samples, JPEG follow.

    Args:
        photographs: a folder, searched with its subfolders, or paths; radiance maps among them are left out.
        count: frames per sample.
        largest_count: half of the samples have more, up to this many; 0: none has.
        truth: whether the all-in-focus scene follows the frames as the last picture of a sample.
        longest_side: photographs are kept no larger than this.

    Attributes:
        names: of the photographs that can be used.
        skipped: ``{name: reason}``.

    Raises:
        InputError: no photograph is found.
    """

    def __init__(
        self,
        photographs: str | Path | Sequence[Path],
        *,
        count: int = 2,
        largest_count: int = 0,
        truth: bool = True,
        longest_side: int | None = 640,
    ):
        if count < 2:
            raise ValueError(f"count must be at least 2, got {count}")
        paths = find_photographs(photographs) if isinstance(photographs, (str, Path)) else list(photographs)
        self.count, self.largest_count, self.truth = count, largest_count, truth
        paths = [path for path in paths if path.suffix.lower() not in HDR_EXTENSIONS]
        self.names, self.skipped, self._photographs = read_each(paths, lambda path: read_rgb(path, longest_side))

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, index: int, size: int, recipe: str, rng: np.random.Generator) -> np.ndarray:
        """Return uint8 (N, size, size, 3), or (N + 1, size, size, 3) with the truth, of photograph ``index``."""
        count = draw_count(self.count, self.largest_count, rng)
        gamma = 2.2 if rng.random() < 0.5 else 1.0
        blur = _disc if rng.random() < 0.7 else _gaussian
        foci = _foci(count, rng)
        layers = self._layers(index, size, gamma, foci, rng)
        growth = np.exp(rng.uniform(np.log(1.5), np.log(9.0))) * (1 + 0.15 * min(count - 2, 8))
        truth = _encoded(_rendered(layers, None, growth, blur), gamma)
        frames = [_encoded(_rendered(layers, focus, growth, blur), gamma) for focus in foci]
        frames = _photographed(frames, rng)
        rng.shuffle(frames)
        return np.stack([*frames, _rounded(truth)] if self.truth else frames)

    def _part(self, index: int, size: int, gamma: float, rng: np.random.Generator) -> np.ndarray:
        """Return light (size, size, 3), float32, of a part of a photograph; large photographs are never enlarged."""
        photograph = self._photographs[index]
        height, width = photograph.shape[:2]
        most = min(height, width)
        side = min(most, round(size * np.exp(rng.uniform(0, np.log(max(most / size, 1))))))
        window = Window(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side)
        return (cut(photograph, window, size).astype(np.float32) / 255) ** np.float32(gamma)

    def _layers(
        self, index: int, size: int, gamma: float, foci: np.ndarray, rng: np.random.Generator
    ) -> list[tuple[np.ndarray, float | np.ndarray]]:
        """Return layers, farthest first: RGB and coverage (size, size, 4), and depth, a number from 0 to 1 or a map."""
        picture = self._part(index, size, gamma, rng)
        depth = _depth(foci, rng)
        if rng.random() < 0.5:
            angle, (first, last) = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2)
            rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
            depth = first + (last - first) * (0.5 + (np.cos(angle) * columns + np.sin(angle) * rows) / np.sqrt(2))
            depth = depth.astype(np.float32)
        layers: list[tuple[np.ndarray, float | np.ndarray]] = [
            (np.dstack([picture, np.ones((size, size), np.float32)]), depth)
        ]
        near = sorted(_depth(foci, rng) for _ in range(int(rng.integers(0, 5))))
        for depth in near[::-1] if rng.random() < 0.5 else near:
            cover = _shape(size, rng)
            picture = self._part(int(rng.integers(len(self))), size, gamma, rng)
            layers.append((np.dstack([picture * cover[..., None], cover]), depth))
        return layers


def _foci(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the focus distances, evenly from 0 to 1 with some jitter."""
    step = 1 / (count - 1)
    return np.clip(np.linspace(0, 1, count) + rng.uniform(-0.2, 0.2, count) * step, 0, 1)


def _depth(foci: np.ndarray, rng: np.random.Generator) -> float:
    """Draw a layer's depth, mostly one of the focus distances."""
    return float(rng.choice(foci) if rng.random() < 0.7 else rng.uniform(0, 1))


def _shape(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return how far a random shape covers each pixel: an ellipse, a polygon, a thin stem, or blobs."""
    import cv2

    cover = np.zeros((size, size), np.uint8)
    kind = rng.integers(4)
    centre = rng.uniform(0, size, 2)
    if kind == 0:
        axes = rng.uniform(0.05, 0.4, 2) * size
        box = (tuple(map(float, centre)), tuple(map(float, 2 * axes)), float(rng.uniform(0, 180)))
        cv2.ellipse(cover, box, 255, -1, cv2.LINE_AA)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        reach = rng.uniform(0.1, 0.5, len(angles)) * size
        corners = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
        cv2.fillPoly(cover, [np.rint(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    elif kind == 2:
        for _ in range(int(rng.integers(1, 5))):
            ends = np.rint(rng.uniform(-0.2, 1.2, (2, 2)) * size).astype(int)
            cv2.line(cover, ends[0].tolist(), ends[1].tolist(), 255, int(rng.integers(1, 9)), cv2.LINE_AA)
    else:
        noise: np.ndarray = rng.standard_normal((size, size)).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(3, 20))
        noise = (noise - np.quantile(noise, rng.uniform(0.5, 0.9))) / noise.std()
        return np.clip(noise * rng.uniform(4, 20) + 0.5, 0, 1)
    return cover.astype(np.float32) / 255


def _rendered(layers, focus: float | None, growth: float, blur: Blur) -> np.ndarray:
    """Return the light of the layers with the focus at a depth; None means all in focus."""
    picture: np.ndarray | None = None
    for layer, depth in layers:
        if focus is None:
            seen = layer
        elif isinstance(depth, float):
            seen = blur(layer, growth * abs(depth - focus))
        else:
            seen = _slanted(layer, growth * np.abs(depth - np.float32(focus)), blur)
        picture = seen[..., :3] if picture is None else picture * (1 - seen[..., 3:]) + seen[..., :3]
    assert picture is not None  # the background is always there
    return picture


def _slanted(layer: np.ndarray, radii: np.ndarray, blur: Blur) -> np.ndarray:
    """Return a layer blurred by a radius that changes from place to place."""
    radii = np.minimum(radii, _RADII[-1])
    first = np.clip(np.searchsorted(_RADII, radii, side="right") - 1, 0, len(_RADII) - 2)
    share = (radii - _RADII[first]) / (_RADII[first + 1] - _RADII[first])
    picture = np.zeros_like(layer)
    for level in range(first.min(), first.max() + 2):
        weight = np.where(first == level, 1 - share, 0) + np.where(first + 1 == level, share, 0)
        picture += blur(layer, float(_RADII[level])) * weight[..., None].astype(np.float32)
    return picture


def _disc(picture: np.ndarray, radius: float) -> np.ndarray:
    """Defocus by a disc whose edge is one pixel wide."""
    import cv2

    if radius < 0.3:
        return picture
    reach = int(np.ceil(radius))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1).astype(np.float32)
    return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def _gaussian(picture: np.ndarray, radius: float) -> np.ndarray:
    import cv2

    if radius < 0.3:
        return picture
    return cv2.GaussianBlur(picture, (0, 0), radius / 2, borderType=cv2.BORDER_REFLECT_101)


def _encoded(light: np.ndarray, gamma: float) -> np.ndarray:
    """Return light as grey levels 0..255."""
    return np.clip(light, 0, 1) ** np.float32(1 / gamma) * 255


def _photographed(frames: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Return frames with a camera's imperfections, as uint8."""
    if rng.random() < 0.2:
        frames = [_moved(frame, rng) for frame in frames]
    if rng.random() < 0.15:
        frames = [frame * np.float32(rng.uniform(0.99, 1.01)) for frame in frames]
    noise = rng.uniform(0, 3) if rng.random() < 0.7 else 0.0
    if noise:
        frames = [frame + np.float32(noise) * rng.standard_normal(frame.shape, np.float32) for frame in frames]
    frames = [_rounded(frame) for frame in frames]
    if rng.random() < 0.15:
        quality = int(rng.integers(85, 98))
        frames = [_compressed(frame, quality) for frame in frames]
    return frames


def _moved(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a frame magnified about its middle by up to half a pixel at the border, and moved by up to a quarter."""
    import cv2

    size = frame.shape[0]
    scale, (right, down) = 1 + rng.uniform(-1, 1) / size, rng.uniform(-0.25, 0.25, 2)
    middle = (size - 1) / 2 * (1 - scale)
    move = np.array([[scale, 0, middle + right], [0, scale, middle + down]], np.float32)
    return cv2.warpAffine(frame, move, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def _compressed(frame: np.ndarray, quality: int) -> np.ndarray:
    import cv2

    _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return decoded[..., ::-1]


def _rounded(frame: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)
