"""Finds the pairs of a benchmark folder and the fused pictures of several methods."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ffmef.errors import InputError
from ffmef.imaging.io import FORMATS

SUFFIXES = (("A", "B"), ("VI", "IR"))  # in the order in which the toolkits pass them


@dataclass(frozen=True)
class Pair:
    """Two sources of one scene, in the toolkits' order (infrared-visible: visible first)."""

    name: str
    a: Path
    b: Path


@dataclass(frozen=True)
class Failure:
    """What could not be scored and why; ``method`` is empty where a pair itself is broken."""

    pair: str
    method: str
    reason: str


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in FORMATS and not path.name.startswith(".")
    )


def find_pairs(dataset: Path) -> tuple[list[Pair], list[Failure]]:
    """Return the pairs NAME/NAME_A.ext, NAME/NAME_B.ext (or _VI and _IR) below a folder, sorted by name.

    Raises:
        InputError: for a path that is no folder, or a folder without any pair.
    """
    if not dataset.is_dir():
        raise InputError(f"DATASET must be a folder of NAME/NAME_A.ext and NAME/NAME_B.ext, got {dataset}")
    pairs, failures = [], []
    for folder in sorted(path for path in dataset.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = {path: path.stem.removeprefix(f"{folder.name}_") for path in _pictures(folder)}
        members = {
            suffixes: [[path for path, suffix in found.items() if suffix == wanted] for wanted in suffixes]
            for suffixes in SUFFIXES
        }
        suffixes = max(SUFFIXES, key=lambda s: sum(map(bool, members[s])))
        counts = [len(paths) for paths in members[suffixes]]
        if counts == [1, 1]:
            pairs.append(Pair(folder.name, members[suffixes][0][0], members[suffixes][1][0]))
        elif any(counts):
            wrong, count = next((s, c) for s, c in zip(suffixes, counts, strict=True) if c != 1)
            what = "is missing" if count == 0 else f"exists {count} times"
            failures.append(Failure(folder.name, "", f"{folder.name}_{wrong} {what}"))
        elif found:
            failures.append(Failure(folder.name, "", f"no picture named {folder.name}_A or {folder.name}_VI"))
    if not pairs:
        reason = f": {failures[0].pair}: {failures[0].reason}" if failures else ""
        raise InputError(f"DATASET must hold pairs NAME/NAME_A.ext and NAME/NAME_B.ext, none in {dataset}{reason}")
    return pairs, failures


def find_fused(folders: Iterable[Path], pairs: list[Pair]) -> tuple[dict[str, dict[str, Path]], list[Failure]]:
    """Return the fused pictures by method and pair: NAME_METHOD.ext, or NAME.ext of the method named like its folder.

    Pictures of other pairs are passed over. A method that lacks a pair is a failure of that pair.

    Raises:
        InputError: for a path that is no folder, a folder without any picture of these pairs, or two pictures of one
            pair and method.
    """
    methods: dict[str, dict[str, Path]] = {}
    names = sorted((pair.name for pair in pairs), key=len, reverse=True)
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--fused must be a folder of fused pictures, got {folder}")
        count = 0
        for path in _pictures(folder):
            for name in names:
                if path.stem == name:
                    method = folder.resolve().name
                elif path.stem.startswith(f"{name}_") and path.stem != f"{name}_":
                    method = path.stem.removeprefix(f"{name}_")
                else:
                    continue
                pictures = methods.setdefault(method, {})
                if name in pictures:
                    raise InputError(f"--fused has two pictures of {name} by {method}: {pictures[name]} and {path}")
                pictures[name] = path
                count += 1
                break
        if not count:
            raise InputError(f"--fused must hold NAME_METHOD.ext or NAME.ext for pairs of DATASET, none in {folder}")
    failures = [
        Failure(pair.name, method, "no fused picture")
        for method, pictures in methods.items()
        for pair in pairs
        if pair.name not in pictures
    ]
    return methods, failures
