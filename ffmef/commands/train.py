"""Train a fusion network from pairs, brackets or ordinary photographs.

Settings come from the defaults (the FFMEF paper's), from a TOML file over them, and from the options over both.
Several processes or GPUs: ``torchrun --nproc-per-node 2 -m ffmef.cli train ...``.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from pathlib import Path

from ffmef.errors import InputError, counted
from ffmef.training.config import Config, default_of, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one option for each setting, and those of the run itself."""
    parser.add_argument("-o", "--output", required=True, metavar="RUN", help="folder for the run")
    parser.add_argument("--config", metavar="FILE", help="settings in TOML")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in RUN")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    settings = parser.add_argument_group("settings")
    for f in dataclasses.fields(Config):
        default = default_of(f)
        shown = f" (default: {default})" if default not in ("", [], {}) else ""
        kwargs = {"default": argparse.SUPPRESS, "help": f.metadata["help"] + shown, "dest": f"set_{f.name}"}
        if isinstance(default, bool):
            kwargs["action"] = argparse.BooleanOptionalAction
        elif isinstance(default, list):
            kwargs |= {"nargs": "+", "metavar": "PLACE"}
        elif isinstance(default, dict):
            kwargs |= {"type": _json, "metavar": "JSON"}
        else:
            kwargs |= {"type": type(default), "metavar": {int: "N", float: "X", str: "NAME"}[type(default)]}
        settings.add_argument(f"--{f.name.replace('_', '-')}", **kwargs)


def run(args: argparse.Namespace) -> None:
    """Train, or resume with the settings that the run was started with."""
    folder = Path(args.output)
    overrides = {name[4:]: value for name, value in vars(args).items() if name.startswith("set_")}
    file = args.config
    if args.resume and file is None and (folder / "config.toml").exists():
        file = folder / "config.toml"
    config = resolve(file, overrides)
    for package in ("lightning_fabric", "tensorboard", "tqdm"):  # otherwise first imported in the middle of a run
        if importlib.util.find_spec(package) is None:
            raise InputError(f"training needs the package {package}; install ffmef[train]")
    from ffmef.training.memory import return_large_blocks
    from ffmef.training.trainer import Trainer

    if config.model_options.get("backend") == "recompute" or config.model_options.get("recompute"):
        return_large_blocks()  # "recompute" already trades time for memory
    trainer = Trainer(config, folder, resume=args.resume)
    if trainer.fabric.is_global_zero:
        count = sum(parameter.numel() for parameter in trainer.plain.parameters())
        scenes = counted(len(trainer.dataset.scenes), "scene")
        print(f"{scenes}, {len(trainer.held_out)} for validation; {count} parameters")
    trainer.run(progress=not args.quiet)


def _json(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text}")
    return value
