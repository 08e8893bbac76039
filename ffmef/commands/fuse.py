"""Fuse pictures of one scene into one picture."""

from __future__ import annotations

import argparse
import sys
import time

from ffmef.commands import MOST_THREADS
from ffmef.errors import InputError
from ffmef.models.registry import MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pictures", nargs="*", metavar="PICTURE", help="the exposures, in any order (mef), or foci (mff)")
    add("-o", "--output", required=True, metavar="FUSED", help="PNG, JPEG, TIFF, BMP or WebP, by extension")
    add("--task", default="mef", help="mef: exposures (default); mff: foci; vif: infrared and visible")
    add("--infrared", metavar="PICTURE", help="for --task vif")
    add("--visible", metavar="PICTURE", help="for --task vif; the colours are taken from it")
    add(
        "--model",
        metavar="NAME",
        help="; ".join(f"{spec.name}: {spec.summary}" for spec in MODELS.values()) + " (default: by task)",
    )
    add("--weights", metavar="NAME|PATH", help="bundled weights or a file (default: those of the model for the task)")
    add(
        "--backend",
        metavar="NAME",
        help="how to compute: a name that 'ffmef info' lists, or fused or eager for ffmef (default: the fastest)",
    )
    add("--engine", help=argparse.SUPPRESS)  # deprecated: --backend takes its values
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cpu)")
    add("--threads", metavar="T", help="processor threads (default: FFMEF_THREADS, or one for each processor)")


def run(args: argparse.Namespace) -> None:
    from ffmef import pipeline
    from ffmef.imaging import io

    if args.task not in pipeline.TASKS:
        raise InputError(f"--task must be one of {', '.join(pipeline.TASKS)}, got {args.task!r}")
    paths = _paths(args)
    threads = _threads(args.threads)
    io.check_target(args.output)
    with io.hidden_decoder_messages():
        pictures = {name: io.read_picture(path) for name, path in paths.items()}

    started = time.perf_counter()
    fused = pipeline.fuse_pictures(
        pictures if args.task == "vif" else list(pictures.values()),
        args.task,
        args.weights,
        names=list(paths.values()),
        backend=_backend(args),
        model=args.model,
        device=args.device,
        threads=threads,
    )
    seconds = time.perf_counter() - started
    written = io.write_picture(args.output, fused)
    height, width = written.pixels.shape[:2]
    bits = 8 * written.pixels.itemsize
    backend = args.backend or _default_backend(args.device)
    print(f"{args.output}: {width} x {height}, {bits} bit, backend {backend}, {seconds:.2f} s")
    for remark in _reductions(fused, written):
        print(f"{args.output}: {remark}")


def _backend(args: argparse.Namespace) -> str | None:
    if args.engine is None:
        return args.backend
    engines = ("auto", "eager", "fused")
    if args.engine not in engines:
        raise InputError(f"--engine must be one of {', '.join(engines)}, got {args.engine!r}")
    print("ffmef fuse: --engine is deprecated: --backend takes its values", file=sys.stderr)
    return args.backend or (None if args.engine == "auto" else args.engine)


def _threads(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.removeprefix("-").isdecimal():
        raise InputError(f"--threads must be a whole number, got {text!r}")
    if int(text) < 1:
        raise InputError(f"--threads must be at least 1, got {text}")
    if int(text) > MOST_THREADS:
        raise InputError(f"--threads must be at most {MOST_THREADS}, got {text}")
    return int(text)


def _default_backend(device: str | None) -> str:
    if "torch" not in sys.modules:  # the picture was fused without it
        return "cpu"
    from ffmef import ops

    missing = ops.backends()
    preferred = ("cpu",) if device is None or device.startswith("cpu") else ("cuda", "triton")
    return next((name for name in preferred if missing[name] is None), "reference")


def _paths(args: argparse.Namespace) -> dict[str | int, str]:
    """Return the path of each picture by its role or number, infrared before visible."""
    roles = {"infrared": args.infrared, "visible": args.visible}
    if args.task != "vif":
        given = [name for name, path in roles.items() if path is not None]
        if given:
            raise InputError(f"--{given[0]} is for --task vif, got --task {args.task}")
        if len(args.pictures) < 2:
            raise InputError(f"PICTURE must be given at least twice, got {len(args.pictures)}")
        return dict(enumerate(args.pictures))
    missing = [name for name, path in roles.items() if path is None]
    if missing:
        raise InputError(f"--task vif needs --infrared and --visible, got no --{missing[0]}")
    if args.pictures:
        raise InputError(f"--task vif takes its pictures by --infrared and --visible, got {args.pictures[0]}")
    return roles


def _reductions(fused, written) -> list[str]:
    remarks = []
    if fused.pixels.dtype != written.pixels.dtype:
        remarks.append(f"reduced from 16 to 8 bit, because {written.format} has no more")
    if fused.alpha is not None and written.alpha is None:
        remarks.append(f"alpha left out, because {written.format} has none")
    return remarks
