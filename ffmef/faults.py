"""Faults of a fusion that the eye sees and scores miss, measured for any function that fuses exposures.

A score says how much of the sources the picture keeps. It does not notice white corners, walls without texture, missing
clouds, or a picture that changes when it is cropped. Each function here measures one such fault of a method, on
your own scenes. Most of them fuse more than once: they change something that should not matter, such as the margin or
the position, and measure how far the result changes.

``fuse`` takes a list of uint8 pictures (H, W, 3), RGB, of one scene and returns one such picture. Levels are on 0..255.
Grey is 0.299 R + 0.587 G + 0.114 B. Smoothing is by a Gaussian of sigma 3 pixels. The darkest and the brightest picture
are those of lowest and highest mean. Smaller is better, except for :func:`sky`. Only :func:`measure` checks the
pictures.

>>> import numpy as np
>>> mean = lambda pictures: np.uint8(np.mean(pictures, 0) + 0.5)
>>> pictures = [np.full((96, 128, 3), level, np.uint8) for level in (40, 200)]
>>> position(mean, pictures), identity(mean, pictures[0])
(0.0, 0.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ffmef.errors import InputError

__all__ = [
    "Fault", "borders", "check_scene", "clipped", "colour_noise", "drowned", "far", "ghost", "grey", "identity",
    "measure", "order", "position", "reduced", "sky", "sky_bracket", "washed",
]  # fmt: skip

Pictures = Sequence[np.ndarray]
Fuse = Callable[[list[np.ndarray]], np.ndarray]

MARGIN, CORNER = 64, 24
LONGEST_SIDE = 768
SKIES = (2, 4, 9)  # exposures of the skies that measure() averages


def grey(picture: np.ndarray) -> np.ndarray:
    """Return (H, W) float32, 0.299 R + 0.587 G + 0.114 B.

    Example:
        >>> grey(np.uint8([[[255, 0, 0]]])).round(3)
        array([[76.245]], dtype=float32)
    """
    return picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _smooth(plane: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(plane, (0, 0), 3)


def _by_mean(pictures: Pictures) -> list[np.ndarray]:
    return sorted(pictures, key=lambda picture: float(picture.mean()))


def _cut(pictures: Pictures, rows: slice, columns: slice) -> list[np.ndarray]:
    return [np.ascontiguousarray(picture[rows, columns]) for picture in pictures]


def borders(fuse: Fuse, pictures: Pictures) -> tuple[float, float]:
    """Return how far a mirrored margin of 64 pixels changes corners of 24 pixels, and the interior, in mean levels.

    The interior is at least 64 pixels from the border. A method whose weights fade at the border changes its corners.

    Example:
        >>> mean = lambda pictures: np.uint8(np.mean(pictures, 0) + 0.5)
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> borders(mean, pictures)
        (0.0, 0.0)
    """
    import cv2

    inside = slice(MARGIN, -MARGIN)
    padded = [
        cv2.copyMakeBorder(picture, MARGIN, MARGIN, MARGIN, MARGIN, cv2.BORDER_REFLECT_101) for picture in pictures
    ]
    change = np.abs(grey(fuse(padded))[inside, inside] - grey(fuse(list(pictures))))
    ends = (slice(CORNER), slice(-CORNER, None))
    corners = [change[rows, columns].mean() for rows in ends for columns in ends]
    interior = change[inside, inside]
    return float(np.mean(corners)), float(interior.mean()) if interior.size else 0.0


def washed(pictures: Pictures, fused: np.ndarray) -> float:
    """Return the percentage of pixels that are above 230 where the darkest picture has 30 to 200, both smoothed.

    Example:
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> washed(pictures, np.full_like(pictures[0], 255))
        100.0
    """
    offered = _smooth(grey(_by_mean(pictures)[0]))
    return 100 * float(((_smooth(grey(fused)) > 230) & (offered > 30) & (offered < 200)).mean())


def drowned(pictures: Pictures, fused: np.ndarray) -> float:
    """Return the percentage of pixels that are below 20 where the brightest picture has 50 to 230, both smoothed.

    Example:
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> drowned(pictures, np.zeros_like(pictures[0]))
        100.0
    """
    offered = _smooth(grey(_by_mean(pictures)[-1]))
    return 100 * float(((_smooth(grey(fused)) < 20) & (offered > 50) & (offered < 230)).mean())


def clipped(pictures: Pictures, fused: np.ndarray) -> float:
    """Return the percentage of pixels below 245 in the darkest picture that are clipped in a channel (254 or 255).

    Example:
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> clipped(pictures, np.full_like(pictures[0], 255))
        100.0
    """
    free = _by_mean(pictures)[0].max(-1) < 245
    return 100 * float((fused.max(-1) >= 254)[free].mean()) if free.any() else 0.0


def identity(fuse: Fuse, picture: np.ndarray, count: int = 2) -> float:
    """Return the mean absolute difference in levels of a picture fused with itself, ``count`` copies, and itself.

    Example:
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> identity(lambda pictures: pictures[0] + np.uint8(3), pictures[0])
        3.0
    """
    return float(np.abs(fuse([picture] * count).astype(np.float32) - picture).mean())


def order(fuse: Fuse, pictures: Pictures) -> float:
    """Return the largest difference in levels from another order of the pictures: reversed or rotated by one.

    Example:
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> order(lambda pictures: pictures[0], pictures)
        160.0
    """
    plain = fuse(list(pictures)).astype(np.int16)
    others = [list(pictures)[::-1], [*pictures[1:], pictures[0]]]
    return float(max(np.abs(fuse(other) - plain).max() for other in others))


def position(fuse: Fuse, pictures: Pictures, step: int = 3) -> float:
    """Return how far cutting off ``step`` rows and columns at the top left changes the rest, in mean absolute levels.

    The 32 pixels next to the border do not count. Grids and strides that begin at the corner show here.

    Example:
        >>> mean = lambda pictures: np.uint8(np.mean(pictures, 0) + 0.5)
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> position(mean, pictures)
        0.0
    """
    moved = grey(fuse(_cut(pictures, slice(step, None), slice(step, None))))
    change = np.abs(moved - grey(fuse(list(pictures)))[step:, step:])[32:-32, 32:-32]
    return float(change.mean()) if change.size else 0.0


def far(fuse: Fuse, pictures: Pictures) -> float:
    """Return by how many levels on average two tiles, the left and right three fifths, differ in their common fifth.

    Tiles of a panorama are fused one by one, so distant parts should not change the brightness of a wall.

    Example:
        >>> mean = lambda pictures: np.uint8(np.mean(pictures, 0) + 0.5)
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> far(mean, pictures)
        0.0
    """
    width = pictures[0].shape[1]
    left, right = int(width * 0.4), int(width * 0.6)
    one = grey(fuse(_cut(pictures, slice(None), slice(right))))[:, left:]
    other = grey(fuse(_cut(pictures, slice(None), slice(left, None))))[:, : right - left]
    return float(np.abs(one - other).mean())


def ghost(fuse: Fuse, pictures: Pictures) -> float:
    """Return the saturation that a red disc in one exposure alone leaves in the result, for the worst of three.

    The darkest, the middle and the brightest picture are fused. The disc has a diameter of a quarter of the height and
    (40, 8, 8), (160, 32, 32) or (255, 51, 51). Saturation is max - min of R, G, B. The result is how many levels it
    grows by, as the mean over the disc.

    Example:
        >>> mean = lambda pictures: np.uint8(np.mean(pictures, 0) + 0.5)
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> 0 < ghost(mean, pictures) < ghost(lambda pictures: pictures[2], pictures)
        True
    """
    ordered = _by_mean(pictures)
    three = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
    height, width = three[0].shape[:2]
    rows, columns = np.ogrid[:height, :width]
    disc = (rows - height // 2) ** 2 + (columns - width // 2) ** 2 <= (height // 8) ** 2
    before = _saturation(fuse(three))[disc]
    gains = []
    for place, level in enumerate((40, 160, 255)):
        strange = three[place].copy()
        strange[disc] = (level, level // 5, level // 5)
        after = fuse([*three[:place], strange, *three[place + 1 :]])
        gains.append(float((_saturation(after)[disc] - before).mean()))
    return max(gains)


def _saturation(picture: np.ndarray) -> np.ndarray:
    return picture.max(-1).astype(np.float32) - picture.min(-1)


def colour_noise(fuse: Fuse, seed: int = 0) -> float:
    """Return the mean of the standard deviations of R - G and B - G, in levels, for photographs of a grey ramp.

    Three exposures, two stops apart, of light from 0.01 to 1, with photon noise of 3,000 electrons at white and read
    noise of 0.002, in gamma 2.2.

    Example:
        >>> colour_noise(lambda pictures: pictures[1][..., :1].repeat(3, -1))
        0.0
    """
    rng = np.random.default_rng(seed)
    light = np.geomspace(0.01, 1, 512, dtype=np.float32)[None, :, None] * np.ones((256, 1, 3), np.float32)
    taken = []
    for gain in (0.35, 1.4, 5.6):
        noise = rng.standard_normal(light.shape, np.float32)
        taken.append(_developed(light * gain + noise * np.sqrt((light * gain).clip(0, 1) / 3000 + 2e-3**2)))
    fused = fuse(taken).astype(np.float32)
    return float(np.mean([(fused[..., channel] - fused[..., 1]).std() for channel in (0, 2)]))


def sky(fuse: Fuse, count: int, stops: float = 6.5) -> float:
    """Return the levels between the 2nd and 98th percentile of a sky that only dark exposures hold; higher is better.

    ``count`` exposures in even steps over ``stops`` of a synthetic scene, 512 x 384: clouds above, and below them
    ground that is six stops darker.

    Example:
        >>> sky(lambda pictures: pictures[0], 2) > sky(lambda pictures: pictures[-1], 2)
        True
    """
    shown = grey(fuse(sky_bracket(count, stops)))[24:160]
    return float(np.percentile(shown, 98) - np.percentile(shown, 2))


def sky_bracket(count: int, stops: float = 6.5, seed: int = 0) -> list[np.ndarray]:
    """Return the exposures that :func:`sky` fuses, the darkest first.

    Example:
        >>> [picture.shape for picture in sky_bracket(2)]
        [(384, 512, 3), (384, 512, 3)]
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:384, 0:512].astype(np.float32)
    clouds = _blurred_noise(rng, rows.shape, 12)
    clouds = 0.75 + 0.63 * clouds / np.abs(clouds).max()
    ground = 0.6 + 0.5 * _blurred_noise(rng, rows.shape, 1.5)
    horizon = rows.shape[0] * (0.5 + 0.05 * np.sin(columns / 40))
    light = np.where(rows < horizon, clouds, ground.clip(0.05) * 2**-6.0)
    tint = 1 + (rows < rows.shape[0] / 2)[..., None] * np.array([-0.12, 0, 0.1], np.float32)
    return [_developed(light[..., None] * tint * 0.55 * 2**stop) for stop in np.linspace(0, stops, count)]


def _blurred_noise(rng: np.random.Generator, size: tuple[int, int], sigma: float) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(rng.standard_normal(size, np.float32), (0, 0), sigma)


def _developed(light: np.ndarray) -> np.ndarray:
    return (light.clip(0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


class Fault(NamedTuple):
    """One line of :func:`measure`. ``mean`` and ``worst`` are None if the method cannot be measured."""

    name: str
    unit: str
    mean: float | None
    worst: float | None
    higher_is_better: bool = False


def measure(fuse: Fuse, scenes: Iterable[Pictures], most: float = math.inf) -> list[Fault]:
    """Measure every fault of a method, mean and worst over scenes.

    Args:
        fuse: the method.
        scenes: the exposures of each scene, uint8 (H, W, 3), at least two of one size with sides of 192 or more; use
            :func:`reduced` for large ones.
        most: the most pictures that the method takes; by default any number. A method for pairs has no value for
            ghost, colour noise and sky, which need three or more.

    Raises:
        InputError: there is no scene, or one does not fit.

    Example:
        >>> mean = lambda pictures: np.uint8(np.mean(pictures, 0) + 0.5)
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> measure(mean, [pictures])[0]
        Fault(name='borders', unit='levels', mean=0.0, worst=0.0, higher_is_better=False)
    """
    found: dict[str, list[float]] = {}
    for pictures in scenes:
        pictures = list(pictures)
        check_scene(pictures)
        fused = fuse(pictures)
        corners, interior = borders(fuse, pictures)
        values = {
            "borders": max(0.0, corners - interior),
            "washed out": washed(pictures, fused),
            "drowned": drowned(pictures, fused),
            "clipped": clipped(pictures, fused),
            "identity": max(identity(fuse, picture) for picture in (pictures[0], pictures[-1])),
            "order": order(fuse, pictures),
            "position": position(fuse, pictures),
            "far": far(fuse, pictures),
        }
        if most >= 3:
            values["ghost"] = ghost(fuse, pictures)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    if not found:
        raise InputError("scenes must hold at least one scene, got none")
    units = {"washed out": "%", "drowned": "%", "clipped": "%"}
    lines = [Fault(n, units.get(n, "levels"), float(np.mean(v)), float(np.max(v))) for n, v in found.items()]
    if "ghost" not in found:
        lines.append(Fault("ghost", "levels", None, None))
    noise = colour_noise(fuse) if most >= 3 else None
    skies = [sky(fuse, count) for count in SKIES] if most >= max(SKIES) else []
    lines.append(Fault("colour noise", "levels", noise, noise))
    mean, worst = (float(np.mean(skies)), float(np.min(skies))) if skies else (None, None)
    lines.append(Fault("sky", "levels", mean, worst, True))
    return lines


def reduced(pictures: Pictures, longest: int = LONGEST_SIDE) -> list[np.ndarray]:
    """Return pictures reduced to a longest side of at most ``longest``, by area averages.

    Example:
        >>> reduced([np.zeros((500, 1000, 3), np.uint8)], 100)[0].shape
        (50, 100, 3)
    """
    import cv2

    scale = longest / max(pictures[0].shape[:2])
    if scale >= 1:
        return list(pictures)
    return [cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for picture in pictures]


def check_scene(pictures: Pictures) -> None:
    """Raise InputError unless the pictures of a scene can be measured.

    Example:
        >>> pictures = [np.full((192, 256, 3), level, np.uint8) for level in (40, 200)]
        >>> check_scene(pictures)
    """
    for picture in pictures:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"scenes must hold uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    shapes = {picture.shape for picture in pictures}
    if len(pictures) < 2 or len(shapes) > 1 or min(pictures[0].shape[:2]) < 3 * MARGIN:
        raise InputError(
            f"scenes must hold two or more pictures of one size, no side below {3 * MARGIN}, got "
            f"{len(pictures)} of {', '.join(map(str, sorted(shapes)))}"
        )
