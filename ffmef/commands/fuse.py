"""Fuse pictures of one scene into one picture."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import overload

from ffmef.commands import MOST_THREADS
from ffmef.errors import InputError, printable
from ffmef.models.registry import MODELS, TASKS

FUSION_ARGUMENTS = ("weights", "model", "device")
_FORMATS = "PNG, JPEG, TIFF, BMP, WebP or OpenEXR file, by extension"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    exposures = "exposures (mef) or the frames of a focus stack (mff), in any order; - reads one from standard input"
    add("pictures", nargs="*", metavar="PICTURE", help=exposures)
    add("-o", "--output", required=True, metavar="FUSED", help=f"{_FORMATS}; - writes to standard output")
    add(
        "--infrared",
        metavar="PICTURE",
        help="for --task vif: the infrared picture; scaled to the size of the visible one",
    )
    add("--visible", metavar="PICTURE", help="for --task vif: the visible picture, which gives the colours")
    add(
        "--reference",
        metavar="PICTURE",
        help="with --align: the frame that stays, or its number, from 1 (default: the best exposed)",
    )
    add(
        "--depth-map",
        metavar="FILE",
        help="for --task mff: write the number of the sharpest frame per pixel, from 0 (PNG or TIFF)",
    )
    add("--format", metavar="EXT", help="format of -o -: png (default), jpg, tif, webp, bmp, exr")
    add_fusion_arguments(parser)
    parser.epilog = "To fuse folders of brackets, use 'ffmef batch FOLDER... -o OUT'."


def add_fusion_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``ffmef fuse`` and ``ffmef batch`` share."""
    add = parser.add_argument
    add("--task", default="mef", help="mef: exposures (default); mff: a focus stack; vif: infrared and visible")
    add(
        "--model",
        metavar="NAME",
        help="; ".join(f"{spec.name}: {spec.summary}" for spec in MODELS.values())
        + "; energy: focus stacks by a formula, without a network, the default for mff (default: by task)",
    )
    add("--weights", metavar="NAME|PATH", help="bundled weights or a file (default: those of the model for the task)")
    add(
        "--backend",
        metavar="NAME",
        help="how to compute: a name that 'ffmef info' lists, or fused or eager for ffmef (default: the fastest)",
    )
    add("--engine", help=argparse.SUPPRESS)  # deprecated: --backend takes its values
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cpu)")
    add("--threads", metavar="T", help="processor threads (default: FFMEF_THREADS, or one per processor)")
    add("--align", action="store_true", help="move hand-held frames onto one of them first")
    add("--crop", action="store_true", help="with --align: cut to what every frame covers")
    add(
        "--brightness",
        metavar="EV",
        default="0",
        help="stops by which to brighten shadows, -4 to 4; white stays white (default: 0)",
    )
    add("--contrast", metavar="C", default="0", help="-1 to 4: detail is multiplied by 1 + C (default: 0)")
    add("--saturation", metavar="S", default="0", help="-1 (grey) to 4: colour is multiplied by 1 + S (default: 0)")
    add(
        "--prefer",
        metavar="dark|bright|P",
        default="0",
        help="exposures to favour, or a number from -4 (dark) to 4 (bright) (default: 0)",
    )
    add("--deghost", action="store_true", help="take what moved between exposures from the best exposed one")
    add("--deghost-from", metavar="N", help="the same, but from exposure N, counted from 1")
    add("--stretch", action="store_true", help="use the whole range of 10- to 14-bit samples and of infrared")
    add(
        "--quality",
        metavar="Q",
        help="quality of JPEG and WebP, 1 to 100 (default: JPEG 95 with full chroma, WebP lossless)",
    )
    add("--compression", metavar="L", default="3", help="compression of PNG and TIFF, 0 (TIFF: none) to 9 (default: 3)")
    add("--output-depth", metavar="BITS", help="8 or 16 bits per sample (default: that of the deepest picture)")


def run(args: argparse.Namespace) -> None:
    from ffmef import jobs
    from ffmef.imaging import paths

    options = fusion_options(args)
    inputs = _inputs(args)
    report = sys.stderr if paths.is_standard_output(args.output) else sys.stdout
    # Remarks wait for the picture: a mistake must stay one line, whatever was remarked before it.
    remarks = [
        f"{name} is given {inputs.count(name)} times and counts as often"
        for name in dict.fromkeys(inputs)
        if inputs.count(name) > 1
    ]
    outcome = jobs.fuse_files(inputs, args.output, options, remarks.append)
    slow = jobs.why_slow(options)
    for remark in remarks if slow is None else (*remarks, slow):
        print(printable(f"ffmef fuse: remark: {remark}"), file=sys.stderr)
    backend = args.backend or _default_backend(args.device)
    target = "standard output" if args.output == paths.STANDARD else args.output
    size = f"{outcome.width} x {outcome.height}, {outcome.bits} bit"
    for line in (f"{size}, backend {backend}, {outcome.seconds:.2f} s", *outcome.reductions):
        print(printable(f"{target}: {line}"), file=report)


def fusion_options(args: argparse.Namespace):
    """Return the options for the arguments of :func:`add_fusion_arguments`.

    Raises:
        InputError: a value breaks its rule.
    """
    from ffmef.jobs import Options

    if args.task not in TASKS:
        raise InputError(f"--task must be one of {', '.join(TASKS)}, got {args.task!r}")
    threads = whole_number(args.threads, "--threads", 1, MOST_THREADS)
    wish = getattr(args, "format", None)
    return Options(
        task=args.task,
        depth_map=getattr(args, "depth_map", None),
        stretch=args.stretch,
        align=args.align,
        crop=args.crop,
        reference=getattr(args, "reference", None),
        quality=whole_number(args.quality, "--quality", 1, 100),
        compression=whole_number(args.compression, "--compression", 0, 9),
        output_depth=whole_number(args.output_depth, "--output-depth"),
        standard_format=None if wish is None else wish.removeprefix(".").lower(),
        fusion={
            "threads": threads,
            "backend": _backend(args),
            "adjust": _adjustments(args),
            "deghost": _deghost(args),
            **{name: getattr(args, name) for name in FUSION_ARGUMENTS},
        },
    )


def _adjustments(args: argparse.Namespace):
    from ffmef.adjust import Adjustments

    values = {name: getattr(args, name) for name in ("brightness", "contrast", "saturation", "prefer")}
    for name, text in values.items():
        with contextlib.suppress(ValueError):  # the error for other text comes below
            values[name] = float(text)
    try:
        return Adjustments(**values)
    except InputError as error:
        raise InputError(f"--{error}") from None


def _deghost(args: argparse.Namespace) -> bool | int:
    number = whole_number(args.deghost_from, "--deghost-from", 1)
    return args.deghost if number is None else number - 1


def _backend(args: argparse.Namespace) -> str | None:
    if args.engine is None:
        return args.backend
    engines = ("auto", "eager", "fused")
    if args.engine not in engines:
        raise InputError(f"--engine must be one of {', '.join(engines)}, got {args.engine!r}")
    print("ffmef: --engine is deprecated: --backend takes its values", file=sys.stderr)
    return args.backend or (None if args.engine == "auto" else args.engine)


@overload
def whole_number(text: str, name: str, least: int = 0, most: int | None = None) -> int: ...


@overload
def whole_number(text: None, name: str, least: int = 0, most: int | None = None) -> None: ...


def whole_number(text: str | None, name: str, least: int = 0, most: int | None = None) -> int | None:
    """Return an argument's number, or raise an error that says what is wrong."""
    if text is None:
        return None
    if not text.removeprefix("-").isdecimal():
        raise InputError(f"{name} must be a whole number, got {text!r}")
    if int(text) < least:
        raise InputError(f"{name} must be at least {least}, got {text}")
    if most is not None and int(text) > most:
        raise InputError(f"{name} must be at most {most}, got {text}")
    return int(text)


def _default_backend(device: str | None) -> str:
    if "torch" not in sys.modules:  # the picture was fused without it
        return "cpu"
    from ffmef import ops

    missing = ops.backends()
    preferred = ("cpu",) if device is None or device.startswith("cpu") else ("cuda", "triton")
    return next((name for name in preferred if missing[name] is None), "reference")


def _inputs(args: argparse.Namespace) -> list[str]:
    """Return the paths of the pictures, infrared before visible."""
    from ffmef.imaging import paths

    roles = {"infrared": args.infrared, "visible": args.visible}
    if args.task != "vif":
        given = [name for name, path in roles.items() if path is not None]
        if given:
            raise InputError(f"--{given[0]} is for --task vif, got --task {args.task}")
        pictures = paths.expand(args.pictures)
        if len(pictures) < 2:
            raise InputError(f"PICTURE must be given at least twice, got {len(pictures)}")
        return pictures
    missing = [name for name, path in roles.items() if path is None]
    if missing:
        raise InputError(f"--task vif needs --infrared and --visible, got no --{missing[0]}")
    if args.pictures:
        raise InputError(f"--task vif takes its pictures by --infrared and --visible, got {args.pictures[0]}")
    pictures = paths.expand(roles.values())
    if len(pictures) != 2:
        raise InputError(f"--infrared and --visible must each name one picture, got {', '.join(pictures)}")
    return pictures
