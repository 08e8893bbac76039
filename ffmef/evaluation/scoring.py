"""Scores one fused picture of one pair, fusing it first where weights are given."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ffmef import files, focus
from ffmef.errors import InputError


@dataclass(frozen=True)
class Task:
    """One fused picture to score.

    ``fused`` is its file, or None to fuse with ``weights``. ``saved`` is where the picture
    that is scored is kept, or None to score ``fused`` as it is. ``key`` changes with any file that decides the scores.
    """

    pair: str
    method: str
    frames: tuple[str, ...]
    fused: str | None
    weights: str | None
    task: str
    toolkit: str
    metrics: tuple[str, ...]
    saved: str | None
    key: str


def fingerprint(*parts: object) -> str:
    """Return a text that changes when a file does (by size and time of change) or another part does."""
    facts = []
    for part in parts:
        if isinstance(part, Path):
            stat = part.stat()
            facts.append(f"{part.name}:{stat.st_size}:{stat.st_mtime_ns}")
        else:
            facts.append(str(part))
    return "|".join(facts)


def _read(path: str) -> np.ndarray:
    from ffmef.imaging.io import read_picture

    pixels = read_picture(path).pixels
    if pixels.dtype != np.uint8:
        raise InputError(f"{path}: metrics are defined on 8-bit pictures, got {pixels.dtype}")
    return pixels


def _fuse(task: Task, frames: list[np.ndarray]) -> np.ndarray:
    import ffmef

    if task.task == "vif" and len(frames) > 2:
        raise InputError(f"task vif fuses two pictures, got {len(frames)}")
    images = {"visible": frames[0], "infrared": frames[1]} if task.task == "vif" else frames
    if task.weights == focus.NAME:  # which has none
        return ffmef.fuse(images, task=task.task, model=focus.NAME)
    return ffmef.fuse(images, task=task.task, weights=task.weights)


def save_plainly(pixels: np.ndarray, path: str) -> None:
    """Write a picture as image libraries do when nothing is asked for: JPEG of quality 75 with halved chroma.

    Published tables were scored on such files wherever a source is a JPEG; our own writer keeps more.
    """
    from PIL import Image

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format=Image.registered_extensions()[target.suffix.lower()])
    files.write(target, encoded.getvalue())


LUMA = "on luma, because fused picture and sources are not both in colour"


def score(task: Task) -> dict:
    """Return ``{"values": {metric: value}, "note": text}``, or ``{"failure": reason}`` for what the user can mend.

    A value that is not defined for these pictures is None where NaN, and infinite where infinite. The note says what
    a reader has to know of these values; it is empty mostly.
    """
    from ffmef import metrics

    try:
        frames = [_read(path) for path in task.frames]
        for path, frame in zip(task.frames, frames, strict=True):
            if frame.shape[:2] != frames[0].shape[:2]:
                first = f"{Path(task.frames[0]).name} {_size(frames[0])}"
                raise InputError(f"sources differ in size: {first}, {Path(path).name} {_size(frame)}")
        fused = _fuse(task, frames) if task.fused is None else _read(task.fused)
        if task.saved is not None:
            save_plainly(fused, task.saved)
            fused = _read(task.saved)
        note = ""
        if _mixed(frames, fused):
            note = LUMA
            frames, fused = [metrics.to_luma(frame) for frame in frames], metrics.to_luma(fused)
        values = metrics.compute(*frames[:2], fused, task.metrics, toolkit=task.toolkit, more=frames[2:])
    except (ValueError, OSError, MemoryError, RuntimeError, ImportError) as error:
        return {"failure": " ".join(str(error).split()) or type(error).__name__}
    return {"values": {name: None if math.isnan(value) else value for name, value in values.items()}, "note": note}


def _mixed(frames: list[np.ndarray], fused: np.ndarray) -> bool:
    """Return whether the fused picture is grey beside a colour source, or coloured beside grey sources alone."""
    in_colour = any(frame.ndim == 3 for frame in frames)
    if fused.ndim == 2:
        return in_colour
    # A colour file of a grey picture is the same on luma; the toolkits take its first channel.
    return not in_colour and bool((fused != fused[..., :1]).any())


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"


def replace_metrics(task: Task, metrics: tuple[str, ...]) -> Task:
    """Return the task with other metrics to compute."""
    return replace(task, metrics=metrics)


def start_worker() -> None:
    """Let a worker use one thread, since there are as many workers as jobs."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
