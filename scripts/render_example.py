"""Render the exposures in examples/ from radiance maps, so that anyone can reproduce them.

    apt-get download blender-data && dpkg -x blender-data_*.deb blender-data
    pip install OpenEXR
    python scripts/render_example.py blender-data/usr/share/blender/datafiles/studiolights/world examples

Each radiance map (equirectangular, linear) is looked at by a virtual camera, multiplied by the exposure, clipped, put
through a camera's tone curve, and quantised to 8 bit. So exposures of one scene differ in exposure alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


@dataclass(frozen=True)
class View:
    """Where the camera looks in a radiance map, and which exposures it takes.

    Attributes:
        radiance_map: file name without extension.
        yaw, pitch: direction of the optical axis in degrees, from the middle of the map to the right and up.
        field: horizontal field of view in degrees.
        size: width and height in pixels. The maps are 1024 pixels around, so a larger picture would only be softer.
        stops: exposures by file suffix; 0 lets radiance 1 just reach white.
        panini: 0 for a pinhole camera; up to 1 compresses the sides of a wide view, as architects' lenses seem to.
    """

    radiance_map: str
    yaw: float
    pitch: float
    field: float
    size: tuple[int, int]
    stops: dict[str, float]
    panini: float = 0.0


VIEWS = {
    "courtyard": View("courtyard", -38, 3, 125, (576, 384), {"under": -4.0, "over": 1.0}, 0.8),
    "sunset": View("sunset", 110, 4, 125, (576, 384), {"under": -2.5, "middle": -0.5, "over": 1.5}, 0.8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("maps", type=Path, help="folder with the .exr files")
    parser.add_argument("target", type=Path, help="folder for the pictures")
    parser.add_argument("views", nargs="*", default=list(VIEWS), help=f"default: {' '.join(VIEWS)}")
    args = parser.parse_args()
    for name in args.views:
        view = VIEWS[name]
        radiance = look(read_radiance(args.maps / f"{view.radiance_map}.exr"), view)
        for suffix, stops in view.stops.items():
            path = args.target / f"{name}_{suffix}.jpg"
            Image.fromarray(expose(radiance, stops)).save(path, quality=92, subsampling=0, optimize=True)
            print(f"{path}: {path.stat().st_size} bytes")


def read_radiance(path: Path) -> np.ndarray:
    """Return linear RGB radiance, (H, W, 3) float32, without the black specks that resampling left beside lights."""
    import OpenEXR

    channels = OpenEXR.File(str(path)).channels()
    pixels = channels["RGB"].pixels if "RGB" in channels else np.dstack([channels[name].pixels for name in "RGB"])
    pixels = pixels.astype(np.float32)
    median = cv2.medianBlur(pixels, 3)
    return np.where(pixels < 0.1 * median, median, pixels)


def look(radiance: np.ndarray, view: View) -> np.ndarray:
    """Project the sphere into the camera's picture (pinhole, or Panini with distance ``view.panini``)."""
    width, height = view.size
    d = view.panini
    half = np.radians(view.field / 2)
    scale = (d + 1) * np.sin(half) / (d + np.cos(half)) / (width / 2)
    x, y = np.meshgrid((np.arange(width) + 0.5 - width / 2) * scale, (height / 2 - np.arange(height) - 0.5) * scale)
    # Panini: x = S sin(longitude), y = S tan(latitude), S = (d + 1) / (d + cos(longitude)); solved for the angles.
    k = (x / (d + 1)) ** 2
    cosine = (-k * d + np.sqrt((k * d) ** 2 - (k + 1) * (k * d * d - 1))) / (k + 1)
    stretch = (d + 1) / (d + cosine)
    longitude, latitude = np.arctan2(x / stretch, cosine), np.arctan2(y, stretch)

    pitch = np.radians(view.pitch)
    right, up = np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    ahead = np.cos(latitude) * np.cos(longitude)
    up, ahead = up * np.cos(pitch) + ahead * np.sin(pitch), ahead * np.cos(pitch) - up * np.sin(pitch)
    longitude = np.arctan2(right, ahead) + np.radians(view.yaw)
    latitude = np.arcsin(np.clip(up, -1, 1))

    rows, columns = radiance.shape[:2]
    across = ((longitude / (2 * np.pi) + 0.5) % 1 * columns - 0.5).astype(np.float32)
    down = ((0.5 - latitude / np.pi) * rows - 0.5).astype(np.float32)
    # Interpolated in stops: a sun of 30000 would ring across half the sky in linear light.
    stops = np.log2(np.maximum(through_lens(radiance), 2e-3))
    return np.exp2(cv2.remap(stops, across, down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP))


def through_lens(radiance: np.ndarray) -> np.ndarray:
    """Return the radiance with a lens's glow: a twentieth of the light lands a pixel or two off."""
    return 0.95 * radiance + 0.05 * cv2.GaussianBlur(radiance, (0, 0), 1.2)


def expose(radiance: np.ndarray, stops: float) -> np.ndarray:
    """Return an 8-bit picture: exposure, clipping at white, the sRGB curve and a camera's usual contrast."""
    light = np.clip(radiance * 2.0**stops, 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    contrast = encoded * encoded * (3 - 2 * encoded)
    return np.rint(255 * (0.65 * encoded + 0.35 * contrast)).astype(np.uint8)


if __name__ == "__main__":
    main()
