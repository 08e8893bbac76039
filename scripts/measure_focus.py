"""Focus stacks of known scenes: decibels for enfuse's hard masks, the formula without a network, and the weights.

    python scripts/measure_focus.py PICTURE ... [--weights FILE ...] [--enfuse]

Each picture is photographed in twelve ways, from two halves to nine depths with occlusion in 30 frames. Prints a
Markdown table: for each way the mean over the pictures.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ffmef import focus, focus_net


def gaussian(picture: np.ndarray, radius: float) -> np.ndarray:
    """Defocus by a Gaussian of half that deviation."""
    return picture if radius < 0.3 else cv2.GaussianBlur(picture, (0, 0), radius / 2)


def disc(picture: np.ndarray, radius: float) -> np.ndarray:
    """Defocus by a disc of that radius."""
    if radius < 0.3:
        return picture
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def halves(truth: np.ndarray, count: int, blur, radius: float, rng) -> list[np.ndarray]:
    """Two frames, each sharp on one side."""
    soft, width = blur(truth, radius), truth.shape[1]
    left = np.clip((width / 2 + 4 - np.arange(width)) / 8, 0, 1)[None, :, None]
    return [truth * share + soft * (1 - share) for share in (left, 1 - left)]


def smooth_halves(truth: np.ndarray, count: int, blur, radius: float, rng) -> list[np.ndarray]:
    """Two frames of a scene without detail, in which noise can be averaged."""
    truth[...] = cv2.GaussianBlur(truth, (0, 0), 8)
    return halves(truth, count, blur, radius, rng)


def tilted(truth: np.ndarray, count: int, blur, radius: float, rng) -> list[np.ndarray]:
    """A plane whose left side is near and whose right side is far."""
    levels = np.stack([blur(truth, level / 2) for level in range(25)])
    columns, frames = np.arange(truth.shape[1]), []
    for k in range(count):
        place = np.clip(np.abs(columns / columns[-1] - k / (count - 1)) * radius, 0, 11.9) * 2
        low = place.astype(int)
        share = (place - low)[None, :, None]
        one, other = (levels[level, :, columns].swapaxes(0, 1) for level in (low, low + 1))
        frames.append((1 - share) * one + share * other)
    return frames


def layered(depths: int):
    """Return what photographs discs at that many depths, cut from the picture upside down, in front of the picture."""

    def make(truth: np.ndarray, count: int, blur, radius: float, rng) -> list[np.ndarray]:
        height, width = truth.shape[:2]
        layers = [(truth, np.ones((height, width, 1), np.float32), 0.0)]
        for i in range(1, depths):
            mask = np.zeros((height, width), np.float32)
            centre = (int((i - 0.5) / (depths - 1) * width), int(rng.uniform(0.2, 0.8) * height))
            cv2.circle(mask, centre, int(height * rng.uniform(0.08, 0.2)), 1.0, -1, cv2.LINE_AA)
            layers.append((np.roll(truth[::-1], 97 * i, 1), mask[..., None], i / (depths - 1)))

        def render(at: float | None) -> np.ndarray:
            out = np.zeros_like(truth)
            for colour, cover, depth in layers:
                defocus = 0 if at is None else radius * abs(depth - at)
                front, over = blur(colour * cover, defocus), blur(cover, defocus).reshape(height, width, 1)
                out = out * (1 - over) + front
            return out

        truth[...], frames = render(None), [render(depth) for depth in np.linspace(0, 1, count)]
        return frames

    return make


STACKS = {
    "two halves, g": (halves, 2, gaussian, 6, 0),
    "two halves, d, noise 2": (halves, 2, disc, 5, 2),
    "two halves of a smooth scene, d, noise 2": (smooth_halves, 2, disc, 5, 2),
    "two depths with occlusion, d": (layered(2), 2, disc, 5, 0),
    "two depths with occlusion, g, noise 1": (layered(2), 2, gaussian, 6, 1),
    "tilted plane, g": (tilted, 5, gaussian, 12, 0),
    "tilted plane, d, noise 2": (tilted, 5, disc, 8, 2),
    "six depths with occlusion, d, noise 1": (layered(6), 5, disc, 8, 1),
    "six depths with occlusion, g": (layered(6), 5, gaussian, 10, 0),
    "tilted plane, d, noise 1": (tilted, 30, disc, 10, 1),
    "nine depths with occlusion, d, noise 1": (layered(9), 30, disc, 10, 1),
    "nine depths with occlusion, g, noise 3": (layered(9), 30, gaussian, 10, 3),
}


def stack(picture: np.ndarray, name: str, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the frames of a way to photograph a picture (H, W, 3), uint8, and the scene all in focus."""
    make, count, blur, radius, noise = STACKS[name]
    rng = np.random.default_rng(seed)
    truth = picture.astype(np.float32)
    frames = make(truth, count, blur, radius, rng)
    frames = [frame + noise * rng.standard_normal(frame.shape) for frame in frames]
    return [np.clip(np.rint(frame), 0, 255).astype(np.uint8) for frame in frames], truth


def decibels(picture: np.ndarray, truth: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio."""
    return float(10 * np.log10(255**2 / np.square(picture.astype(np.float64) - truth).mean()))


def enfuse(frames: list[np.ndarray]) -> np.ndarray:
    """Fuse frames as enfuse recommends for focus stacks."""
    options = ["--exposure-weight=0", "--saturation-weight=0", "--contrast-weight=1", "--hard-mask"]
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{folder}/{k:03}.png" for k in range(len(frames))]
        for name, frame in zip(names, frames, strict=True):
            Image.fromarray(frame).save(name)
        command = ["enfuse", *options, "-o", f"{folder}/out.tif", *names]
        subprocess.run(command, check=True, capture_output=True)
        return np.asarray(Image.open(f"{folder}/out.tif").convert("RGB"))


def _by_network(frames: list[np.ndarray], network) -> np.ndarray:
    return focus.fuse(frames, network=network).pixels


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--weights", nargs="*", default=["focus"])
    parser.add_argument("--enfuse", action="store_true")
    parser.add_argument("--longest-side", type=int, default=576)
    args = parser.parse_args()
    ways = {"enfuse": enfuse} if args.enfuse else {}
    ways |= {"formula": lambda frames: focus.fuse(frames).pixels}
    for path in args.weights:
        network = focus_net.read(path)
        if network is None:
            parser.error(f"{path} must hold weights of FocusNet")
        ways[Path(path).stem] = functools.partial(_by_network, network=network)
    pictures = []
    for path in args.pictures:
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((args.longest_side, args.longest_side), Image.Resampling.BOX)
        pictures.append(np.asarray(picture))
    print(f"| stack | frames | {' | '.join(ways)} |\n|---|---|{'---|' * len(ways)}")
    for name, (_, count, *_) in STACKS.items():
        results = []
        for number, picture in enumerate(pictures):
            frames, truth = stack(picture, name, number)
            results.append([decibels(fuse(frames), truth) for fuse in ways.values()])
        print(f"| {name} | {count} | {' | '.join(f'{value:.2f}' for value in np.mean(results, 0))} |", flush=True)


if __name__ == "__main__":
    main()
