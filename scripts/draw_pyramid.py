"""Draws docs/pyramid.png: two exposures, their fusion, and the weights that the network predicts.

python scripts/draw_pyramid.py [UNDER OVER] [-o docs/pyramid.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from ffmef import models
from ffmef.imaging.colour import luminance
from ffmef.imaging.io import Picture, read_picture, write_picture
from ffmef.models.pyramid import halve

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
WIDTH = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "pictures", nargs="*", default=[EXAMPLES / "courtyard_under.jpg", EXAMPLES / "courtyard_over.jpg"]
    )
    parser.add_argument("-o", "--output", default="docs/pyramid.png")
    args = parser.parse_args()
    pictures = [torch.from_numpy(read_picture(path).pixels.copy()) for path in args.pictures]
    model = models.load("mef-pyramid")
    half = halve(luminance(torch.stack([p.movedim(-1, 0) for p in pictures]))[None] / 255)
    with torch.inference_mode():
        shares, gains = model.predict(half)
        fused = model.fuse_rgb(pictures)
    height = round(WIDTH * fused.shape[0] / fused.shape[1])

    def small(picture: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.resize(picture, (WIDTH, height), interpolation=interpolation)

    top = [small(p.numpy(), cv2.INTER_AREA) for p in (*pictures, fused)]
    maps = [(plane[0].clamp(0, 1) * 255).byte().numpy() for plane in (shares * (1 + gains))[0, [0, 2, 3]]]
    bottom = [small(np.dstack([m] * 3), cv2.INTER_NEAREST) for m in maps]
    gap = np.full((height, 6, 3), 255, np.uint8)
    rows = [np.hstack([row[0], gap, row[1], gap, row[2]]) for row in (top, bottom)]
    write_picture(args.output, Picture(np.vstack([rows[0], np.full((6, rows[0].shape[1], 3), 255, np.uint8), rows[1]])))


if __name__ == "__main__":
    main()
