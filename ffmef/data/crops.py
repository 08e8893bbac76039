"""Draws how many pictures a training sample has and which part it shows, and resizes that part."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RECIPES = ("whole", "release", "mixed")


class Window(NamedTuple):
    """A rectangle of a picture in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_window(height: int, width: int, size: int, recipe: str, rng: np.random.Generator) -> Window:
    """Draw the rectangle to be resized to ``size`` x ``size``.

    Args:
        height: of the picture.
        width: of the picture.
        size: side of the sample.
        recipe: ``"whole"``, the whole picture (the paper's); ``"release"``, 50 to 100 % of each side (the release's);
            ``"mixed"``, one sixth whole pictures, the rest squares of 0.56 to 2.4 times the sample's side: the network
            sees fine detail and large shapes alike.
        rng: the source of randomness.
    """
    if recipe == "whole" or (recipe == "mixed" and rng.random() < 1 / 6):
        return Window(0, 0, height, width)
    if recipe == "release":
        h, w = (max(1, round(side * rng.uniform(0.5, 1.0))) for side in (height, width))
    elif recipe == "mixed":
        h = w = min(height, width, max(8, round(size * np.exp(rng.uniform(np.log(0.5625), np.log(2.4))))))
    else:
        raise ValueError(f"recipe must be one of {RECIPES}, got {recipe!r}")
    return Window(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)


def draw_count(count: int, largest_count: int, rng: np.random.Generator) -> int:
    """Draw how many pictures a sample has: ``count`` in half of the samples, else more, up to ``largest_count``."""
    if largest_count <= count or rng.random() < 0.5:
        return count
    return int(rng.integers(count + 1, largest_count + 1))


def cut(picture: np.ndarray, window: Window, size: int) -> np.ndarray:
    """Return the window resized to ``size`` x ``size``: area averages if it shrinks, else cubic interpolation."""
    import cv2

    top, left, height, width = window
    part = picture[top : top + height, left : left + width]
    if part.shape[:2] == (size, size):
        return part
    shrinks = height * width >= size * size
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
