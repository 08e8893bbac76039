"""The pyramid model in one native pass from pictures to a picture, with NumPy arrays and C++ threads: no torch."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ffmef.adjust import NEUTRAL, Adjustments
from ffmef.errors import InputError
from ffmef.models.registry import PYRAMID_DESIGN
from ffmef.weight_files import stamp

if TYPE_CHECKING:
    from ffmef.models import PyramidFFMEF


class OutOfRange(InputError):
    """Floating-point samples that do not lie in [0, 1], found by the native pass."""


MOST_THREADS = 4096  # far more than processors have; far fewer than would exhaust the system

try:
    from ffmef import _picture
    from ffmef._picture import OutOfRange as _OutOfRange

    missing: str | None = None
except ImportError as error:
    _picture = None
    built = importlib.util.find_spec("ffmef._picture") is not None
    missing = (
        f"the native library does not load or is of another version: {error}"
        if built
        else "the native library was not built (no C++ compiler at install time?)"
    )


def thread_count(threads: int | None = None) -> int:
    """Return how many threads to use when ``threads`` are asked for.

    None means ``FFMEF_THREADS``, or torch's number in a process that has loaded torch, or ``OMP_NUM_THREADS``, or one
    per processor that the process may run on. The fused picture does not depend on it.

    Raises:
        InputError: the number, or that of ``FFMEF_THREADS``, is not from 1 to 4096.

    Example:
        >>> thread_count(3)
        3
    """
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or not 1 <= threads <= MOST_THREADS:
            raise InputError(f"threads must be a whole number from 1 to {MOST_THREADS}, got {threads!r}")
        return int(threads)
    wish = os.environ.get("FFMEF_THREADS", "")
    if wish:
        if not wish.isdecimal() or not 1 <= int(wish) <= MOST_THREADS:
            raise InputError(f"FFMEF_THREADS must be a whole number from 1 to {MOST_THREADS}, got {wish!r}")
        return int(wish)
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    openmp = os.environ.get("OMP_NUM_THREADS", "")
    if openmp.isdecimal() and 1 <= int(openmp) <= MOST_THREADS:
        return int(openmp)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fuse(
    network,
    images: Sequence[np.ndarray],
    threads: int | None = None,
    validity: Sequence[np.ndarray | None] = (),
    adjust: Adjustments = NEUTRAL,
) -> np.ndarray:
    """Return the fused picture of images that :func:`ffmef.fuse` accepts, by a network of this module.

    Args:
        network: from :func:`read_network` or :func:`network_of`.
        images: in any order.
        threads: as for :func:`thread_count`.
        validity: for each image (H, W), uint8, how far its pixels may be used, or None for all; empty if nothing is
            known.
        adjust: brightness, saturation, contrast and preference.

    Raises:
        OutOfRange: floating-point samples do not lie in [0, 1].
    """
    dtype = images[0].dtype
    plain = np.float32 if dtype.kind == "f" else dtype
    changes = (adjust.brightness, adjust.contrast, adjust.saturation, adjust.prefer)
    plain_images = [image.astype(plain, copy=False) for image in images]
    try:
        fused = network.fuse(plain_images, thread_count(threads), list(validity), changes)
    except _OutOfRange as error:
        raise OutOfRange(str(error)) from None
    return fused.astype(dtype, copy=False)


def network_of(model: PyramidFFMEF):
    """Return the native network with a model's current parameters, or None if there is none for the model."""
    state = {name: parameter.detach().cpu().numpy() for name, parameter in model.named_parameters()}
    return _network(state, model.config())


def read_network(path: Path):
    """Return the native network of a weight file, or None.

    None stands for every file that it cannot use, broken ones included: loading the model with torch then says why.
    """
    return None if _picture is None else _read_network(path, stamp(path))


@functools.lru_cache(maxsize=8)
def _read_network(path: Path, stamp: tuple):
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("architecture") != "PyramidFFMEF":
                return None
            return _network({name: file.get_tensor(name) for name in file.keys()}, json.loads(header["config"]))
    except Exception:  # whatever damaged bytes lead to
        return None


def _network(state: dict[str, np.ndarray], config: dict):
    """Return the native network of named parameters, if they are exactly those of a model that the kernels know."""
    known = config.keys() == {"bands", "channels", "stem", "octaves", "design"} and config["design"] == PYRAMID_DESIGN
    if _picture is None or not known:
        return None
    shapes = _shapes(config["bands"], config["channels"], config["stem"])
    fits = state.keys() == shapes.keys() and all(
        state[name].shape == shape and state[name].dtype == np.float32 and np.isfinite(state[name]).all()
        for name, shape in shapes.items()
    )
    if not fits:
        return None
    try:
        return _picture.Network(
            [state[name] for name in shapes], config["channels"], config["stem"], config["bands"], config["octaves"]
        )
    except (TypeError, ValueError):  # sizes without kernels
        return None


def _shapes(bands: int, channels: Sequence[int], stem: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters by name, in the order in which the kernels take them."""
    finest, coarsest = channels[0], channels[-1]
    steps = [(str(index), fine, coarse) for index, (fine, coarse) in enumerate(zip(channels[:-1], channels[1:]))]
    layers = {
        "stem": (stem, 1, 2, 2),
        "enter": (finest, stem, 2, 2),
        "statistics": (finest, 3, 1, 1),
        "meet.conv": (finest, 2 * finest, 1, 1),
        **{f"down.{index}": (coarse, fine, 2, 2) for index, fine, coarse in steps},
        **{f"encode.{index}": (coarse, coarse, 3, 3) for index, _, coarse in steps},
        "overall": (coarsest, coarsest, 1, 1),
        "meet_coarsest.conv": (coarsest, 2 * coarsest, 1, 1),
        **{f"up.{index}": (fine, coarse, 1, 1) for index, fine, coarse in steps},
        **{f"decode.{index}": (fine, fine, 3, 3) for index, fine, _ in steps},
        "head": (2 * (bands + 3), finest, 1, 1),
    }
    shapes: dict[str, tuple[int, ...]] = {"prior": (bands + 3,)}
    for name, shape in layers.items():
        shapes[f"predictor.{name}.weight"] = shape
        shapes[f"predictor.{name}.bias"] = shape[:1]
    return shapes
