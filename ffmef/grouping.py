"""Which files of a folder are one bracket: by EXIF, by a fixed count, or by their names."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from ffmef.errors import InputError, counted
from ffmef.imaging import formats
from ffmef.imaging.paths import natural

GAP = 3.0  # seconds between the end of one frame and the start of the next of its bracket
FUSED = "_fused"  # ends the names of results, which never count as frames
LEAST_STEP = 0.4  # stops between exposures of a bracket; metering varies by less within a burst
_HEADER = 1 << 18  # bytes that hold the EXIF block of a raw file
_CARD_FOLDER = re.compile(r"\d{3}\w{5}")  # as cameras name them: 100CANON
_SYSTEM_FOLDERS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found")
_COUNTED = re.compile(r"(.*?)(\d{3,})")  # names that end in a camera's counter
_COPIED = re.compile(r"(.*?)(\d{3,})((?:\D+\d{1,2})?\D*)")  # the same, or with more behind it: IMG_0042 (1)
_MISSING = 10  # most by which a counter goes on: deleted frames leave gaps
# Which of a picture's files holds most, by extension, best first; () stands for all others.
_DEEPEST = ((".exr",), (".tif", ".tiff"), (".png",), (".heic", ".heif", ".hif", ".avif", ".jxl"), (), (".jpg", ".jpeg"))


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
    """What EXIF says about how a frame was taken; ``exposure`` is None if it does not say.

    ``time`` is in seconds by the camera's clock, ``zone`` how far that is ahead of UTC, None if EXIF does not say.
    """

    camera: tuple
    size: tuple | None
    time: float | None
    duration: float
    exposure: tuple | None
    zone: float | None = None

    @property
    def moment(self) -> float:
        """The time of a frame that has one: others are never compared."""
        assert self.time is not None
        return self.time


def find(
    folders: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    count: int | None = None,
    pattern: str | None = None,
    gap: float = GAP,
    task: str = "mef",
) -> Plan:
    """Return the brackets in folders and their sub-folders.

    By EXIF (the default), a bracket is frames of one camera and size that follow each other within ``gap`` seconds and
    have different exposures: a repeated exposure begins the next bracket. A focus stack (``task="mff"``) is frames of
    one exposure: another exposure begins the next stack. Of files that differ only in their extension, such as a raw
    file and its JPEG, one is used.

    Args:
        folders: where to look; results of earlier runs (``*_fused``, the output folder) are left out.
        output: the folder of the results.
        count: frames per bracket, taken in the order of their names.
        pattern: regular expression searched in names without extension; files whose first group (or whole match) is
            the same are one bracket.
        gap: in seconds.
        task: mef or mff.

    Raises:
        InputError: a path is no folder, or the arguments cannot be used.
    """
    if count is not None and pattern is not None:
        raise InputError("--count and --pattern must not be given together")
    if count is not None and count < 2:
        raise InputError(f"--count must be at least 2, got {count}")
    try:
        expression = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise InputError(f"--pattern must be a regular expression, got {pattern!r}: {error}") from None
    plan, out = Plan(), Path(os.path.realpath(output))
    taken: dict = {}
    visited: set[Path] = set()
    places = [Path(folder) for folder in folders]
    for folder in places:
        if not folder.is_dir():
            raise InputError(f"FOLDER must be a folder, got {folder}")
    for folder, prefix in zip(places, _prefixes(places), strict=True):
        for files in _files(folder, out, visited, plan, by_exif=count is None and expression is None):
            part = Plan()
            if count is not None:
                _by_count(files, count, part)
            elif expression is not None:
                _by_name(files, expression, part)
            else:
                _by_exif(files, gap, part, task)
            for group in part.groups:
                name = str(prefix / group.frames[0].parent.relative_to(folder) / (group.name + FUSED))
                if name in taken:
                    raise InputError(f"{group.frames[0]} and {taken[name]} would have the same result {name}")
                taken[name] = group.frames[0]
                plan.groups.append(Group(group.frames, name))
            plan.left += part.left
            plan.failures += part.failures
    return plan


def find_pairs(folders: Sequence[str | os.PathLike], output: str | os.PathLike) -> Plan:
    """Return the pairs of an infrared and a visible picture in folders, infrared first, in the layouts of evaluation.

    Names or folders say which is infrared (``VI/ IR/``, ``NAME_VI NAME_IR``, ...; B of A and B); it is never guessed.

    Args:
        folders: where to look, one data set each; or tables (CSV) of the files.
        output: the folder of the results, which is left out.

    Raises:
        InputError: a folder holds no pairs, or several sets of them.
    """
    from ffmef.evaluation import dataset

    plan, out = Plan(), Path(os.path.realpath(output))
    places = [Path(folder) for folder in folders]
    for folder, prefix in zip(places, _prefixes(places), strict=True):
        try:
            found = dataset.find_pairs(folder)
        except InputError as error:
            raise InputError(str(error).replace("DATASET", "FOLDER", 1)) from None
        if found.guessed:
            raise InputError(
                f"FOLDER must say which pictures are infrared (VI/ and IR/, or NAME_VI and NAME_IR): the names of "
                f"{', '.join(found.guessed[:6])} in {folder} do not"
            )
        for pair in found.pairs:
            if pair.more:
                plan.failures.append((pair.name, f"must be two pictures, got {len(pair.frames)}"))
            else:
                plan.groups.append(Group((pair.b, pair.a), str(prefix / (pair.name + FUSED))))
        plan.failures += [(f.pair, f.reason) for f in found.failures if (folder / f.pair).resolve() != out]
        plan.left += [(str(folder), remark) for remark in found.remarks]
    names = Counter(group.name for group in plan.groups)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise InputError(f"FOLDER must name each pair once, two would have the result {twice}")
    return plan


def _prefixes(folders: list[Path]) -> list[Path]:
    """Return where the results of each folder go: under its name, or more of its path if names are equal."""
    if len(folders) == 1:
        return [Path()]
    real = list(dict.fromkeys(folder.resolve() for folder in folders))
    if len({path.name for path in real}) == len(real):
        return [Path(folder.resolve().name) for folder in folders]
    common = os.path.commonpath(real)
    return [folder.resolve().relative_to(common) for folder in folders]


def _files(folder: Path, out: Path, visited: set[Path], plan: Plan, by_exif: bool):
    """Yield the pictures of each folder that was not visited before, in the order in which they were taken.

    Consecutive folders of one card (100CANON, 101CANON) count as one for EXIF: brackets may continue across them.
    """
    known = {*formats.FORMATS, *formats.READ_ONLY, *formats.RAW}
    card: list[Path] = []  # the frames of such folders so far
    beside: Path | None = None

    def lost(error: OSError) -> None:
        plan.failures.append((str(error.filename), f"cannot be read: {error.strerror}"))

    for root, folders, names in os.walk(folder, onerror=lost):
        place = Path(root)
        own = [name for name in folders if not name.startswith(".") and name not in _SYSTEM_FOLDERS]
        inside = [name for name in own if (place / name).resolve() != out]
        folders[:] = sorted(inside, key=natural)
        if place.resolve() in visited or (place.resolve() == out and place != folder):
            continue
        visited.add(place.resolve())
        pictures = [
            place / name
            for name in names
            if Path(name).suffix.lower() in known and not name.startswith(".") and not Path(name).stem.endswith(FUSED)
        ]
        pictures = _as_counted(_regular(pictures, plan))
        if not by_exif:
            pictures = _one_of_each(pictures, _is_picture, plan)
        if card and (not _CARD_FOLDER.fullmatch(place.name) or place.parent != beside):
            yield card
            card = []
        if by_exif and _CARD_FOLDER.fullmatch(place.name):
            card, beside = card + pictures, place.parent
        elif pictures:
            yield pictures
    if card:
        yield card


def _regular(pictures: list[Path], plan: Plan) -> list[Path]:
    """Return the pictures that are regular files: reading a pipe would wait for ever."""
    files = []
    for picture in pictures:
        if picture.is_file():
            files.append(picture)
        else:
            plan.failures.append((str(picture), "no regular file, or a link to nowhere"))
    return files


def _as_counted(pictures: list[Path]) -> list[Path]:
    """Return pictures in natural order, except that after a camera's counter wraps, its low numbers come last."""
    ordered = sorted(pictures, key=lambda picture: natural(picture.name))
    families: dict[tuple, list[tuple[int, int]]] = {}
    for index, picture in enumerate(ordered):
        found = _COUNTED.fullmatch(picture.stem)
        if found:
            families.setdefault((found[1], len(found[2])), []).append((index, int(found[2])))
    for (_, digits), family in families.items():
        places, numbers = zip(*family, strict=True)
        members = [ordered[index] for index in places]
        if numbers[0] > 1 or numbers[-1] != 10**digits - 1:
            continue
        gaps = [after - before for before, after in itertools.pairwise(numbers)]
        if max(gaps, default=0) > 1:
            start = gaps.index(max(gaps)) + 1
            for index, member in zip(places, members[start:] + members[:start], strict=True):
                ordered[index] = member
    return ordered


def _one_of_each(pictures: list[Path], usable: Callable[[Path], bool], plan: Plan) -> list[Path]:
    """Return one of the usable files that share a name but for the extension: the raw file or the deepest."""
    develops = importlib.util.find_spec("rawpy") is not None

    def rank(picture: Path) -> tuple[bool, int]:
        suffix = picture.suffix.lower()
        if suffix in formats.RAW:
            place = -1 if develops else len(_DEEPEST)
        else:
            place = next((place for place, suffixes in enumerate(_DEEPEST) if suffix in suffixes), len(_DEEPEST) - 2)
        return not usable(picture), place

    counts = Counter(picture.stem for picture in pictures)
    best: dict[str, Path] = {}
    for picture in pictures:
        if counts[picture.stem] > 1:
            best[picture.stem] = min(best.get(picture.stem, picture), picture, key=rank)
    plan.left += [
        (str(picture), f"{best[picture.stem].name} of the same name is used")
        for picture in pictures
        if best.get(picture.stem, picture) != picture
    ]
    return [picture for picture in pictures if best.get(picture.stem, picture) == picture]


def _is_picture(file: Path) -> bool:
    try:
        with open(file, "rb") as opened:
            return formats.recognise(opened.read(64)) is not None
    except OSError:
        return False


def _by_count(files: list[Path], count: int, plan: Plan) -> None:
    for start in range(0, len(files), count):
        frames = files[start : start + count]
        if len(frames) < count:
            why = f"left over: {counted(len(files), 'file')}, no multiple of {count}"
            plan.failures += [(str(frame), why) for frame in frames]
        else:
            plan.groups.append(Group(tuple(frames), frames[0].stem))


def _by_name(files: list[Path], expression: re.Pattern, plan: Plan) -> None:
    scenes: dict[str, list[Path]] = {}
    for file in files:
        found = expression.search(file.stem)
        if found is None:
            plan.left.append((str(file), "its name does not match the pattern"))
            continue
        scenes.setdefault((found.group(1 if expression.groups else 0) or "").strip(), []).append(file)
    for scene, frames in scenes.items():
        if len(frames) < 2:
            plan.left.append((str(frames[0]), "a single frame"))
        else:
            plan.groups.append(Group(tuple(frames), scene or frames[0].stem))


def _by_exif(files: list[Path], gap: float, plan: Plan, task: str) -> None:
    everything, captures, damaged = files, {}, []
    for file in files:
        try:
            captures[file] = read_capture(file)
        except InputError as error:
            plan.failures.append((str(file), str(error).removeprefix(f"{file}: ")))
            damaged.append(file)
    sound = [file for file in files if file in captures]
    files = _one_of_each(sound, lambda file: captures[file].time is not None, plan)
    replaced = {file.with_suffix("") for file in files}
    damaged = [file for file in damaged if file.with_suffix("") not in replaced]
    for file in files:
        if captures[file].time is None:
            plan.failures.append((str(file), "no capture time in its EXIF: group by --count or --pattern"))
    captures = _in_one_zone({file: captures[file] for file in files if captures[file].time is not None})
    place = {file: index for index, file in enumerate(everything)}
    cameras: dict[tuple, list[Path]] = {}
    for file in sorted(
        captures, key=lambda f: (captures[f].camera, captures[f].size or (), captures[f].time, place[f])
    ):
        cameras.setdefault((captures[file].camera, captures[file].size), []).append(file)
    groups = [group for frames in cameras.values() for group in _brackets_of(frames, captures, gap, task)]
    lacking = _lacking(groups, damaged, place)
    for number, frames in enumerate(groups):
        if number in lacking:
            why = f"its bracket lacks {lacking[number].name}, which cannot be read"
            plan.failures += [(str(frame), why) for frame in frames]
        elif len(frames) == 1:
            around = [captures[other[0]] for other in groups[max(0, number - 1) : number + 2] if other is not frames]
            burst = any(_repeats(captures[frames[0]], other, gap) for other in around)
            plan.left.append((str(frames[0]), "one of a burst of equal exposures" if burst else "a single frame"))
        else:
            plan.groups.append(Group(tuple(frames), frames[0].stem))


def _in_one_zone(captures: dict[Path, Capture]) -> dict[Path, Capture]:
    """Return the captures with their times in UTC, for cameras that always say how far their clock is ahead of it."""
    local = {capture.camera for capture in captures.values() if capture.zone is None}
    return {
        file: capture if capture.camera in local else replace(capture, time=capture.moment - (capture.zone or 0.0))
        for file, capture in captures.items()
    }


def _brackets_of(files: list[Path], captures: dict[Path, Capture], gap: float, task: str) -> list[list[Path]]:
    """Return the brackets, and single frames, in the frames of one camera, given by time.

    Two cameras of one model may say the same of themselves. Their names then differ beside the counter, which counts
    if fewer frames are left alone with it; or their counters take turns, which one camera's never does. But people
    may number exposures so (101, 201, 301, 102, ...): then most frames would be left alone.
    """

    def grouped(frames: list[Path]) -> list[list[Path]]:
        groups: list[list[Path]] = []
        for file in frames:
            if groups and _continues([captures[frame] for frame in groups[-1]], captures[file], gap, task):
                groups[-1].append(file)
            else:
                groups.append([file])
        return groups

    def apart(kinds: list[list[Path]]) -> list[list[Path]]:
        return [group for frames in kinds for group in grouped(frames)]

    def alone(groups: list[list[Path]]) -> int:
        return sum(len(group) == 1 for group in groups)

    families: dict[tuple, list[Path]] = {}
    for file in files:
        families.setdefault(_family(file), []).append(file)
    best = min(grouped(files), apart(list(families.values())), key=alone)
    runs, turns = _runs(files)
    by_runs = apart(runs)
    sure = turns and len(files) >= 2 * len(runs) and len(files) >= 2 * alone(by_runs)
    return by_runs if sure else best


def _family(file: Path) -> tuple[str, int, str]:
    """Return what a file's name says beside the camera's counter: before it, its digits, and behind it."""
    found = _COPIED.fullmatch(file.stem)
    return (found[1], len(found[2]), found[3]) if found else ("", 0, "")


def _runs(files: list[Path]) -> tuple[list[list[Path]], bool]:
    """Return frames, given by time, in runs of a counter, and whether two runs of one family took turns."""
    runs: dict[tuple, list[tuple[int, list[Path]]]] = {}  # the latest of each family, with their last number
    everything: list[list[Path]] = []
    turns = False
    for file in files:
        family, found = _family(file), _COPIED.fullmatch(file.stem)
        number = int(found[2]) if found else 0
        own = runs.setdefault(family, [])
        steps = [((number - last) % 10 ** family[1], -place) for place, (last, _) in enumerate(own) if last != number]
        step, place = min(steps, default=(0, 0))
        if 1 <= step <= _MISSING and found:
            turns |= -place < len(own) - 1
            run = own.pop(-place)[1]
        else:
            run = []
            everything.append(run)
        run.append(file)
        own[:] = [*own[-7:], (number, run)]
    return everything, turns


def _continues(bracket: list[Capture], frame: Capture, gap: float, task: str) -> bool:
    """Return whether a frame belongs to the bracket, or stack, before it."""
    last = bracket[-1]
    if (frame.camera, frame.size) != (last.camera, last.size) or frame.moment > last.moment + last.duration + gap:
        return False
    if frame.exposure is None:
        return True
    repeated = [_same_exposure(frame, other) for other in bracket]
    return all(repeated) if task == "mff" else not any(repeated)


def _same_exposure(frame: Capture, other: Capture) -> bool:
    """Return whether two frames have the same exposure, by their settings and apart from metering."""
    if frame.exposure is None or other.exposure is None or frame.exposure[-1] != other.exposure[-1]:
        return frame.exposure == other.exposure
    level, reference = _stops(frame.exposure), _stops(other.exposure)
    if level is None or reference is None:
        return frame.exposure == other.exposure
    return abs(level - reference) < LEAST_STEP


def _stops(exposure: tuple) -> float | None:
    """Return in stops how bright shutter, aperture and ISO make a frame; None without a shutter time."""
    seconds, aperture, sensitivity, _ = exposure
    if not seconds or seconds < 0:
        return None
    return math.log2(seconds * (sensitivity or 100) / (aperture or 1) ** 2)


def _repeats(frame: Capture, other: Capture, gap: float) -> bool:
    """Return whether two frames belong to one burst, in which only the time differs."""
    alike = (frame.camera, frame.size) == (other.camera, other.size) and _same_exposure(frame, other)
    return alike and abs(frame.moment - other.moment) <= gap + max(frame.duration, other.duration)


def _lacking(groups: list[list[Path]], damaged: list[Path], place: dict[Path, int]) -> dict[int, Path]:
    """Return, by number, the brackets that seem to lack a damaged file.

    The file lies between two frames of the bracket, or beside a bracket that is shorter than the brackets far from
    damaged files; without any such brackets, nothing tells that the bracket is complete.
    """
    beside: dict[int, Path] = {}
    between: dict[int, Path] = {}
    for number, frames in enumerate(groups):
        first, last = min(place[frame] for frame in frames), max(place[frame] for frame in frames)
        for file in damaged:
            if first < place[file] < last and last - first <= len(frames) + len(damaged):
                between[number] = file
            elif any(abs(place[file] - place[frame]) == 1 for frame in frames):
                beside[number] = file
    complete = [len(group) for number, group in enumerate(groups) if len(group) > 1 and number not in beside | between]
    usual = max(Counter(complete).items(), key=lambda entry: (entry[1], entry[0]))[0] if complete else None
    return {
        **{number: file for number, file in beside.items() if usual is None or len(groups[number]) < usual},
        **between,
    }


# EXIF


def read_capture(path: Path) -> Capture:
    """Return what a file's EXIF says about how it was taken; only its header is read.

    Raises:
        InputError: the file is no picture, or its header is damaged.
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
        with contextlib.ExitStack() as opened:  # directories of a TIFF are read on first use
            if kind in formats.RAW_KINDS or (kind == "TIFF" and path.suffix.lower() in formats.RAW):
                exif, details = _raw_exif(start, path, opened)
                size = None
            elif kind == "EXR":
                exif, details, size = Image.Exif(), {}, None
            else:
                image = opened.enter_context(open_lazily(path, kind))
                exif, size = image.getexif(), tuple(sorted(image.size))
                if kind == "PNG" and not exif:
                    image.load()  # its EXIF may come after the pixels
                    exif = image.getexif()
                details = exif.get_ifd(34665)
    except InputError:
        raise
    except Exception as error:  # decoders of damaged files raise almost anything
        raise InputError(f"{path}: damaged or not supported: {' '.join(str(error).split())}") from None
    moments = [_seconds(text, details.get(37521)) for text in (details.get(36867), details.get(36868), exif.get(306))]
    moment = next((moment for moment in moments if moment is not None), None)
    settings = tuple(_number(details.get(tag)) for tag in (33434, 33437, 34855, 37380))  # time, aperture, ISO, bias
    # Make, model, serial number, owner, lens and its serial number: two cameras of one model may write no number.
    facts = exif.get(271), exif.get(272), *map(details.get, (42033, 42032, 42036, 42037))
    camera = tuple(str(value).strip("\0 ") for value in facts)
    exposure = None if all(value is None for value in settings) else settings
    return Capture(camera, size, moment, settings[0] or 0.0, exposure, _zone(details.get(36881) or details.get(36880)))


def _raw_exif(start: bytes, path: Path, opened: contextlib.ExitStack):
    """Return the tags of a raw file's first directory, and those of its EXIF directory."""
    from PIL import Image

    exif = Image.Exif()
    inside = start.find(b"Exif\0\0")
    if start[:4] in (b"II*\0", b"MM\0*"):
        exif.load_from_fp(opened.enter_context(path.open("rb")))
    elif start[:2] in (b"II", b"MM"):  # a TIFF inside, with another magic number
        magic = b"II*\0" if start[:2] == b"II" else b"MM\0*"
        exif.load_from_fp(io.BytesIO(magic + path.read_bytes()[4:]))
    elif inside >= 0:  # RAF: in the preview before the sensor's samples
        exif.load(start[inside:])
    elif b"CMT1" in start:  # CR3: a box for each directory
        boxes = [start.find(name) for name in (b"CMT1", b"CMT2")]
        details = Image.Exif()
        for target, box in zip((exif, details), boxes, strict=True):
            if box >= 0:
                target.load_from_fp(io.BytesIO(start[box + 4 : box - 4 + int.from_bytes(start[box - 4 : box], "big")]))
        return exif, dict(details)
    return exif, exif.get_ifd(34665)


def _number(value) -> float | None:
    value = value[0] if isinstance(value, tuple) and value else value
    try:
        number = round(float(value), 6)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _seconds(text, fraction) -> float | None:
    try:
        moment = datetime.strptime(str(text).strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    digits = str(fraction or "").strip("\0 ")
    return (moment - datetime(1970, 1, 1)).total_seconds() + (float(f"0.{digits}") if digits.isdecimal() else 0.0)


def _zone(text) -> float | None:
    """Return a time zone such as +02:00 in seconds."""
    found = re.fullmatch(r"([+-])(\d\d):(\d\d)", str(text or "").strip("\0 "))
    return None if found is None else float(found[1] + "60") * (60 * int(found[2]) + int(found[3]))
