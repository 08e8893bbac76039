"""From files to a file: the work of one call of ``ffmef fuse`` and of one group of ``ffmef batch``."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ffmef.errors import InputError

STANDARD_FORMATS = ("png", "jpg", "tif", "webp", "bmp", "exr")


@dataclass(frozen=True)
class Options:
    """How to fuse and how to write; where an option is None, the pictures and the target decide.

    Attributes:
        task: mef, mff or vif.
        depth_map: where to write which frame of a focus stack was sharpest.
        stretch: use the whole range of samples that fill little of it.
        quality: of JPEG and WebP, 1 to 100.
        compression: of PNG and TIFF, 0 to 9.
        output_depth: 8 or 16 bits per sample.
        align: move hand-held frames onto one of them first.
        crop: cut to what every aligned frame covers.
        reference: the frame that stays where it is and gives the EXIF block: its number from 1, or its path; None takes
            the best exposed one.
        standard_format: extension that names the format for standard output (None: png), or for a file whose name does
            not.
        fusion: the further arguments of :func:`ffmef.pipeline.fuse_pictures`.
    """

    task: str = "mef"
    depth_map: str | None = None
    stretch: bool = False
    quality: int | None = None
    compression: int = 3
    output_depth: int | None = None
    align: bool = False
    crop: bool = False
    reference: str | None = None
    standard_format: str | None = None
    fusion: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a job did: the size and depth written, the seconds that fusion took, and remarks."""

    width: int
    height: int
    bits: int
    seconds: float
    reductions: list[str]


def check(output: str, options: Options) -> None:
    """Check the target and its options before anything is read.

    Raises:
        InputError: an option cannot be used; the message names it.
    """
    name = _target_format(output, options)
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


def why_slow(options: Options) -> str | None:
    """Return a remark if torch has to fuse because the native library cannot be used, and how to rebuild it."""
    from ffmef import pipeline

    why = pipeline.why_not_native(options.task, **_choice(options))
    if why is None:
        return None
    return (
        f"torch fuses, which takes seconds longer: {why} (to rebuild it, run 'make build' in the sources, "
        "or install ffmef again where there is a C++ compiler)"
    )


def _choice(options: Options) -> dict:
    """Return the options that choose what fuses."""
    return {name: options.fusion.get(name) for name in ("weights", "model", "backend", "device")}


def _target_format(output: str, options: Options) -> str:
    from ffmef.imaging import formats, paths

    wish = options.standard_format
    if wish is not None and wish not in STANDARD_FORMATS:
        raise InputError(f"--format must be one of {', '.join(STANDARD_FORMATS)}, got {wish!r}")
    if output == paths.STANDARD:
        return formats.FORMATS[f".{wish or 'png'}"]
    name = formats.check_target(output, wish and f".{wish}")
    if wish is not None and name != formats.FORMATS[f".{wish}"]:
        raise InputError(f"--format {wish} contradicts the extension of the target {output}")
    return name


def fuse_files(inputs: Sequence[str], output: str, options: Options, remark=lambda text: None) -> Outcome:
    """Read the inputs, fuse them and write the output.

    Args:
        inputs: paths, infrared before visible; ``-`` for standard input.
        output: path, or ``-`` for standard output.
        options: how.
        remark: called with each line that the user should read, as soon as it is known.

    Raises:
        InputError: a file or option cannot be used; the message names it, and nothing is written.
    """
    from ffmef import pipeline
    from ffmef.imaging import bracket, io, paths

    check(output, options)
    paths.refuse_input_as_output(output, inputs)
    deghost = options.fusion.get("deghost", False)
    if not isinstance(deghost, bool) and deghost >= len(inputs):
        raise InputError(f"--deghost-from must be a number from 1 to {len(inputs)}, got {deghost + 1}")
    by_focus = focus_of(options)
    if by_focus is not None:
        return _fuse_stack(inputs, output, options, remark, by_focus.network)
    if options.depth_map is not None:
        raise InputError("--depth-map can only be used for focus stacks (--task mff, with the model focus or energy)")
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
    return _write(fused, output, options, seconds)


def _write(fused, output: str, options: Options, seconds: float) -> Outcome:
    from ffmef import files
    from ffmef.imaging import io, paths

    title = "standard output" if output == paths.STANDARD else output
    data, written = io.encode_picture(
        fused,
        _target_format(output, options),
        title,
        quality=options.quality,
        compression=options.compression,
        depth=options.output_depth,
    )
    if output == paths.STANDARD:
        paths.write_standard_output(data)
    else:
        files.write(output, data)
    height, width = written.pixels.shape[:2]
    bits = 8 * written.pixels.itemsize
    return Outcome(width, height, bits, seconds, _reductions(fused, written, options.output_depth))


# Focus stacks


IN_MEMORY = 4  # frames; more are read twice, one at a time


def focus_of(options: Options):
    """Return how :mod:`ffmef.focus` is to fuse by these options, or None."""
    from ffmef import pipeline

    return pipeline.focus_of(options.task, **_choice(options))


def _fuse_stack(inputs: Sequence[str], output: str, options: Options, remark, network) -> Outcome:
    from ffmef import focus, picture, pipeline
    from ffmef.imaging import formats, io, paths
    from ffmef.imaging.io import Picture

    threads = picture.thread_count(options.fusion.get("threads"))
    adjust = options.fusion.get("adjust")
    if not (adjust is None or adjust.neutral) or options.fusion.get("deghost", False) is not False:
        names = "--brightness, --contrast, --saturation, --prefer" if adjust and not adjust.neutral else "--deghost"
        raise InputError(f"{names} cannot be used with focus stacks: only exposures (--task mef) know it")
    if options.depth_map is not None:
        if formats.FORMATS.get(Path(options.depth_map).suffix.lower()) not in ("PNG", "TIFF"):
            raise InputError(f"--depth-map must be PNG or TIFF, which keep numbers exact, got {options.depth_map}")
        paths.refuse_input_as_output(options.depth_map, inputs)
        if output != paths.STANDARD and paths.same_file(options.depth_map, output):
            raise InputError(f"--depth-map must not be the target of -o, {output}")
        formats.check_target(options.depth_map)  # before the picture is written
    stack = _Stack(inputs, remark)
    with io.hidden_decoder_messages(), pipeline._cv2_threads(threads):
        started = time.perf_counter()
        together = len(inputs) <= IN_MEMORY or options.stretch or options.align or paths.STANDARD in inputs
        if together:
            frames = _frames_together(stack, options, remark)
            started = time.perf_counter()
        else:
            frames = [functools.partial(stack.read, index) for index in range(len(inputs))]
        fused = focus.fuse(frames, depth_map=options.depth_map is not None, network=network)
        seconds = time.perf_counter() - started
    pixels = fused.pixels
    if options.output_depth == 16:
        pixels = io.to_depth(pixels, np.dtype(np.uint16))
    alpha = None if stack.alpha is None else io.to_depth(stack.alpha, pixels.dtype)
    icc = stack.icc if pixels.ndim == 3 or not stack.coloured else None
    outcome = _write(Picture(pixels, alpha, icc, stack.exif, stack.format), output, options, seconds)
    if options.depth_map is not None and fused.sharpest is not None:
        io.write_picture(options.depth_map, Picture(fused.sharpest, None, None, None, "PNG"))
    return outcome


def _frames_together(stack: _Stack, options: Options, remark) -> list:
    """Return the samples of all frames, made comparable, and aligned if requested."""
    from ffmef.imaging import bracket
    from ffmef.imaging.margins import continued, usable_parts

    pictures, remarks = bracket.read_bracket(
        stack.inputs, "mff", stretch=options.stretch, depth=options.output_depth, read=_read
    )
    for line in remarks:
        remark(line)
    exif = None
    if options.align:
        pictures, exif = _aligned(pictures, stack.inputs, options, remark)
    for picture in pictures:
        stack.note(picture)
    stack.exif = exif or stack.exif
    dtype = pictures[0].pixels.dtype
    _, masks = usable_parts([p.alpha for p in pictures], np.iinfo(dtype).max if dtype.kind == "u" else 1)
    # Continued into the margins: otherwise the margins' edges would be the sharpest places.
    return [p.pixels if mask is None else continued(p.pixels, mask) for p, mask in zip(pictures, masks, strict=True)]


class _Stack:
    """Reads the frames of a stack one at a time, made comparable, and keeps the files' metadata."""

    def __init__(self, inputs: Sequence[str], remark):
        self.inputs, self.remark = list(inputs), remark
        self.alpha: np.ndarray | None = None
        self.icc: bytes | None = None
        self.exif: bytes | None = None
        self.format = ""  # until a frame says
        self.white_balance: tuple[float, ...] | None = None
        self.shape: tuple[int, int] | None = None
        self.coloured = False
        self._said: set[str] = set()

    def read(self, index: int):
        """Return the samples of a frame, in the profile of the first frame in colour and clipped to [0, 1]."""
        from ffmef.imaging import metadata

        name = self.inputs[index]
        picture = _read(name, white_balance=self.white_balance)
        for line in picture.remarks:
            self._say(f"{name}: {line}")
        self.white_balance = self.white_balance or picture.white_balance
        if self.shape is not None and picture.pixels.shape[:2] != self.shape:
            sizes = [f"{shape[1]} x {shape[0]}" for shape in (self.shape, picture.pixels.shape)]
            raise InputError(
                f"{name} must have the size of {self.inputs[0]}, {sizes[0]} (width x height), got {sizes[1]}"
            )
        pixels = picture.pixels
        if self.coloured and pixels.ndim == 3 and picture.icc != self.icc:
            try:
                pixels = metadata.convert_profile(pixels, picture.icc, self.icc)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
            self._say(f"{name}: colours converted to the profile of the first frame in colour")
        self.note(picture)
        if pixels.dtype.kind == "f":
            pixels = self._clipped(pixels, name)
        return pixels

    def _clipped(self, pixels, name: str):
        if not np.isfinite(pixels[pixels != np.inf]).all():
            raise InputError(f"{name}: samples must be numbers, got NaN or minus infinity")
        if pixels.min() < 0 or pixels.max() > 1:
            self._say(f"{name}: samples beyond 0 to 1 (black to white) are clipped: --stretch scales them")
            pixels = np.clip(pixels, 0, 1)
        return pixels

    def _say(self, line: str) -> None:
        if line not in self._said:  # every frame is read twice
            self._said.add(line)
            self.remark(line)

    def note(self, picture) -> None:
        """Keep a picture's alpha, profile and EXIF data if they are the first."""
        from ffmef.imaging import io

        self.shape = self.shape or picture.pixels.shape[:2]
        if picture.pixels.ndim == 3 and not self.coloured:
            self.coloured, self.icc = True, picture.icc
        elif self.icc is None and not self.coloured:
            self.icc = picture.icc
        self.exif = self.exif or picture.exif
        self.format = self.format or picture.format
        if picture.alpha is not None:
            if self.alpha is None:
                self.alpha = picture.alpha.copy()
            else:
                deeper = max(self.alpha.dtype, picture.alpha.dtype, key=lambda d: (d.kind == "f", d.itemsize))
                self.alpha = np.minimum(io.to_depth(self.alpha, deeper), io.to_depth(picture.alpha, deeper))


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
    moved, lines = align.align_pictures(pictures, names, reference, options.crop, fill=options.task == "mff")
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
