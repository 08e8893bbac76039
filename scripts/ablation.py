"""Rerun the paper's ablations on the data given: table 2 (filter sets), Fig. 7 (parts of GIF) and Fig. 8 (losses).

    python scripts/ablation.py --data TRAINING_PAIRS --pairs TEST_PAIRS -o FOLDER
    python scripts/ablation.py --photographs PICTURES --pairs TEST_PAIRS -o FOLDER \\
        --parts pyramid --config configs/pyramid-ablation.toml

The second command compares forms of the pyramid model. Both train every variant with the same settings and seed, score
it on the test pairs, and write ``ablation.md`` and the contact sheets ``ablation-PART.png``. Finished variants are not
trained again; interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ffmef
from ffmef import files, metrics
from ffmef.data import find_pairs
from ffmef.data.pictures import read_rgb, shrink
from ffmef.errors import InputError
from ffmef.imaging.io import Picture, write_picture
from ffmef.models import load
from ffmef.training.config import Config, resolve
from ffmef.training.report import contact_sheet
from ffmef.training.trainer import Trainer


def weighted(term: str, factor: float) -> Callable[[Config], dict[str, Any]]:
    """Return a change that multiplies the weight of one term of the loss on the finished picture."""

    def change(config: Config) -> dict[str, Any]:
        weights = config.loss_options.get("weights", {})
        return {"loss_options": {"weights": weights | {term: factor * weights.get(term, 0.0)}}}

    return change


VARIANTS: dict[str, dict[str, dict[str, Any] | Callable[[Config], dict[str, Any]]]] = {
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
    "pyramid": {
        "as configured": {},
        "second seed": {"seed": 1001},
        "third seed": {"seed": 1002},
        "twice as long": lambda config: {"epochs": 2 * config.epochs},
        "no band": {"model_options": {"bands": 0}},
        "1 band": {"model_options": {"bands": 1}},
        "2 bands": {"model_options": {"bands": 2}},
        "no octave": {"model_options": {"octaves": 0}},
        "no coarser grids": {"model_options": {"channels": [16]}},
        "half the channels": {"model_options": {"channels": [8, 8, 16, 16], "stem": 4}},
        "1.5 times the channels": {"model_options": {"channels": [24, 24, 48, 48], "stem": 12}},
        "fidelity / 3": weighted("fidelity", 1 / 3),
        "fidelity x 3": weighted("fidelity", 3.0),
    },
}
PAPER = ("table2", "fig7", "fig8")
LOWER_IS_BETTER = ("CE", "QCV")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=[], metavar="PLACE", help="training pairs or brackets")
    parser.add_argument("--photographs", nargs="+", default=[], metavar="FOLDER", help="for synthetic brackets")
    parser.add_argument("--pairs", required=True, metavar="FOLDER", help="test pairs, NAME/NAME_A.* and NAME/NAME_B.*")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", choices=VARIANTS, default=PAPER, help="the paper's by default")
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
    places = {"data": args.data, "photographs": args.photographs}
    settings: dict[str, Any] = {name: value for name, value in places.items() if value}
    if args.epochs:
        settings["epochs"] = args.epochs
    plain = resolve(args.config, settings)
    if "pyramid" in args.parts and plain.model != "pyramid":
        raise InputError(f"--parts pyramid needs settings whose model is pyramid (--config), got {plain.model}")
    if set(args.parts) & set(PAPER) and plain.model != "ffmef":
        raise InputError(f"--parts of the paper need settings whose model is ffmef, got {plain.model}")
    scores: dict[str, list[float]] = {}
    pictures: dict[str, list[np.ndarray]] = {}
    trained_on = ", ".join(plain.data + plain.photographs)
    text = ["# Ablations", "", f"{len(pairs)} test pairs, means; trained on {trained_on}.", ""]
    for part in args.parts:
        rows = {}
        for name, changes in VARIANTS[part].items():
            config = resolve(args.config, settings | (changes(plain) if callable(changes) else changes))
            key = key_of(part, name)
            if key not in scores:
                model = train(config, folder / key)
                scores[key], pictures[key] = evaluate(model, pairs, args.metrics, args.scenes)
                print(key, dict(zip(args.metrics, np.round(scores[key], 4).tolist())), flush=True)
            rows[name] = scores[key]
        text += [f"## {part}", "", *table(rows, args.metrics), ""]
        sheet = [
            [shrink(p, 320) for p in (*pair, *(pictures[key_of(part, name)][i] for name in rows))]
            for i, pair in enumerate(list(pairs.values())[: args.scenes])
        ]
        write_picture(folder / f"ablation-{part}.png", Picture(contact_sheet(sheet)))
        text += [f"Columns of `ablation-{part}.png`: the two sources, {', '.join(rows)}.", ""]
    files.write(folder / "ablation.md", "\n".join(text))


def key_of(part: str, name: str) -> str:
    """Return the folder of a variant; all parts of the paper share the unchanged one."""
    if part in PAPER and not VARIANTS[part][name]:
        return "default"
    return f"{part}-{''.join(c if c.isalnum() else '_' for c in name).strip('_')}"


def train(config: Config, folder: Path) -> nn.Module:
    """Return a variant's model, trained, resumed or found."""
    weights = folder / "weights.safetensors"
    if not weights.exists():
        Trainer(config, folder, resume=(folder / "checkpoint.pt").exists()).run()
    return load(weights)


def evaluate(model: nn.Module, pairs: dict, names: list[str], scenes: int) -> tuple[list[float], list[np.ndarray]]:
    """Return the mean of each metric over the pairs, and the first few fused pictures."""
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
    """Return a Markdown table with the best value of each metric in bold."""
    lines = ["| variant | " + " | ".join(n + (" (low)" if n in LOWER_IS_BETTER else "") for n in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    best = [(min if n in LOWER_IS_BETTER else max)(row[i] for row in rows.values()) for i, n in enumerate(names)]
    for variant, row in rows.items():
        cells = [f"**{value:.4f}**" if value == best[i] else f"{value:.4f}" for i, value in enumerate(row)]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
