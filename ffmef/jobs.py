"""From files to a file: what one call of ``ffmef fuse`` and one group of ``ffmef batch`` do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ffmef.errors import InputError

STANDARD_FORMATS = ("png", "jpg", "tif", "webp", "bmp", "exr")


@dataclass(frozen=True)
class Options:
    """How to fuse and how to write; what is None is decided by the pictures and the target.

    Attributes:
        task: mef, mff or vif.
        stretch: use the whole range of samples that fill little of it.
        quality: of JPEG and WebP, 1 to 100.
        compression: of PNG and TIFF, 0 to 9.
        output_depth: 8 or 16 bits a sample.
        align: move hand-held frames onto one of them first.
        crop: cut to what every aligned frame covers.
        reference: the frame that stays where it is and gives the EXIF block: its number from 1, or its path; None takes
            the best exposed one.
        standard_format: extension that says what is written to standard output.
        fusion: the further arguments of :func:`ffmef.pipeline.fuse_pictures`.
    """

    task: str = "mef"
    stretch: bool = False
    quality: int | None = None
    compression: int = 3
    output_depth: int | None = None
    align: bool = False
    crop: bool = False
    reference: str | None = None
    standard_format: str = "png"
    fusion: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a job did: the size and depth written, the seconds that fusion took, and what is to be said about it."""

    width: int
    height: int
    bits: int
    seconds: float
    reductions: list[str]


def check(output: str, options: Options) -> None:
    """Raise what is wrong with the target and its options before anything is read.

    Raises:
        InputError: naming the option.
    """
    from ffmef.imaging import formats, paths

    if output == paths.STANDARD:
        if options.standard_format not in STANDARD_FORMATS:
            raise InputError(f"--format must be one of {', '.join(STANDARD_FORMATS)}, got {options.standard_format!r}")
        name = formats.FORMATS[f".{options.standard_format}"]
    else:
        name = formats.check_target(output)
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise InputError(f"--quality must be from 1 to 100, got {options.quality}")
    if options.quality is not None and name not in ("JPEG", "WEBP"):
        raise InputError(f"--quality is for JPEG and WebP, got the target {output} ({name})")
    if not 0 <= options.compression <= 9:
        raise InputError(f"--compression must be from 0 to 9, got {options.compression}")
    if options.align and options.task == "vif":
        raise InputError("--align is for --task mef and mff, got --task vif")
    if not options.align and (options.crop or options.reference is not None):
        raise InputError(f"{'--crop' if options.crop else '--reference'} is for --align, which is not given")
    if options.output_depth not in (None, 8, 16):
        raise InputError(f"--output-depth must be 8 or 16, got {options.output_depth}")
    if options.output_depth == 16 and name not in ("PNG", "TIFF"):
        raise InputError(f"--output-depth 16 is for PNG and TIFF, got the target {output} ({name})")


def fuse_files(inputs: Sequence[str], output: str, options: Options, remark=lambda text: None) -> Outcome:
    """Read the inputs, fuse them and write the output.

    Args:
        inputs: paths, infrared before visible; ``-`` for standard input.
        output: path, or ``-`` for standard output.
        options: how.
        remark: called with each line that the user should read, as soon as it is known.

    Raises:
        InputError: naming the file or option at fault; nothing is written then.
    """
    from ffmef import pipeline
    from ffmef.imaging import bracket, io, paths
    from ffmef.imaging.formats import FORMATS

    check(output, options)
    paths.refuse_input_as_output(output, inputs)
    with io.hidden_decoder_messages():
        pictures, remarks = bracket.read_bracket(
            inputs, options.task, stretch=options.stretch, depth=options.output_depth, read=_read
        )
    for line in remarks:
        remark(line)
    exif = None
    if options.align:
        pictures, exif = _aligned(pictures, inputs, options, remark)
    elif options.task == "mef":
        _say_shift(pictures, inputs, remark)
    started = time.perf_counter()
    fused = pipeline.fuse_pictures(
        dict(zip(pipeline.ROLES, pictures)) if options.task == "vif" else pictures,
        options.task,
        names=list(inputs),
        **options.fusion,
    )
    seconds = time.perf_counter() - started
    if exif is not None:
        fused = replace(fused, exif=exif)
    encoding = {"quality": options.quality, "compression": options.compression, "depth": options.output_depth}
    if output == paths.STANDARD:
        name = FORMATS[f".{options.standard_format}"]
        data, written = io.encode_picture(fused, name, "standard output", **encoding)
        paths.write_standard_output(data)
    else:
        written = io.write_picture(output, fused, **encoding)
    height, width = written.pixels.shape[:2]
    bits = 8 * written.pixels.itemsize
    return Outcome(width, height, bits, seconds, _reductions(fused, written, options.output_depth))


def _read(path, white_balance=None):
    from ffmef.imaging import io, paths

    if path == paths.STANDARD:
        return io.decode_picture(paths.read_standard_input(), "standard input", white_balance=white_balance)
    return io.read_picture(path, white_balance=white_balance)


def _aligned(pictures, names: Sequence[str], options: Options, remark) -> tuple[list, bytes | None]:
    """Return the pictures moved onto the reference, and the reference's EXIF block."""
    from ffmef import align

    if options.reference is None:
        reference = align.best_exposed([picture.pixels for picture in pictures])
    else:
        reference = _index(options.reference, names)
    moved, lines = align.align_pictures(pictures, names, reference, options.crop)
    for line in lines:
        remark(line)
    return moved, pictures[reference].exif


def _say_shift(pictures, names: Sequence[str], remark) -> None:
    from ffmef import align

    found = align.apparent_shift([picture.pixels for picture in pictures])
    if found is not None:
        one, other, pixels = found
        remark(f"{names[one]} and {names[other]} are shifted by about {pixels:.0f} pixels: --align moves them together")


def _index(reference: str, names: Sequence[str]) -> int:
    """Return which of the inputs a reference names."""
    if reference in names:
        return list(names).index(reference)
    if reference.isdecimal() and 1 <= int(reference) <= len(names):
        return int(reference) - 1
    raise InputError(f"--reference must be one of the pictures or a number from 1 to {len(names)}, got {reference!r}")


def _reductions(fused, written, depth: int | None) -> list[str]:
    remarks = []
    before, after = 8 * fused.pixels.itemsize, 8 * written.pixels.itemsize
    if after < before and depth is None:
        before = "32 bit float" if before == 32 else before
        remarks.append(f"reduced from {before} to {after} bit, because {written.format} has no more")
    if fused.alpha is not None and written.alpha is None:
        remarks.append(f"alpha left out, because {written.format} has none")
    return remarks
