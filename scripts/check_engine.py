"""Compare the fused engine with the same network in float64, layer by layer, on every pair of whole pictures.

    python scripts/check_engine.py --weights mef.pth mff.pth vif.pth --data MEFB VIFB MFIFB

Each data folder has the layout of MEFB: one folder per pair, with one file whose name ends in _A or _VI and one in _B
or _IR. Every pair is fused with every weights file, whatever it was trained for. Exits with 1 if the luminance differs
by more than 1e-4, or any pixel of the 8-bit picture by more than one grey level.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from ffmef import models
from ffmef.evaluation.dataset import find_pairs
from ffmef.imaging import colour, io

TOLERANCE = 1e-4


def luminance_of(path: Path) -> np.ndarray:
    pixels = io.read_picture(path).pixels.astype(np.float64)
    return (colour.luminance(pixels) if pixels.ndim == 3 else colour.grey_to_luminance(pixels)) / 255


@torch.inference_mode()
def distances(model: models.FFMEF, luminance: torch.Tensor) -> tuple[float, int]:
    """Return the largest difference in luminance and in rounded grey levels."""
    model.backend = "fused"
    fused = model(luminance.float()).double()
    model.backend = "eager"
    exact = model.double()(luminance.float().double())
    model.float()
    grey = [(x.clamp(0, 1) * 255).round() for x in (fused, exact)]
    return float((fused - exact).abs().max()), int((grey[0] - grey[1]).abs().max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True, help="weights files or names of FFMEF")
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="folders of pairs")
    arguments = parser.parse_args()
    pairs = [pair for folder in arguments.data for pair in find_pairs(folder).pairs]
    worst, levels = 0.0, 0
    for weights in arguments.weights:
        model = models.load(weights)
        for pair in pairs:
            luminance = torch.from_numpy(np.stack([luminance_of(path) for path in (pair.a, pair.b)]))[None]
            distance, level = distances(model, luminance)
            print(f"{Path(weights).stem} {pair.name}: {distance:.2e}, {level} grey level(s)", flush=True)
            worst, levels = max(worst, distance), max(levels, level)
    print(f"{len(pairs)} pairs, {len(arguments.weights)} weights: at most {worst:.2e} and {levels} grey level(s)")
    return int(worst > TOLERANCE or levels > 1)


if __name__ == "__main__":
    sys.exit(main())
