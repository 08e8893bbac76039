"""Where weight files lie, found without loading torch."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

from ffmef.errors import InputError
from ffmef.models.registry import RENAMED_WEIGHTS

FOLDER = Path(__file__).resolve().parent / "weights"


def available() -> list[str]:
    """Return the names of the weights that come with the package.

    Example:
        >>> "mef" in available()
        True
    """
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find(name_or_path: str | Path) -> Path:
    """Return the file of a bundled name or a path, or raise InputError; a file in the working folder hides a name.

    Example:
        >>> find("mef").name
        'mef.safetensors'
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(f"weights must be a name or the path of a file, got {type(name_or_path).__name__}")
    path = _path(os.fspath(name_or_path))
    if os.path.isfile(path):
        return path
    if path.name == str(name_or_path):
        bundled = _path(f"{FOLDER}{os.sep}{_current_name(path.name)}.safetensors")
        if os.path.isfile(bundled):
            return bundled
    if os.path.isdir(path):
        raise InputError(f"weights must be a name or a file, got the folder {path}")
    known = ", ".join(available()) or "(none bundled)"
    raise InputError(f"weights must be a file or one of {known}, got {printable(name_or_path, 200)}")


@functools.lru_cache(maxsize=64)
def _path(text: str) -> Path:
    """Return the path of this text; one that is kept need not be split, joined and hashed again in every call."""
    return Path(text)


def _current_name(name: str) -> str:
    """Return the name of bundled weights, with an old name replaced by the current one."""
    new = RENAMED_WEIGHTS.get(name)
    if new is None or (FOLDER / f"{name}.safetensors").is_file() or not (FOLDER / f"{new}.safetensors").is_file():
        return name
    warnings.warn(f"the weights {name!r} are now called {new!r}", DeprecationWarning, stacklevel=3)
    return new


def printable(text: object, most: int = 80) -> str:
    """Return text from a file as part of one line.

    Example:
        >>> printable("two\\nlines")
        'two\\\\nlines'
    """
    line = repr(str(text))[1:-1]
    return line if len(line) <= most else f"{line[:most]} ..."


def facts(path: Path) -> dict[str, str]:
    """Return the facts in a safetensors file's header; none for other files.

    Example:
        >>> facts(find("vif"))["glare"]
        'room'
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            return file.metadata() or {}
    except Exception:  # whatever damaged bytes lead to; loading the model then says why
        return {}


def stamp(path: Path) -> tuple:
    """Return a value that changes when a file does, or raise InputError if the file cannot be read.

    Example:
        >>> stamp(find("mef")) == stamp(find("mef"))
        True
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino
