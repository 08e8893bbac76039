"""Rerun the paper's ablations on the data given: table 2 (filter sets), Fig. 7 (parts of GIF) and Fig. 8 (losses).

    python scripts/ablation.py --data TRAINING_PAIRS --pairs TEST_PAIRS -o FOLDER

trains every variant with the same settings and seed, scores it on the test pairs, and leaves ``ablation.md`` and the
contact sheets ``ablation-PART.png``. Variants that are finished are not trained again, interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import ffmef
from ffmef import metrics
from ffmef.data import find_pairs
from ffmef.data.pictures import read_rgb, shrink
from ffmef.errors import InputError
from ffmef.imaging.io import Picture, write_picture
from ffmef.models import load
from ffmef.training.checkpoint import write_atomically
from ffmef.training.config import resolve
from ffmef.training.report import contact_sheet
from ffmef.training.trainer import Trainer

VARIANTS = {
    "table2": {
        "{1}": {"model_options": {"kernel_sizes": [1]}},
        "{1, 3}": {"model_options": {"kernel_sizes": [1, 3]}},
        "{3, 5}": {"model_options": {"kernel_sizes": [3, 5]}},
        "{1, 3, 5}": {},
        "{1, 3, 5, 7}": {"model_options": {"kernel_sizes": [1, 3, 5, 7]}},
    },
    "fig7": {
        "GIF": {},
        "raw gradients": {"loss_options": {"masks": "gradient"}},
        "no saturation": {"loss_options": {"saturation": False}},
        "no global term": {"loss_options": {"global_weight": 0.0}},
    },
    "fig8": {
        "GIF": {},
        "MEF-SSIM": {"loss": "mef-ssim"},
        "PMGI": {"loss": "pmgi"},
        "picture": {"loss": "picture"},
    },
}
LOWER_IS_BETTER = ("CE", "QCV")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="PLACE", help="training pairs or brackets")
    parser.add_argument("--pairs", required=True, metavar="FOLDER", help="test pairs, NAME/NAME_A.* and NAME/NAME_B.*")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--config", metavar="FILE", help="settings for all variants; the paper's by default")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--metrics", nargs="+", default=["EN", "AG", "QABF", "QW", "MEF_SSIM", "QCV", "VIF"])
    parser.add_argument("--scenes", type=int, default=4, metavar="N", help="test pairs in the contact sheet")
    args = parser.parse_args(argv)
    try:
        run(args)
    except InputError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    unknown = [name for name in args.metrics if name not in metrics.METRICS]
    if unknown:
        raise InputError(f"--metrics must be among {', '.join(metrics.METRICS)}, got {unknown[0]}")
    folder = Path(args.output)
    pairs = {name: [read_rgb(path) for path in paths] for name, paths in find_pairs(args.pairs).items()}
    settings = {"data": args.data} | ({"epochs": args.epochs} if args.epochs else {})
    scores: dict[str, list[float]] = {}
    pictures: dict[str, list[np.ndarray]] = {}
    text = ["# Ablations", "", f"{len(pairs)} test pairs, means; trained on {', '.join(args.data)}.", ""]
    for part in args.parts:
        rows = {}
        for name, changes in VARIANTS[part].items():
            config = resolve(args.config, settings | changes)
            key = key_of(part, name)
            if key not in scores:
                scores[key], pictures[key] = evaluate(train(config, folder / key), pairs, args.metrics, args.scenes)
                print(key, dict(zip(args.metrics, np.round(scores[key], 4).tolist())), flush=True)
            rows[name] = scores[key]
        text += [f"## {part}", "", *table(rows, args.metrics), ""]
        sheet = [[shrink(p, 320) for p in (*pair, *(pictures[key_of(part, name)][i] for name in rows))]
                 for i, pair in enumerate(list(pairs.values())[: args.scenes])]
        write_picture(folder / f"ablation-{part}.png", Picture(contact_sheet(sheet)))
        text += [f"Columns of `ablation-{part}.png`: the two sources, {', '.join(rows)}.", ""]
    write_atomically(folder / "ablation.md", "\n".join(text).encode())


def key_of(part: str, name: str) -> str:
    """Return the folder of a variant; the unchanged one is shared by all parts."""
    if not VARIANTS[part][name]:
        return "default"
    return f"{part}-{''.join(c if c.isalnum() else '_' for c in name).strip('_')}"


def train(config, folder: Path) -> Path:
    """Return the weights of a variant, trained, resumed or found."""
    weights = folder / "weights.safetensors"
    if not weights.exists():
        Trainer(config, folder, resume=(folder / "checkpoint.pt").exists()).run()
    return weights


def evaluate(weights: Path, pairs: dict, names: list[str], scenes: int) -> tuple[list[float], list[np.ndarray]]:
    """Return the mean of each metric over the pairs, and the first few fused pictures."""
    model = load(weights)
    values, pictures = [], []
    for dark, bright in pairs.values():
        if dark.mean() > bright.mean():
            dark, bright = bright, dark
        with torch.inference_mode():
            fused = ffmef.fuse([dark, bright], model=model)
        found = metrics.compute(dark, bright, fused, names)
        values.append([found[name] for name in names])
        if len(pictures) < scenes:
            pictures.append(fused)
    return np.mean(values, 0).tolist(), pictures


def table(rows: dict[str, list[float]], names: list[str]) -> list[str]:
    """Return a Markdown table, the best value of each metric in bold."""
    lines = ["| variant | " + " | ".join(n + (" (low)" if n in LOWER_IS_BETTER else "") for n in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    best = [(min if n in LOWER_IS_BETTER else max)(row[i] for row in rows.values()) for i, n in enumerate(names)]
    for variant, row in rows.items():
        cells = [f"**{value:.4f}**" if value == best[i] else f"{value:.4f}" for i, value in enumerate(row)]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
