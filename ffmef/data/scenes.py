"""Finding the scenes of a data set: pair folders, tables of pairs, and brackets of many exposures."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

from ffmef import files
from ffmef.errors import InputError
from ffmef.imaging.io import FORMATS

log = logging.getLogger(__name__)

HDR_EXTENSIONS = (".hdr", ".exr", ".npy")


def is_picture(path: Path) -> bool:
    """Return whether the extension is that of a readable picture."""
    return path.suffix.lower() in FORMATS and path.is_file()


def find_pairs(folder: str | Path) -> dict[str, list[Path]]:
    """Return the pairs of a folder as ``{name: [A, B]}``, sorted by name.

    Each scene is a subfolder NAME that holds ``NAME_A.*`` and ``NAME_B.*``, or ``A.*`` and ``B.*``, with extensions in
    upper or lower case.

    Raises:
        InputError: the folder does not exist or holds no pair.
    """
    folder = _directory(folder)
    scenes = {}
    for scene in sorted(path for path in folder.iterdir() if path.is_dir()):
        found: dict = {}
        for path in sorted(filter(is_picture, scene.iterdir())):
            match = re.fullmatch(rf"(?:{re.escape(scene.name)}_)?([AB])", path.stem)
            if match:
                found.setdefault(match[1], path)
        if len(found) == 2:
            scenes[scene.name] = [found["A"], found["B"]]
    if not scenes:
        raise InputError(f"{folder}: no scene folder NAME with NAME_A.* and NAME_B.*, or A.* and B.*")
    return scenes


def find_brackets(folder: str | Path) -> dict[str, list[Path]]:
    """Return the brackets of a folder as ``{name: [exposure, ...]}``: each subfolder with two or more pictures.

    Numbers in file names are sorted as numbers. The order does not matter: luminance tells exposures apart.

    Raises:
        InputError: the folder does not exist or holds no bracket.
    """
    folder = _directory(folder)
    scenes = {}
    for scene in sorted(path for path in folder.iterdir() if path.is_dir()):
        pictures = sorted(filter(is_picture, scene.iterdir()), key=_natural)
        if len(pictures) > 1:
            scenes[scene.name] = pictures
    if not scenes:
        raise InputError(f"{folder}: no scene folder with two or more pictures")
    return scenes


def read_table(table: str | Path) -> dict[str, list[Path]]:
    """Return the scenes of a CSV file: one per line, two or more paths in columns, relative to the table's folder.

    Raises:
        InputError: the file cannot be read, is empty, or a line has fewer than two paths.
    """
    table = Path(table)
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [[cell.strip() for cell in row if cell.strip()] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{table}: cannot be read: {files.reason(error)}") from None
    scenes = {}
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        if len(row) < 2:
            raise InputError(f"{table}: line {number} must name two or more pictures, got {len(row)}")
        scenes[f"{number}:{Path(row[0]).stem}"] = [table.parent / cell for cell in row]
    if not scenes:
        raise InputError(f"{table}: no line with two pictures")
    return scenes


def find_photographs(folder: str | Path) -> list[Path]:
    """Return all photographs and radiance maps (.hdr, .exr, .npy) below a folder, sorted by path.

    Raises:
        InputError: the folder does not exist or holds none.
    """
    folder = _directory(folder)
    paths = sorted(p for p in folder.rglob("*") if is_picture(p) or p.suffix.lower() in HDR_EXTENSIONS)
    if not paths:
        raise InputError(f"{folder}: no photograph and no radiance map (.hdr, .exr, .npy)")
    return paths


def find_scenes(place: str | Path) -> dict[str, list[Path]]:
    """Return the scenes of a folder of pairs, of a folder of brackets, or of a CSV table.

    A warning names any folder that holds pictures but is no scene of the kind found, such as one with a single picture.

    Raises:
        InputError: none of the three is there.
    """
    place = Path(place)
    if place.suffix.lower() == ".csv":
        return read_table(place)
    try:
        pairs = find_pairs(place)
    except InputError:
        pairs = {}
    if not pairs and not place.is_dir():
        raise InputError(f"{place}: must be a folder or a .csv table")
    # In a folder of brackets, a scene or two may look like a pair: the reading that finds more scenes is right.
    try:
        brackets = find_brackets(place)
    except InputError:
        raise InputError(f"{place}: neither scene folders with A.* and B.*, nor with two or more pictures") from None
    chosen = pairs if len(pairs) >= len(brackets) else brackets
    rule = "A.* and B.*" if chosen is pairs else "two or more pictures"
    for scene in sorted(path for path in place.iterdir() if path.is_dir() and path.name not in chosen):
        count = sum(map(is_picture, scene.iterdir()))
        if count:
            log.warning(
                "scene %s left out: must have %s, got %d %s",
                scene.name,
                rule,
                count,
                "pictures" if count > 1 else "picture",
            )
    return chosen


def _directory(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return folder


def _natural(path: Path) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
