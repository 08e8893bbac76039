"""Checkpoints that survive a kill at any moment: written beside their name, flushed to disk, then renamed."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from ffmef.errors import InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that its name always holds a complete one, the old or the new.

    Raises:
        InputError: it cannot be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run; see :func:`write_atomically`."""
    # Through memory: torch's own writer turns a full disk into an error about the archive.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Read a state written by :func:`save`; only tensors and plain values are read, no code is run.

    Raises:
        InputError: the file is missing, damaged or no checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, nothing to resume") from None
    except Exception as error:  # torch.load raises almost anything on a damaged file
        raise InputError(f"{path}: damaged or no checkpoint: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(state, dict) or "step" not in state:
        raise InputError(f"{path}: no checkpoint of a training run")
    return state
