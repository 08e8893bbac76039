"""Files that are written whole or not at all, and one line that says why a file could not be read or written."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from ffmef.errors import InputError

_unfinished: set[str] = set()


def write(path: str | os.PathLike, data: bytes | str, *, durable: bool = False) -> None:
    """Write a file so that its name always holds a complete one, the old or the new; text as UTF-8.

    A symbolic link stays a link, and a file that is replaced keeps its permissions. A pipe or device receives the data
    directly, because replacing it would destroy it.

    Args:
        path: the target.
        data: all of it.
        durable: wait until the data is on disk; the file then survives a system crash, too.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/a", "text")
    ...     Path(folder, "a").read_text()
    'text'
    """
    try:
        # Anything but a regular file is written by the given name: /dev/stdout of a pipe has no other.
        stream = os.path.exists(path) and not os.path.isfile(path)
        target = Path(path if stream else os.path.realpath(path))
        _write(target, data.encode() if isinstance(data, str) else data, durable)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise InputError(f"{path}: cannot be written: {reason(error)}") from None


def _write(target: Path, data: bytes, durable: bool) -> None:
    if target.exists() and not target.is_file():
        with open(target, "wb", buffering=0) as stream:
            rest = memoryview(data)
            while rest:
                rest = rest[stream.write(rest) :]
        return
    temporary = target.with_name(f".ffmef-{os.getpid()}-{os.urandom(4).hex()}.tmp")
    _unfinished.add(str(temporary))
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        _unfinished.discard(str(temporary))


def forget_unfinished() -> None:
    """Remove the leftovers of a write in progress, for a process that is about to end at once."""
    for name in list(_unfinished):
        with contextlib.suppress(OSError):
            os.unlink(name)


def remove_leftovers(folder: Path, of_ended_processes: bool = False) -> None:
    """Remove unfinished files that killed processes left in a folder, or only those that no live process may own."""
    for leftover in folder.glob(".ffmef-*-*.tmp"):
        if not (of_ended_processes and _lives(leftover.name.split("-")[1])):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def read_text(path: str | os.PathLike) -> str:
    """Return a file's text, UTF-8 with or without a byte order mark.

    Raises:
        InputError: the file cannot be read or is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Say in a few words why a file could not be read or written.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.png"))
    'No such file or directory'
    """
    return getattr(error, "strerror", None) or str(error)
