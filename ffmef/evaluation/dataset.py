"""Finds the pairs of a benchmark and the fused pictures of several methods."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ffmef.errors import InputError
from ffmef.evaluation import layouts, roles
from ffmef.evaluation.found import Failure, Found, Pair

__all__ = ["Failure", "Found", "Pair", "find_fused", "find_pairs"]

TABLES = (".csv", ".tsv")
NAME_COLUMNS = ("name", "pair", "scene")


def find_pairs(dataset: Path) -> Found:
    """Return the pairs of a folder in one of the layouts of :mod:`ffmef.evaluation.layouts`, or of a table.

    Raises:
        InputError: for a path that is no folder and no table, and one without any pair; the message lists what was
            found and what was expected.
    """
    if dataset.suffix.lower() in TABLES and not dataset.is_dir():
        return _of_table(dataset)
    if not dataset.is_dir():
        raise InputError(f"DATASET must be a folder or a table (CSV) of pairs: {roles.EXPECTED}; got {dataset}")
    found = layouts.find(dataset)
    if len(found.pairs) == len(found.guessed):
        below = layouts.find_below(dataset)
        if len(below) > 1:
            counts = ", ".join(f"{path.name} ({len(own.pairs)} pairs)" for path, own in below)
            raise InputError(f"DATASET must be one set of pairs, {dataset} holds several: {counts}")
        if below:
            path, found = below[0]
            found.remarks.insert(0, f"The pairs were found in {path.name}/.")
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
    """Read a table with one pair a line: columns of sources, fused pictures by method, and perhaps a name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"DATASET {path} cannot be read: {error}") from None
    first = text.partition("\n")[0]
    rows = list(csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count)))
    rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(rows, 1) if any(map(str.strip, row))]
    header = rows[0][1] if rows else []
    columns = _source_columns(header)
    if columns is None:
        expected = ", ".join(" and ".join(family.names()) for family in roles.FAMILIES[:4])
        raise InputError(
            f"DATASET {path.name} must have two columns of sources ({expected}), "
            f"found {layouts.listed(header) or 'none'}"
        )
    name_column = next((i for i, title in enumerate(header) if title.casefold() in NAME_COLUMNS), None)
    found = Found()
    for number, row in rows[1:]:
        row += [""] * (len(header) - len(row))
        files = {i: (path.parent / cell) for i, cell in enumerate(row[: len(header)]) if cell and i != name_column}
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
        name = name.replace("/", "_")
        if any(pair.name == name for pair in found.pairs):
            raise InputError(f"DATASET {path.name} must name each pair once, got {name} again in line {number}")
        found.pairs.append(Pair(name, frames[0], frames[1], tuple(frames[2:])))
        for i, file in files.items():
            if i not in columns:
                found.fused.setdefault(header[i], {})[name] = file
    if not found.pairs:
        reason = f": {found.failures[0].reason}" if found.failures else ""
        raise InputError(f"DATASET {path.name} must hold a pair, found none{reason}")
    return found


def _source_columns(header: list[str]) -> list[int] | None:
    """Return the columns of the sources in the toolkits' order, or None where no two belong together."""
    for family in roles.FAMILIES:
        numbers = {i: roles.of_folder(title, family) for i, title in enumerate(header)}
        by_role = {role: i for i, role in numbers.items() if role is not None}
        if 0 in by_role and 1 in by_role:
            return [by_role[role] for role in sorted(by_role)]
    return None


def find_fused(
    folders: Iterable[Path], pairs: list[Pair], named: dict[str, dict[str, Path]] | None = None
) -> tuple[dict[str, dict[str, Path]], list[Failure]]:
    """Return the fused pictures by method and pair: NAME_METHOD.ext, or NAME.ext of the method named like its folder.

    Case does not matter where it leaves one choice. Pictures of other pairs are passed over. A method that lacks a
    pair is a failure of that pair.

    Args:
        folders: where to look.
        pairs: those to look for.
        named: pictures that are known already, by method and pair, as a table names them.

    Raises:
        InputError: for a path that is no folder, a folder without any picture of these pairs, or two pictures of one
            pair and method.
    """
    methods: dict[str, dict[str, Path]] = {method: dict(pictures) for method, pictures in (named or {}).items()}
    names = sorted((pair.name for pair in pairs), key=len, reverse=True)
    folded = Counter(name.casefold() for name in names)
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--fused must be a folder of fused pictures, got {folder}")
        own = layouts.pictures(folder)
        count = 0
        for path in own:
            name, method = _method(path.stem, names, folded, folder.resolve().name)
            if name is None:
                continue
            pictures = methods.setdefault(method, {})
            if name in pictures:
                raise InputError(f"--fused has two pictures of {name} by {method}: {pictures[name]} and {path}")
            pictures[name] = path
            count += 1
        if not count:
            raise InputError(
                f"--fused must hold NAME_METHOD.ext or NAME.ext for pairs of DATASET ({layouts.listed(names)}), "
                f"none in {folder}, which holds {layouts.listed([path.name for path in own]) or 'no picture'}"
            )
    failures = [
        Failure(pair.name, method, "no fused picture")
        for method, pictures in methods.items()
        for pair in pairs
        if pair.name not in pictures
    ]
    return methods, failures


def _method(stem: str, names: list[str], folded: Counter[str], folder: str) -> tuple[str | None, str]:
    for fold in (str, str.casefold):
        for name in names:
            if fold is str.casefold and folded[name.casefold()] > 1:
                continue
            if fold(stem) == fold(name):
                return name, folder
            if fold(stem).startswith(f"{fold(name)}_") and len(stem) > len(name) + 1:
                return name, stem[len(name) + 1 :]
    return None, ""
