"""The files that a command line names: wildcards left by the shell, standard streams, outputs that are inputs."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable

from ffmef.errors import InputError

STANDARD = "-"


def expand(paths: Iterable[str], folders: bool = False) -> list[str]:
    """Return the paths with wildcards (``*``, ``?``, ``[...]``) replaced by what they match, in natural order.

    The path of an existing file is left alone, as is ``-``. Patterns match files, or with ``folders`` folders.

    Raises:
        InputError: a pattern matches nothing, or ``-`` is given twice.
    """
    expanded = []
    for path in paths:
        if path == STANDARD or not glob.has_magic(path) or os.path.lexists(path):
            expanded.append(path)
            continue
        wanted = os.path.isdir if folders else os.path.isfile
        found = sorted((name for name in glob.glob(path) if wanted(name)), key=natural)
        if not found:
            kind = "folder" if folders else "file"
            raise InputError(f"{path}: no such {kind}, nor any that the pattern matches")
        expanded += found
    if expanded.count(STANDARD) > 1:
        raise InputError("- (standard input) must be given at most once")
    return expanded


def natural(name: str) -> list:
    """Return a key that sorts numbers in names by value.

    >>> sorted(["p10.jpg", "p9.jpg"], key=natural)
    ['p9.jpg', 'p10.jpg']
    """
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def refuse_input_as_output(output: str, inputs: Iterable[str]) -> None:
    """Raise if an output is one of the inputs, even through a link or in another spelling.

    Raises:
        InputError: it is; the message names both.
    """
    if output == STANDARD:
        return
    for path in inputs:
        if path == STANDARD:
            continue
        if same_file(output, path):
            raise InputError(f"{output}: must not be one of the inputs: it is {path}, which would be lost")


def same_file(one: str, other: str) -> bool:
    """Return whether two paths mean one file, whether or not it exists."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them does not exist
        return "\0" not in one + other and os.path.realpath(one) == os.path.realpath(other)


def read_standard_input() -> bytes:
    """Return all of standard input.

    Raises:
        InputError: it is a terminal, closed, or empty.
    """
    if sys.stdin is None:
        raise InputError("- (standard input) is closed: a picture must be piped into it")
    if sys.stdin.isatty():
        raise InputError("- (standard input) is a terminal: a picture must be piped into it")
    data = sys.stdin.buffer.read()
    if not data:
        raise InputError("- (standard input) is empty")
    return data


def is_standard_output(path: str) -> bool:
    """Return whether an output is standard output under any name, such as ``-`` or ``/dev/stdout``."""
    if path == STANDARD:
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except (OSError, ValueError):
        return False


def write_standard_output(data: bytes) -> None:
    """Write all of a file to standard output.

    Raises:
        InputError: it is a terminal, or closed.
    """
    if sys.stdout is None:
        raise InputError("- (standard output) is closed: the picture must be piped into a file or program")
    if sys.stdout.isatty():
        raise InputError("- (standard output) is a terminal: the picture must be piped into a file or program")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
