"""Which files of a folder are one bracket: by EXIF, by a fixed count, or by their names."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ffmef.errors import InputError
from ffmef.imaging import formats
from ffmef.imaging.paths import natural

GAP = 3.0  # seconds between the end of one frame and the start of the next of its bracket
FUSED = "_fused"  # ends the names of results, which are never taken for frames
_HEADER = 1 << 18  # bytes that hold the EXIF block of a raw file


@dataclass(frozen=True)
class Group:
    """A bracket: its frames, and the path of its result relative to the output folder, without extension."""

    frames: tuple[Path, ...]
    name: str


@dataclass
class Plan:
    """What is to be fused, what is skipped, and what cannot be used, with the reasons."""

    groups: list[Group] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Capture:
    """What EXIF says about how a frame was taken; ``time`` in seconds, ``exposure`` None where nothing is said."""

    camera: tuple
    size: tuple | None
    time: float | None
    duration: float
    exposure: tuple | None


def find(
    folders: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    count: int | None = None,
    pattern: str | None = None,
    gap: float = GAP,
) -> Plan:
    """Return the brackets in folders and their sub-folders.

    By EXIF (the default), a bracket is frames of one camera and size that follow each other within ``gap`` seconds and
    have different exposures: a repeated one begins the next bracket.

    Args:
        folders: where to look; results of earlier runs (``*_fused``, the output folder) are left out.
        output: the folder of the results.
        count: frames per bracket, taken in the order of their names.
        pattern: regular expression searched in names without extension; files whose first group (or whole match) is
            the same are one bracket.
        gap: in seconds.

    Raises:
        InputError: a folder is none, or the arguments cannot be used.
    """
    if count is not None and pattern is not None:
        raise InputError("--count and --pattern must not be given together")
    if count is not None and count < 2:
        raise InputError(f"--count must be at least 2, got {count}")
    plan, out = Plan(), Path(os.path.realpath(output))
    taken: dict = {}
    try:
        expression = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise InputError(f"--pattern must be a regular expression, got {pattern!r}: {error}") from None
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"FOLDER must be a folder, got {folder}")
        prefix = Path(folder.resolve().name) if len(folders) > 1 else Path()
        for place, files in _files(folder, out):
            part = Plan()
            if count is not None:
                _by_count(files, count, part)
            elif expression is not None:
                _by_name(files, expression, part)
            else:
                _by_exif(files, gap, part)
            for group in part.groups:
                name = str(prefix / place / (group.name + FUSED))
                if name in taken:
                    raise InputError(f"{group.frames[0]} and {taken[name]} would have the same result {name}")
                taken[name] = group.frames[0]
                plan.groups.append(Group(group.frames, name))
            plan.left += part.left
            plan.failures += part.failures
    return plan


def _files(folder: Path, out: Path):
    """Yield (path relative to the folder, its pictures in natural order) of a folder and those below it."""
    known = {*formats.FORMATS, *formats.READ_ONLY, *formats.RAW}
    for root, folders, names in os.walk(folder):
        inside = [name for name in folders if not name.startswith(".") and Path(root, name).resolve() != out]
        folders[:] = sorted(inside, key=natural)
        pictures = [
            Path(root, name)
            for name in sorted(names, key=natural)
            if Path(name).suffix.lower() in known and not name.startswith(".") and not Path(name).stem.endswith(FUSED)
        ]
        if pictures and (Path(root).resolve() != out or Path(root) == folder):
            yield Path(root).relative_to(folder), pictures


def _by_count(files: list[Path], count: int, plan: Plan) -> None:
    for start in range(0, len(files), count):
        frames = files[start : start + count]
        if len(frames) < count:
            plan.failures += [
                (str(frame), f"left over: {len(files)} files are no multiple of {count}") for frame in frames
            ]
        else:
            plan.groups.append(Group(tuple(frames), frames[0].stem))


def _by_name(files: list[Path], expression: re.Pattern, plan: Plan) -> None:
    scenes: dict[str, list[Path]] = {}
    for file in files:
        found = expression.search(file.stem)
        if found is None:
            plan.left.append((str(file), "its name does not match the pattern"))
            continue
        scenes.setdefault(found.group(1 if expression.groups else 0) or "", []).append(file)
    for scene, frames in scenes.items():
        if len(frames) < 2:
            plan.left.append((str(frames[0]), "a single frame"))
        else:
            plan.groups.append(Group(tuple(frames), re.sub(r"[^\w.-]+", "_", scene) or frames[0].stem))


def _by_exif(files: list[Path], gap: float, plan: Plan) -> None:
    captures, damaged = {}, []
    for file in files:
        try:
            captures[file] = read_capture(file)
        except InputError as error:
            plan.failures.append((str(file), str(error).removeprefix(f"{file}: ")))
            damaged.append(file)
    for file, capture in captures.items():
        if capture.time is None:
            plan.failures.append((str(file), "no capture time in its EXIF: group by --count or --pattern"))
    timed = [file for file, capture in captures.items() if capture.time is not None]
    timed.sort(key=lambda file: (captures[file].camera, captures[file].time, natural(file.name)))
    groups: list[list[Path]] = []
    for file in timed:
        if groups and _continues([captures[frame] for frame in groups[-1]], captures[file], gap):
            groups[-1].append(file)
        else:
            groups.append([file])
    usual = Counter(len(frames) for frames in groups if len(frames) > 1).most_common(1)
    for place, frames in enumerate(groups):
        short = usual and len(frames) < usual[0][0]
        beside = [other for other in damaged if short and _beside(other, frames, files)]
        if beside:
            plan.failures += [(str(frame), f"its bracket lacks {beside[0].name}, which is damaged") for frame in frames]
        elif len(frames) == 1:
            around = [captures[other[0]] for other in groups[max(0, place - 1) : place + 2] if other is not frames]
            burst = any(_repeats(captures[frames[0]], other, gap) for other in around)
            plan.left.append((str(frames[0]), "one of a burst of equal exposures" if burst else "a single frame"))
        else:
            plan.groups.append(Group(tuple(frames), frames[0].stem))


def _continues(bracket: list[Capture], frame: Capture, gap: float) -> bool:
    """Return whether a frame belongs to the bracket before it."""
    last = bracket[-1]
    if (frame.camera, frame.size) != (last.camera, last.size) or frame.time > last.time + last.duration + gap:
        return False
    return frame.exposure is None or all(frame.exposure != other.exposure for other in bracket)


def _repeats(frame: Capture, other: Capture, gap: float) -> bool:
    """Return whether two frames are of one burst, in which nothing but the moment differs."""
    alike = (frame.camera, frame.size, frame.exposure) == (other.camera, other.size, other.exposure)
    return alike and abs(frame.time - other.time) <= gap + max(frame.duration, other.duration)


def _beside(damaged: Path, frames: list[Path], files: list[Path]) -> bool:
    place = files.index(damaged)
    return any(frame in files[max(0, place - 1) : place + 2] for frame in frames)


# EXIF


def read_capture(path: Path) -> Capture:
    """Return what a file's EXIF says about how it was taken; only its header is read.

    Raises:
        InputError: it is no picture, or its header is damaged.
    """
    from PIL import Image

    from ffmef.imaging.io import open_lazily

    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    kind = formats.recognise(start)
    if kind is None:
        raise InputError(f"{path}: {'the file is empty' if not start else 'no picture, or its header is damaged'}")
    try:
        if kind in formats.RAW_KINDS or (kind == "TIFF" and path.suffix.lower() in formats.RAW):
            exif, size = _raw_exif(start, path), None
        elif kind == "EXR":
            exif, size = Image.Exif(), None
        else:
            with open_lazily(path, kind) as image:
                exif, size = image.getexif(), tuple(sorted(image.size))
        details = exif.get_ifd(34665)
    except InputError:
        raise
    except Exception as error:  # decoders of damaged files raise almost anything
        raise InputError(f"{path}: damaged or not supported: {' '.join(str(error).split())}") from None
    text = details.get(36867) or details.get(36868) or exif.get(306)
    settings = tuple(_number(details.get(tag)) for tag in (33434, 33437, 34855, 37380))  # time, aperture, ISO, bias
    camera = tuple(str(value).strip("\0 ") for value in (exif.get(271), exif.get(272), details.get(42033)))
    exposure = None if all(value is None for value in settings) else settings
    return Capture(camera, size, _seconds(text, details.get(37521)), settings[0] or 0.0, exposure)


def _raw_exif(start: bytes, path: Path):
    from PIL import Image

    exif = Image.Exif()
    inside = start.find(b"Exif\0\0")
    if start[:2] in (b"II", b"MM"):  # a TIFF inside, of whatever number
        data = path.read_bytes()
        magic = b"II*\0" if data[:2] == b"II" else b"MM\0*"
        exif.load_from_fp(io.BytesIO(magic + data[4:]))
    elif inside >= 0:  # RAF: in the preview before the sensor's samples
        exif.load(start[inside:])
    return exif


def _number(value) -> float | None:
    value = value[0] if isinstance(value, tuple) and value else value
    try:
        return round(float(value), 6)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _seconds(text, fraction) -> float | None:
    try:
        moment = datetime.strptime(str(text).strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    digits = str(fraction or "").strip("\0 ")
    return (moment - datetime(1970, 1, 1)).total_seconds() + (float(f"0.{digits}") if digits.isdecimal() else 0.0)
