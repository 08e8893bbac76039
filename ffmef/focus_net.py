"""The weights that :class:`ffmef.models.FocusNet` predicts, with NumPy: one frame at a time, strip by strip.

:class:`ffmef.models.FocusNet` is the definition. This code keeps the maps of one frame and the features of one strip of
rows, so a picture of 24 megapixels takes only a few bytes per pixel more than the formula of :mod:`ffmef.focus`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffmef import focus
from ffmef.weight_files import find, stamp

_PIXELS = 1 << 14  # of a strip, whose features stay in the cache
_LOG_STEPS = 1 << 14  # steps of a unit of log energy, in sums over the frames
_MOST_STEPS = 1 << 11  # steps of one, up to 32, where it is kept in 16 bits


class Network(NamedTuple):
    """Parameters by band, the last for what is left: matrices (outputs, inputs) and biases (outputs, 1)."""

    first: list[tuple[np.ndarray, np.ndarray]]
    second: list[tuple[np.ndarray, np.ndarray]]
    last: list[tuple[np.ndarray, np.ndarray]]


def read(name_or_path: str | Path) -> Network | None:
    """Return the network of a weight file, or None if the file is broken or of another model.

    Example:
        >>> read("mef") is None
        True
    """
    path = find(name_or_path)
    return _read(path, stamp(path))


@functools.lru_cache(maxsize=4)
def _read(path: Path, stamp: tuple) -> Network | None:
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("architecture") != "FocusNet":
                return None
            return network_of({name: file.get_tensor(name) for name in file.keys()}, json.loads(header["config"]))
    except Exception:  # whatever damaged bytes lead to; loading with torch then says why
        return None


def network_of(state: dict[str, np.ndarray], config: dict) -> Network | None:
    """Return the network of named parameters, or None if they are not those of ``FocusNet(**config)``."""
    channels = config.get("channels")
    if config.keys() != {"channels"} or not isinstance(channels, int):
        return None
    sizes = {
        "first": (channels, focus.FEATURES),
        "second": (channels, channels),
        "last": (1, channels + focus.FEATURES),
    }
    layers: dict[str, list] = {}
    for layer, size in sizes.items():
        for level in range(focus.BANDS + 1):
            weight, bias = (state.pop(f"{layer}.{level}.{kind}", np.empty(0)) for kind in ("weight", "bias"))
            if weight.shape != (*size, 1, 1) or bias.shape != size[:1] or weight.dtype != np.float32:
                return None
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                return None
            layers.setdefault(layer, []).append((weight.reshape(size), bias.reshape(-1, 1)))
    return None if state else Network(**layers)


class Spread:
    """How the frames' energies are spread, gathered frame by frame; the greatest are kept elsewhere."""

    def __init__(self, shapes: list[tuple[int, int]]):
        self.count = 0
        self._least = [np.full(shape, np.inf, np.float32) for shape in shapes]
        self._sums = [np.zeros(shape, np.int32) for shape in shapes]

    def add(self, energies: list[np.ndarray]) -> None:
        """Note the energies of one frame in every band."""
        self.count += 1
        for energy, least, total in zip(energies, self._least, self._sums, strict=True):
            np.minimum(least, energy, out=least)
            for rows in focus._strips(energy.shape):
                values = np.log(energy[rows] + np.float32(focus.NOISE))
                values *= np.float32(_LOG_STEPS)
                total[rows] += np.rint(values, out=values).astype(np.int32)

    def below(self, best: list[np.ndarray]) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
        """Return logarithms of the greatest energies, in steps, and how far mean and least lie below; empty ``best``.

        Few bytes: uint16, and two float16.
        """
        logs, results = [], []
        for least, total in zip(self._least, self._sums, strict=True):
            greatest = best.pop(0)
            most = np.empty(greatest.shape, np.uint16)
            maps = np.empty(greatest.shape, np.float16), np.empty(greatest.shape, np.float16)
            for rows in focus._strips(greatest.shape):
                values = np.log(greatest[rows] + np.float32(focus.NOISE))
                most[rows] = np.rint(values * np.float32(_MOST_STEPS))
                maps[0][rows] = values - total[rows].astype(np.float64) / (_LOG_STEPS * self.count)
                maps[1][rows] = values - np.log(least[rows] + np.float32(focus.NOISE))
            logs.append(most)
            results.append(maps)
        self._least, self._sums = [], []
        return logs, results


def weights(logits: list[np.ndarray], tops: list[np.ndarray]) -> list[np.ndarray]:
    """Turn a frame's logits into weights relative to the frame with the greatest logit, float16; empty the list."""
    results = []
    for top in tops:
        logit = logits.pop(0)
        weight = np.empty(logit.shape, np.float16)
        for rows in focus._strips(logit.shape):
            logit[rows] -= top[rows]
            np.exp(logit[rows], out=logit[rows])
            np.minimum(logit[rows], 1, out=weight[rows], casting="same_kind")  # tops have three digits
        results.append(weight)
    return results


def greatest_logits(logits_of, frames, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Return the greatest logits over the frames, float16; ``logits_of`` gives those of one frame."""
    tops = [np.full(shape, -np.inf, np.float16) for shape in shapes]
    for frame in frames:
        for top, logit in zip(tops, logits_of(frame), strict=True):
            np.maximum(top, logit.astype(np.float16), out=top)
    return tops


def logits(
    network: Network,
    frame: focus.Frame,
    shapes: list[tuple[int, int]],
    greatest: list[np.ndarray],
    spread: list[tuple[np.ndarray, np.ndarray]],
) -> list[np.ndarray]:
    """Return the logits of a frame's weights, before the softmax over frames, in each band and for what is left.

    Args:
        network: predicts them.
        frame: its array, or a function that returns it, which is not kept while the network runs.
        shapes: the sizes of the bands, finest first, and of what is left.
        greatest: logarithms of the greatest energy, as :meth:`Spread.below` returns them.
        spread: how far the others lie below, likewise.
    """
    own, narrow = _own(focus._squares(focus._pixels(frame), shapes), shapes)
    below = focus._summed([energy.copy() for energy in own[:-1]], shapes)
    for energy, most in zip(below, greatest, strict=True):
        for rows in focus._strips(energy.shape):
            energy[rows] = _unpacked(most[rows]) - np.log(energy[rows] + np.float32(focus.NOISE))
    finer: list[np.ndarray | None] = [None, None, None]  # S of the two finer bands, and d of the next, of this size
    for level, shape in enumerate(shapes):
        following = _next(own, below, finer, level)
        which = level if level + 1 < len(shapes) else focus.BANDS
        layers = [layer[which] for layer in network]
        wide = _half(_half(own[level]))
        rows = max(1, _PIXELS // shape[1])
        for top in range(0, shape[0], rows):
            part = slice(top, min(top + rows, shape[0]))
            maps = _features(own, narrow, below, greatest, spread, level, part, finer, wide)
            below[level][part] = _predicted(layers, maps).reshape(-1, shape[1])
        finer = following
    return below


def _unpacked(most: np.ndarray) -> np.ndarray:
    return most * np.float32(1 / _MOST_STEPS)


def _own(own: list[np.ndarray], shapes: list[tuple[int, int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Turn squares into S in each band and for what is left; return it and the squares in a small window."""
    import cv2

    taps = np.array([0.25, 0.5, 0.25])
    # Their logarithms need only three digits, and the greatest square is 65025, so float16 is enough.
    narrow = [cv2.sepFilter2D(square, -1, taps, taps).reshape(square.shape).astype(np.float16) for square in own]
    for energy in own:
        cv2.GaussianBlur(energy, (0, 0), focus.WINDOW, dst=energy)
    own.append(_half(own[-1]) if own else np.ones(shapes[-1], np.float32))
    narrow.append(own[-1])
    return own, narrow


def _half(maps: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.pyrDown(maps).reshape([(side + 1) // 2 for side in maps.shape])


def _next(own, below, finer, level: int) -> list[np.ndarray | None]:
    """Return what the next band's features need from this band and the finer one."""
    if level + 1 == len(own):
        return [None, None, None]
    return [_half(own[level]), None if finer[0] is None else _half(finer[0]), _half(below[level])]


def _features(own, narrow, below, greatest, spread, level, part, finer, wide) -> np.ndarray:
    """Return the features (14, pixels) of rows of a band, in the order of :class:`ffmef.models.FocusNet`."""
    shape = own[level].shape
    maps = np.zeros((focus.FEATURES, part.stop - part.start, shape[1]), np.float32)
    np.subtract(_unpacked(greatest[level][part]), below[level][part], out=maps[0])
    maps[1], maps[2], maps[3] = own[level][part], narrow[level][part], _rows(wide, shape, part)
    for place, of in ((4, finer[0]), (5, finer[1]), (9, finer[2])):
        if of is not None:
            maps[place] = of[part]
    for step in (1, 2):
        if level + step < len(own):
            maps[5 + step] = _rows(own[level + step], shape, part)
            maps[9 + step] = _rows(below[level + step], shape, part)
    maps[8], maps[12], maps[13] = below[level][part], spread[level][0][part], spread[level][1][part]
    maps[1:8] += np.float32(focus.FLOOR)
    np.log(maps[1:8], out=maps[1:8])
    maps[:8] -= np.float32(focus.CENTRE)
    maps *= np.float32(1 / focus.SPREAD)
    return maps.reshape(focus.FEATURES, -1)


def _rows(maps: np.ndarray, shape: tuple[int, int], part: slice) -> np.ndarray:
    """Return some rows of maps interpolated to a shape, equal to those of ``cv2.resize``."""
    import cv2

    places = (np.arange(part.start, part.stop) + 0.5) * (maps.shape[0] / shape[0]) - 0.5
    places = places.clip(0, maps.shape[0] - 1)
    above = places.astype(int)
    following = np.minimum(above + 1, maps.shape[0] - 1)
    share = (places - above).astype(np.float32)[:, None]
    first, last = above[0], following[-1] + 1
    across = cv2.resize(maps[first:last], (shape[1], last - first), interpolation=cv2.INTER_LINEAR)
    across = across.reshape(last - first, shape[1])
    return across[above - first] * (1 - share) + across[following - first] * share


def _predicted(layers: list[tuple[np.ndarray, np.ndarray]], features: np.ndarray) -> np.ndarray:
    hidden = features
    for weight, bias in layers[:2]:
        hidden = weight @ hidden
        hidden += bias
        np.maximum(hidden, 0, out=hidden)
    weight, bias = layers[2]
    channels = hidden.shape[0]
    logits = weight[0, :channels] @ hidden
    logits += weight[0, channels:] @ features
    logits += bias[0]
    logits -= features[8] * np.float32(focus.SPREAD * 2**focus.SQUARINGS)
    return np.clip(logits, *focus.LOGITS, out=logits)
