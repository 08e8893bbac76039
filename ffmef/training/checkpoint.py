"""Checkpoints that survive a kill at any moment: written beside their name, flushed to disk, then renamed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ffmef import files
from ffmef.errors import InputError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run; see :func:`ffmef.files.write`."""
    # Through memory: torch's own writer turns a full disk into an error about the archive.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.remove_leftovers(path.parent)
    files.write(path, buffer.getvalue(), durable=True)


def load(path: Path) -> dict[str, Any]:
    """Read a state written by :func:`save`: tensors and plain values only; no code is run.

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
