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

    ``fused`` is its file, or None to fuse with ``weights``. ``saved`` is where to keep the scored picture, or None to
    score ``fused`` as it is. ``key`` changes with any file that affects the scores.
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
    """Return a text that changes when a file changes (by size and modification time) or another part does."""
    facts = []
    for part in parts:
        if isinstance(part, Path):
            stat = part.stat()
            facts.append(f"{part.name}:{stat.st_size}:{stat.st_mtime_ns}")
        else:
            facts.append(str(part))
    return "|".join(facts)


def _read(path: str, notes: list[str]) -> np.ndarray:
    from ffmef.imaging.io import read_picture

    return _eight_bit(read_picture(path).pixels, path, notes)


def _eight_bit(pixels: np.ndarray, path: str, notes: list[str]) -> np.ndarray:
    """Return a picture in whole grey levels 0..255, for which the metrics are defined."""
    from ffmef.imaging.io import to_depth

    if pixels.dtype == np.uint8:
        return pixels
    _check_range(pixels, path)
    notes.append(ROUNDED)
    return to_depth(pixels, np.uint8)


def _check_range(pixels: np.ndarray, path: str) -> None:
    if pixels.dtype.kind == "f" and np.isnan(pixels).any():
        raise InputError(f"{path}: samples must be numbers to be scored, got NaN")
    if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(f"{path}: floats must lie in 0 to 1 to be scored, got {pixels.min():g} to {pixels.max():g}")


def _sources(task: Task, notes: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the sources for fusing and the sources for scoring."""
    from ffmef.imaging.bracket import read_bracket
    from ffmef.imaging.io import read_picture

    frames = [read_picture(path).pixels for path in task.frames]
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) > 1 and not (task.task == "vif" and len(frames) == 2):
        other = next(i for i, frame in enumerate(frames) if frame.shape[:2] != frames[0].shape[:2])
        first = f"{Path(task.frames[0]).name} {_size(frames[0])}"
        raise InputError(f"sources differ in size: {first}, {Path(task.frames[other]).name} {_size(frames[other])}")
    if len(sizes) > 1 or any(frame.dtype != np.uint8 for frame in frames):
        for path, frame in zip(task.frames[:1] if task.task == "vif" else task.frames, frames, strict=False):
            _check_range(frame, path)
        # As ffmef fuse reads them: infrared scaled to the visible picture's size, counts stretched.
        backwards = task.task == "vif"
        pictures, remarks = read_bracket(task.frames[::-1] if backwards else task.frames, task.task)
        frames = [picture.pixels for picture in (pictures[::-1] if backwards else pictures)]
        notes += [SCALED] * (len(sizes) > 1) + [STRETCHED] * any("stretched" in remark for remark in remarks)
    return frames, [_eight_bit(frame, path, notes) for path, frame in zip(task.frames, frames, strict=True)]


def _fuse(task: Task, frames: list[np.ndarray]) -> np.ndarray:
    import ffmef

    if task.task == "vif" and len(frames) > 2:
        raise InputError(f"task vif fuses two pictures, got {len(frames)}")
    images = {"visible": frames[0], "infrared": frames[1]} if task.task == "vif" else frames
    if task.weights == focus.NAME:  # the formula has no weights
        return ffmef.fuse(images, task=task.task, model=focus.NAME)
    return ffmef.fuse(images, task=task.task, weights=task.weights)


def save_plainly(pixels: np.ndarray, path: str) -> None:
    """Write a picture as image libraries do by default: JPEG at quality 75 with halved chroma.

    Published tables were scored on such files wherever a source is a JPEG; our own writer keeps more detail.
    """
    from PIL import Image

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format=Image.registered_extensions()[target.suffix.lower()])
    files.write(target, encoded.getvalue())


ROUNDED = "rounded to 8 bits"
SCALED = "with the infrared picture scaled to the visible one's size"
STRETCHED = "with the infrared counts stretched to the whole range"
LUMA = "on luma, because fused picture and sources are not both in colour"


def score(task: Task) -> dict:
    """Return ``{"values": {metric: value}, "note": text}``, or ``{"failure": reason}`` if the user can mend it.

    NaN, for a value that is undefined for these pictures, becomes None; infinity stays. The note says what a reader
    must know about these values; it is mostly empty.
    """
    from ffmef import metrics

    try:
        notes: list[str] = []
        originals, frames = _sources(task, notes)
        if task.fused is None:
            fused = _eight_bit(_fuse(task, originals), "fused", notes)
        else:
            fused = _read(task.fused, notes)
        if task.saved is not None:
            save_plainly(fused, task.saved)
            fused = _read(task.saved, notes)
        if _mixed(frames, fused):
            notes.append(LUMA)
            frames, fused = [metrics.to_luma(frame) for frame in frames], metrics.to_luma(fused)
        first, second, *more = frames
        values = metrics.compute(first, second, fused, task.metrics, toolkit=task.toolkit, more=more)
    except (ValueError, OSError, MemoryError, RuntimeError, ImportError) as error:
        return {"failure": " ".join(str(error).split()) or type(error).__name__}
    return {
        "values": {name: None if math.isnan(value) else value for name, value in values.items()},
        "note": "; ".join(dict.fromkeys(notes)),
    }


def _mixed(frames: list[np.ndarray], fused: np.ndarray) -> bool:
    """Return whether the fused picture is grey but a source is in colour, or coloured but all sources are grey."""
    in_colour = any(frame.ndim == 3 for frame in frames)
    if fused.ndim == 2:
        return in_colour
    # A grey picture in a colour file is the same on luma; the toolkits take its first channel.
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
