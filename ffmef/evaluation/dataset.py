"""Finds the pairs of a benchmark and the fused pictures of several methods."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ffmef.errors import InputError, counted
from ffmef.evaluation import layouts, roles
from ffmef.evaluation.found import Failure, Found, Pair
from ffmef.imaging.io import FORMATS

__all__ = ["Failure", "Found", "Pair", "find_fused", "find_pairs"]

TABLES = (".csv", ".tsv")
NAME_COLUMNS = ("name", "pair", "scene", "id", "index", "no", "")
NO_METHODS = (
    "fused",
    "fusion",
    "fuse",
    "f",
    "result",
    "results",
    "output",
    "out",
)  # NAME_fused.png names no method
SEPARATORS = "_- ."
BRACKETS = "()[]"


def find_pairs(dataset: Path) -> Found:
    """Return the pairs of a folder in one of the layouts of :mod:`ffmef.evaluation.layouts`, or of a table.

    Raises:
        InputError: the path is neither a folder nor a table, or holds no pair; the message lists what was found and
            what was expected.
    """
    if dataset.suffix.lower() in TABLES and not dataset.is_dir():
        return _of_table(dataset)
    if not dataset.is_dir():
        raise InputError(f"DATASET must be a folder or a table (CSV) of pairs: {roles.EXPECTED}; got {dataset}")
    found = layouts.find(dataset)
    if len(found.pairs) == len(found.guessed):
        below = layouts.find_below(dataset)
        if not below and not found.pairs:
            below = layouts.find_below(dataset, guesses=True)
        below = [(path.relative_to(dataset), own) for path, own in below]
        if len(below) > 1:
            counts = ", ".join(f"{path} ({counted(len(own.pairs), 'pair')})" for path, own in below)
            raise InputError(f"DATASET must be one set of pairs, {dataset} holds several: {counts}")
        if below:
            path, found = below[0]
            found.remarks.insert(0, f"The pairs were found in {path}/.")
    if not found.pairs:
        reason = f"; {found.failures[0].pair}: {found.failures[0].reason}" if found.failures else ""
        names = [f"{path.name}/" for path in layouts.folders(dataset)]
        names += [path.name for path in layouts.pictures(dataset)]
        raise InputError(
            f"DATASET must hold pairs: {roles.EXPECTED}; none in {dataset}, which holds "
            f"{layouts.listed(names) or 'no folder and no picture'}{reason}"
        )
    name, count = Counter(pair.name for pair in found.pairs).most_common(1)[0]
    if count > 1:
        raise InputError(f"DATASET must name each pair once, {dataset} holds {count} called {name}")
    return found


def _of_table(path: Path) -> Found:
    """Read a table with one pair per line: columns of sources, fused pictures by method, and perhaps a name."""
    header, rows = _rows(path)
    columns = _source_columns(header)
    if columns is None:
        expected = ", ".join(" and ".join(family.names()) for family in roles.FAMILIES[:4])
        raise InputError(
            f"DATASET {path.name} must have two columns of sources ({expected}), "
            f"found {layouts.listed(header) or 'none'} in its first line"
        )
    name_column = _name_column(header, columns)
    method_columns = [i for i in range(len(header)) if i not in (*columns, name_column)]
    found = Found()
    no_methods = [i for i in method_columns if not any(_is_picture(row[i]) for _, row in rows)]
    if no_methods:
        named = layouts.listed([header[i] or f"number {i + 1}" for i in no_methods])
        found.remarks.append(f"Columns without pictures were not used: {named}.")
        method_columns = [i for i in method_columns if i not in no_methods]
    methods = [header[i] for i in method_columns]
    twice = next((method for method in methods if methods.count(method) > 1), None)
    if twice is not None:
        raise InputError(f"DATASET {path.name} must name each method once, got {twice!r} twice")
    for number, row in rows:
        files = {i: _file(path.parent, row[i]) for i in (*columns, *method_columns) if row[i]}
        frames = [files[i] for i in columns if i in files]
        name = row[name_column] if name_column is not None else (frames[0].stem if frames else "")
        wrong = [header[i] for i in columns[:2] if i not in files]
        if wrong or not name:
            found.failures.append(
                Failure(name or f"line {number}", "", f"line {number} names no {(wrong or ['name'])[0]}")
            )
            continue
        lost = [str(file) for file in frames if not file.is_file()]
        if lost:
            found.failures.append(Failure(name, "", f"line {number}: no file {lost[0]}"))
            continue
        name = " ".join(name.replace("/", "_").split())
        if any(pair.name == name for pair in found.pairs):
            raise InputError(f"DATASET {path.name} must name each pair once, got {name} again in line {number}")
        found.pairs.append(Pair(name, frames[0], frames[1], tuple(frames[2:])))
        for i in method_columns:
            if i in files:
                found.fused.setdefault(header[i], {})[name] = files[i]
    if not found.pairs:
        reason = f": {found.failures[0].reason}" if found.failures else ""
        raise InputError(f"DATASET {path.name} must hold a pair, found none{reason}")
    return found


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the titles of a table's columns, and the number and cells of each further line."""
    try:
        content = path.read_bytes()
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # spreadsheets save "Unicode text" like this
        text = content.decode("utf-16" if wide else "utf-8-sig")
        first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
        unquoted = re.sub(r'"[^"]*"', "", first)
        delimiter = max(",;\t|", key=unquoted.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        read = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except UnicodeDecodeError:
        raise InputError(f"DATASET {path} must be text in UTF-8: save it as such") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"DATASET {path} cannot be read: {error}") from None
    rows = [(number, row) for number, row in read if any(row)]
    while rows and rows[0][1][0].startswith("#"):
        rows.pop(0)
    header = rows.pop(0)[1] if rows else []
    return header, [(number, [*row, *[""] * len(header)][: len(header)]) for number, row in rows]


def _is_picture(cell: str) -> bool:
    return Path(cell).suffix.lower() in FORMATS


def _file(folder: Path, cell: str) -> Path:
    """Return the file that a cell names, absolute or relative to the table's folder, with either slash."""
    path = folder / Path(cell).expanduser()
    other = folder / cell.replace("\\", "/")
    return other if "\\" in cell and other.exists() and not path.exists() else path


def _name_column(header: list[str], sources: list[int]) -> int | None:
    """Return the column of the pairs' names: the first whose title consists of words for a name."""
    for i, title in enumerate(header):
        words = title.casefold().replace("_", " ").split() or [""]
        if i not in sources and all(word in NAME_COLUMNS for word in words):
            return i
    return None


def _source_columns(header: list[str]) -> list[int] | None:
    """Return the columns of the sources in the toolkits' order, or None if no two belong together."""
    for family in roles.FAMILIES:
        numbers = {i: roles.of_column(title, family) for i, title in enumerate(header)}
        by_role = {role: i for i, role in reversed(numbers.items()) if role is not None}
        if 0 in by_role and 1 in by_role:
            count = next(number for number in range(len(by_role) + 1) if number not in by_role)
            return [by_role[role] for role in range(count)]  # a column M beside A and B is a method
    return None


def find_fused(
    folders: Iterable[Path], pairs: list[Pair], named: dict[str, dict[str, Path]] | None = None
) -> tuple[dict[str, dict[str, Path]], list[Failure]]:
    """Return the fused pictures by method and pair: NAME_METHOD.ext, or NAME.ext of the method named like its folder.

    A folder that holds only folders holds one per method. NAME may be the name of a source; NAME_fused.ext names no
    method; METHOD_NAME.ext is understood if nothing else fits. Case, leading zeros of numbers and the form of accents
    do not matter as long as one choice is left. Pictures of other pairs are ignored. A pair that a method lacks counts
    as a failure.

    Args:
        folders: where to look.
        pairs: the pairs to look for.
        named: pictures already known, by method and pair, such as those that a table names.

    Raises:
        InputError: a path is no folder, a folder holds no picture of these pairs, or two pictures belong to one pair
            and method.
    """
    methods: dict[str, dict[str, Path]] = {method: dict(pictures) for method, pictures in (named or {}).items()}
    names = _Names(pairs)
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--fused must be a folder of fused pictures, got {folder}")
        count = 0
        held: list[Path] = []
        for holder, own in _holders(folder):
            held += own
            for path, name, method in names.of_all(own, holder.resolve().name):
                pictures = methods.setdefault(method, {})
                if name in pictures:
                    raise InputError(f"--fused has two pictures of {name} by {method}: {pictures[name]} and {path}")
                pictures[name] = path
                count += 1
        if not count:
            wanted, there = layouts.listed(names.longest), layouts.listed([path.name for path in held])
            raise InputError(
                f"--fused must hold NAME_METHOD.ext or NAME.ext for pairs of DATASET ({wanted}), none in {folder}, "
                f"which holds {there or 'no picture'}"
            )
    lost = [(name, method) for method, files in methods.items() for name, file in files.items() if not file.is_file()]
    failures = [Failure(name, method, f"no file {methods[method].pop(name)}") for name, method in lost]
    failures += [
        Failure(pair.name, method, "no fused picture")
        for method, pictures in methods.items()
        for pair in pairs
        if pair.name not in pictures and (pair.name, method) not in lost
    ]
    return methods, failures


def _holders(folder: Path) -> list[tuple[Path, list[Path]]]:
    """Return the folder of each method with its pictures: the folder itself, or its subfolders."""
    own = layouts.pictures(folder)
    if own:
        return [(folder, own)]
    return [(path, layouts.pictures(path, deep=True)) for path in layouts.folders(folder)]


class _Names:
    """What fused pictures may be called."""

    def __init__(self, pairs: list[Pair]):
        self.longest = sorted((pair.name for pair in pairs), key=len, reverse=True)
        self._spellings = [_unique(((name, name) for name in self.longest), fold) for fold in _FOLDS]
        self._sources = _unique(((path.stem, pair.name) for pair in pairs for path in pair.frames), roles.folded)

    def of_all(self, pictures: list[Path], folder: str) -> list[tuple[Path, str, str]]:
        """Return the pictures of a folder that belong to pairs, each with its pair and method."""
        for read in (self._named, self._named_behind):
            found = [(path, *read(path.stem, folder)) for path in pictures]
            found = [entry for entry in found if entry[1]]
            if found:
                return found
        return []

    def _named(self, stem: str, folder: str) -> tuple[str, str]:
        """Read NAME or NAME_METHOD."""
        for known, fold in zip(self._spellings, _FOLDS, strict=True):
            name = known.get(fold(stem))
            if name:
                return name, folder
        name = self._sources.get(roles.folded(stem))
        if name:
            return name, folder
        places = [place for place in range(len(stem) - 2, 0, -1) if stem[place] in SEPARATORS]
        for known, fold in zip(self._spellings, _FOLDS, strict=True):
            for place in places:
                name = known.get(fold(stem[:place]))
                if name:
                    method = stem[place + 1 :]
                    return name, folder if method.strip(SEPARATORS + BRACKETS).casefold() in NO_METHODS else method
        return "", ""

    def _named_behind(self, stem: str, folder: str) -> tuple[str, str]:
        """Read METHOD_NAME."""
        places = [place for place in range(1, len(stem) - 1) if stem[place] in SEPARATORS]
        for known, fold in zip(self._spellings, _FOLDS, strict=True):
            for place in places:
                name = known.get(fold(stem[place + 1 :]))
                if name:
                    method = stem[:place]
                    return name, folder if method.strip(SEPARATORS + BRACKETS).casefold() in NO_METHODS else method
        return "", ""


def _without_zeros(text: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", roles.folded(text))


_FOLDS: tuple[Callable[[str], str], ...] = (str, roles.folded, _without_zeros)


def _unique(entries: Iterable[tuple[str, str]], fold: Callable[[str], str]) -> dict[str, str]:
    """Return names by their folded form, without those that share one."""
    known: dict[str, str] = {}
    for text, name in entries:
        key = fold(text)
        known[key] = name if known.get(key, name) == name else ""
    return known
