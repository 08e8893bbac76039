"""Fuses pictures into one picture: colour, order of the exposures, the model, colour again."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ffmef import focus, focus_net, glare, picture, weight_files
from ffmef.adjust import NEUTRAL, Adjustments
from ffmef.errors import InputError
from ffmef.imaging import colour
from ffmef.imaging.margins import completed, continued, usable_parts
from ffmef.models import registry
from ffmef.models.registry import ROLES, TASKS
from ffmef.weight_files import find, stamp

if TYPE_CHECKING:
    import torch

    from ffmef.imaging.io import Picture

# Pixels converted at a time; colour then needs only a few megabytes, however large the picture.
_BAND = 1 << 16
MOST_UNDER_WAY = 3  # brackets of :func:`fuse_many` on a GPU: one goes there, one is fused, one comes back


def fuse(
    images: Sequence[np.ndarray] | Mapping[str, np.ndarray],
    task: str = "mef",
    weights: str | None = None,
    *,
    backend: str | None = None,
    model: Callable[[torch.Tensor], torch.Tensor] | str | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    validity: Sequence[np.ndarray | None] | None = None,
    adjust: Adjustments = NEUTRAL,
    deghost: bool | int = False,
    engine: str | None = None,
) -> np.ndarray:
    """Fuse pictures of one scene into one picture.

    The luminance of the pictures (BT.601, studio swing, divided by 255) goes through the model and is clamped to
    [0, 1]. Multi-exposure and multi-focus fusion by FFMEF merge the chroma by
    ``C = sum_i C_i |C_i - 128| / sum_i |C_i - 128|`` (FFMEF paper, eq. 1); infrared-visible fusion takes the chroma
    of the visible picture, and with the bundled weights makes room in glare (:func:`ffmef.glare.make_room`). Nothing is
    rounded before the end. :func:`ffmef.focus.fuse` fuses focus stacks unless a model or weights are named.

    Args:
        images: pictures of one size and dtype, two for FFMEF, two or more for a model that takes any number: (H, W, 3)
            for colour in the order R, G, B, or (H, W) for grey; uint8, uint16, or floating point with values in
            [0, 1]. At least 2 pixels, because the model takes statistics over the picture. For ``task="vif"`` a
            mapping with the keys ``infrared`` and ``visible``, either of which may be grey.
        task: ``mef`` (exposures, in any order: they are sorted by mean luminance, the darkest first), ``mff`` (focus,
            in any order; FFMEF keeps the order given) or ``vif`` (infrared and visible).
        weights: name of bundled weights or path of a weight file; None means those of the model for the task and the
            number of pictures.
        backend: how to compute; None chooses the fastest that is available. A name of ``ffmef.ops.backends()``, and for
            FFMEF also ``fused``, the whole network in one operator, or ``eager``, layer by layer.
        model: ``ffmef``, the paper's network for two pictures; ``pyramid``, for two or more exposures, with other
            weights; ``focus`` and ``energy`` for ``mff``, see :func:`ffmef.focus.fuse`; None chooses by ``weights``,
            or else by task and number of pictures. Or a callable to use instead, which takes luminance (1, N, H, W),
            float32 in [0, 1], and returns (1, 1, H, W).
        device: where to run the model: ``cpu``, ``cuda``, ...; None means the model's device, or the CPU.
        threads: processor threads; the result does not depend on them. None means the number in the variable
            ``FFMEF_THREADS``, else torch's number if torch is loaded, else the number in ``OMP_NUM_THREADS``, else one
            per processor that the process may run on.
        validity: for each image (H, W), uint8, how far its pixels may be used: 255 as far as they are recorded, 0 not
            at all; None for all of an image. Like ``adjust``, for the model ``pyramid`` only.
        adjust: changes of brightness, contrast, saturation and preferred exposures.
        deghost: take what moved between exposures from one of them, by :func:`ffmef.deghost.deghost`: True means the
            best exposed image, a number the image of that index, counted from the end if it is negative. For the model
            ``pyramid`` only.
        engine: deprecated; ``backend`` takes its values.

    Returns:
        The fused picture, of the same size and dtype, in colour if any picture is (for ``vif``: if the visible one is).
        Integers are rounded; floating point stays in [0, 1].

    Raises:
        InputError: an argument breaks one of these rules; the message names the argument.

    >>> under = np.full((4, 4, 3), 40, np.uint8)
    >>> over = np.full((4, 4, 3), 200, np.uint8)
    >>> fuse([over, under], model=lambda luminance: luminance.mean(1, keepdim=True))[0, 0].tolist()
    [120, 120, 120]
    """
    listed = _listed(images, task)
    images = _checked(listed, in_range=False)
    if not isinstance(adjust, Adjustments):
        raise InputError(f"adjust must be of type ffmef.adjust.Adjustments, got {type(adjust).__name__}")
    fuser = _fuser_of(task, len(images), weights, backend, model, device, engine)
    validity = _checked_validity(validity, images)
    named = [(name, image) for (name, _), image in zip(listed, images, strict=True)]
    seen = fuser.network is not None or _place_of(fuser, device) is not None  # a device looks at the samples too
    if not (seen and images[0].dtype == np.float32 and validity is None and deghost is False):
        _check_range(named)
    try:
        fused, _ = _fuse(
            images, task, fuser, device=device, threads=threads, validity=validity, adjust=adjust, deghost=deghost
        )
    except picture.OutOfRange:  # found while reading the samples: a check beforehand takes a tenth more time
        _check_range(named)
        raise
    return fused.astype(listed[0][1].dtype, copy=False)  # in the byte order of the first picture


def fuse_many(
    brackets: Iterable[Sequence[np.ndarray]],
    weights: str | None = None,
    *,
    backend: str | None = None,
    model: Callable[[torch.Tensor], torch.Tensor] | str | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    adjust: Adjustments = NEUTRAL,
) -> Iterator[np.ndarray]:
    """Fuse one bracket of exposures after another, each as :func:`fuse` does, and yield the results in that order.

    On a GPU, three brackets are under way at a time, each on a stream of its own: pictures and results pass through
    pinned memory, and the copies of one bracket overlap the work on another. On the CPU, brackets are fused one by one.

    Args:
        brackets: sequences of pictures as :func:`fuse` takes them; their sizes may differ. One is taken when a stream
            is free.
        weights: as for :func:`fuse`, like the arguments that follow.
        backend: how to compute.
        model: a name, or a callable.
        device: where to run the model.
        threads: processor threads.
        adjust: changes of brightness, contrast, saturation and preferred exposures.

    Yields:
        The fused picture of each bracket.

    Raises:
        InputError: an argument breaks a rule of :func:`fuse`.

    >>> pairs = ([np.full((9, 9, 3), level, np.uint8)] * 2 for level in (60, 90))
    >>> [int(picture[0, 0, 0]) for picture in fuse_many(pairs)]
    [60, 90]
    """
    options: dict[str, Any] = {"backend": backend, "model": model, "device": device}
    under_way: deque[Callable[[], np.ndarray]] = deque()
    for bracket in brackets:
        listed = _listed(bracket, "mef")
        images = _checked(listed, in_range=False)
        fuser = _fuser_of("mef", len(images), weights, **options, engine=None)
        place = _place_of(fuser, device) if isinstance(adjust, Adjustments) else None
        while under_way and (place is None or len(under_way) == MOST_UNDER_WAY):
            yield under_way.popleft()()
        if place is None:
            yield fuse(bracket, "mef", weights, threads=threads, adjust=adjust, **options)
            continue
        _check_selective(fuser, None, adjust, False)
        if images[0].dtype != np.float32:
            _check_range([(name, image) for (name, _), image in zip(listed, images, strict=True)])
        with _torch_threads(threads), _next_stream(place):
            wait = _started(images, "mef", fuser, place, adjust=adjust)
        under_way.append(functools.partial(_like, listed, wait))
    while under_way:
        yield under_way.popleft()()


def _like(listed: list[tuple[str, np.ndarray]], wait: Callable[[], tuple[np.ndarray, list[int]]]) -> np.ndarray:
    """Return a fused picture in the byte order of the first one."""
    return wait()[0].astype(listed[0][1].dtype, copy=False)


_streams = threading.local()  # of each thread, by device; kept, because torch keeps memory apart for each stream


def _next_stream(place: torch.device) -> contextlib.AbstractContextManager:
    """Return the context of the next of this thread's streams in turn, on a GPU."""
    import torch

    if place.type != "cuda":
        return contextlib.nullcontext()
    streams = cast("dict[Any, deque]", vars(_streams)).setdefault(place, deque())
    if len(streams) < MOST_UNDER_WAY:
        streams.append(torch.cuda.Stream(place))
    else:
        streams.rotate(-1)
    streams[-1].wait_stream(torch.cuda.current_stream(place))  # the model may still be on its way
    return torch.cuda.stream(streams[-1])


def fuse_pictures(
    pictures: Sequence[Picture] | Mapping[str, Picture],
    task: str = "mef",
    weights: str | None = None,
    *,
    names: Sequence[str] | None = None,
    **options,
) -> Picture:
    """Fuse decoded pictures, with their depth, alpha, colour profile and EXIF.

    - Depth: 16 bit if any picture has 16 bit; 8-bit samples are multiplied by 257.
    - Alpha, for the model ``pyramid``: the result is as opaque as the most opaque picture. Where one is less opaque,
      such as in the margin of an aligned exposure, the others show what it lacks
      (:func:`ffmef.imaging.margins.completed`). For other models: the minimum over all
      pictures, one without alpha counting as opaque.
    - ICC profile and EXIF: of the first picture, in fusion order, that has one (``vif``: of the visible picture).

    Args:
        pictures: as ``images`` of :func:`fuse`, read by :func:`ffmef.imaging.io.read_picture`.
        task: as for :func:`fuse`.
        weights: as for :func:`fuse`.
        names: what messages call the pictures, such as their paths, infrared before visible.
        options: the further arguments of :func:`fuse`.

    Returns:
        The fused picture.

    Raises:
        InputError: as for :func:`fuse`.
    """
    from ffmef.imaging.io import Picture

    listed = _listed(pictures, task)
    pictures = cast("list[Picture]", [picture for _, picture in listed])
    sixteen = any(picture.pixels.dtype == np.uint16 for picture in pictures)
    names = names or [name for name, _ in listed]
    deepened = [_deepened(picture.pixels, sixteen) for picture in pictures]
    images = _checked(list(zip(names, deepened, strict=True)))
    ties = [b"%b\0%b" % (picture.icc or b"", picture.exif or b"") for picture in pictures]
    fuser = _fuser_of(task, len(images), **_taken(options, weights=weights))
    alphas = [None if picture.alpha is None else _deepened(picture.alpha, sixteen) for picture in pictures]
    alpha = None
    if fuser.selective:
        opaque = np.iinfo(images[0].dtype).max if images[0].dtype.kind == "u" else 1
        alpha, masks = usable_parts(alphas, opaque)
        if any(mask is not None for mask in masks):
            images, validity = completed(images, masks)
            options["validity"] = validity if any(part is not None for part in validity) else None
    elif any(alpha is not None for alpha in alphas):
        if fuser.focus:  # the edge of a margin would be the sharpest place
            _, masks = usable_parts(alphas, np.iinfo(images[0].dtype).max if images[0].dtype.kind == "u" else 1)
            images = [i if mask is None else continued(i, mask) for i, mask in zip(images, masks, strict=True)]
        alpha = np.minimum.reduce([alpha for alpha in alphas if alpha is not None])
    fused, order = _fuse(images, task, fuser, ties=ties, **options)

    sources = pictures[1:] if task == "vif" else [pictures[index] for index in order]
    profiles = [picture.icc for picture in sources if picture.icc and picture.pixels.ndim == fused.ndim]
    exifs = [picture.exif for picture in sources if picture.exif]
    return Picture(
        fused,
        alpha,
        profiles[0] if profiles else None,
        exifs[0] if exifs else None,
        sources[0].format,
    )


@dataclass(frozen=True)
class _Fuser:
    """What fuses: a native network, from pictures to a picture; a model that torch runs; or how sharp each frame is.

    Selective ones take validity and adjustments, and merge chroma by the shares that they predict. ``room`` says
    whether :func:`ffmef.glare.make_room` changes the visible luminance where it is white.
    """

    network: object | None = None
    model: object | None = None
    selective: bool = False
    focus: _Focus | None = None
    room: bool = False


@dataclass(frozen=True)
class _Focus:
    """Frames are fused one after another, by the weights of a network, or by the formula if there is none."""

    network: Any


def _taken(options: dict, **given) -> dict:
    """Remove what chooses the model from the options, all but the device, and return it."""
    names = ("backend", "model", "engine")
    return {**given, **{name: options.pop(name, None) for name in names}, "device": options.get("device")}


def _fuser_of(task: str, count: int, weights, backend, model, device, engine) -> _Fuser:
    """Return the fuser that the arguments of :func:`fuse` choose for ``count`` images."""
    if engine is not None:
        backend = _backend_of_engine(engine, backend)
    if device is not None and not str(device):
        raise InputError("device '' cannot be used: it must be a device such as cpu or cuda")
    if not (model is None or isinstance(model, str) or callable(model)):
        raise InputError(f"model must be a name or a callable, got {type(model).__name__}")
    by_focus = focus_of(task, weights, model, backend, device)
    if by_focus is not None:
        return _Fuser(focus=by_focus)
    named = model is None or isinstance(model, str)
    if named:
        weights = _weights_name(task, weights, model, backend)
    elif weights is not None or backend is not None:
        name, value = ("weights", weights) if weights is not None else ("backend", backend)
        raise InputError(f"{name} cannot be used with a model that is no name, got {value!r}")
    network = _native_network(weights if named else model, task, backend, device)
    if network is not None:
        return _Fuser(network=network, selective=True)
    room = named and task == "vif" and weight_files.facts(find(weights)).get("glare") == "room"
    model = _load_model(weights, count, backend, device) if named else model
    return _Fuser(model=model, selective=task != "vif" and hasattr(model, "adopt"), room=room)


def _fuse(
    images: list[np.ndarray],
    task: str,
    fuser: _Fuser,
    *,
    ties: list[bytes] | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    validity: list[np.ndarray | None] | None = None,
    adjust: Adjustments = NEUTRAL,
    deghost: bool | int = False,
) -> tuple[np.ndarray, list[int]]:
    """Return the fused picture and the fusion order of the images, which decides whose metadata is kept.

    Args:
        ties: keys that order pictures with equal samples, one per picture; None if nobody asks for the order.
    """
    threads = picture.thread_count(threads) if threads is not None or fuser.network is not None else None
    deghost = _checked_deghost(deghost, len(images))
    _check_selective(fuser, validity, adjust, deghost)
    if fuser.focus:
        with _cv2_threads(threads):
            return focus.fuse(images, network=fuser.focus.network).pixels, list(range(len(images)))
    counting = _counting(images, validity)
    if len(counting) < len(images):
        options = {"ties": ties, "device": device, "threads": threads, "adjust": adjust}
        return _fuse_counting(images, validity, counting, task, fuser, deghost=deghost, **options)
    if deghost is not False:
        images, validity = _deghosted(images, validity, None if deghost is True else deghost)
    if (place := _place_of(fuser, device)) is not None:
        with _torch_threads(threads):
            return _started(images, task, fuser, place, ties=ties, validity=validity, adjust=adjust)()
    if fuser.network is not None or fuser.selective:
        order = _order_of_files(images, task, ties)
        if fuser.network is not None:
            return picture.fuse(fuser.network, images, threads, validity or (), adjust), order
        with _torch_threads(threads):
            return _run_selective(fuser.model, images, validity, adjust), order
    order = list(range(len(images)))
    if getattr(fuser.model, "takes_frames", False):
        with _torch_threads(threads):
            return _run_stack(fuser.model, images), order
    planes = _luminance(images)
    if task == "mef":
        order = _exposure_order(_means(planes), images, ties)
        if order != sorted(order):
            planes = planes[order]
    if fuser.room:
        planes[1] = glare.make_room(planes[1], planes[0])
    with _torch_threads(threads):
        fused = _run(fuser.model, planes)
    return _recolour(fused, images, [images[1]] if task == "vif" else images), order


def _check_selective(fuser: _Fuser, validity, adjust: Adjustments, deghost) -> None:
    """Raise InputError if something is asked for that only selective models know."""
    if not fuser.selective and (validity or not adjust.neutral or deghost is not False):
        name = "validity" if validity else "deghost" if adjust.neutral else "adjust"
        raise InputError(f"{name} cannot be used with this model: only pyramid knows it")


def _place_of(fuser: _Fuser, device) -> torch.device | None:
    """Return the device on which a fuser's model takes pictures, or None for the CPU."""
    if fuser.model is None:
        return None
    from ffmef import on_device

    return on_device.place_of(fuser.model, device)


def _started(
    images, task: str, fuser: _Fuser, place: torch.device, *, ties=None, validity=None, adjust: Adjustments
) -> Callable[[], tuple[np.ndarray, list[int]]]:
    """Start to fuse on a device, and return what waits for the fused picture and the fusion order."""
    from ffmef import on_device

    def order_of(sums: list[float]) -> list[int]:
        return _exposure_order(sums, images, ties)

    ordered = order_of if task == "mef" else None
    bracket = on_device.Bracket(images, task, validity, adjust, fuser.room, ordered)
    wait = on_device.start(fuser.model, bracket, place)
    if not on_device.takes_pictures(fuser.model, task):
        return wait
    order = _order_of_files(images, task, ties)  # while the device works
    return lambda: (wait()[0], order)


def _order_of_files(images: list[np.ndarray], task: str, ties: list[bytes] | None) -> list[int]:
    """Return the order in which files give their metadata, for models to which the order of exposures means nothing.

    Every eighth pixel is enough for it.
    """
    if task != "mef" or ties is None:
        return list(range(len(images)))
    return _exposure_order(_means(_luminance([image[::8, ::8] for image in images])), images, ties)


def _counting(images: list[np.ndarray], validity: list[np.ndarray | None] | None) -> list[int]:
    """Return the indices of the images with any usable pixel; all indices if no image has one."""
    everything = list(range(len(images)))
    if not validity:
        return everything
    return [index for index, part in enumerate(validity) if part is None or part.any()] or everything


def _fuse_counting(images, validity, counting: list[int], task: str, fuser: _Fuser, *, ties, deghost, **options):
    """Fuse as :func:`_fuse` does, ignoring the images that count nowhere."""
    chosen = counting * 2 if len(counting) == 1 else counting  # a picture fused with itself is unchanged
    if not isinstance(deghost, bool):
        if deghost not in chosen:
            raise InputError(f"deghost must name a frame that can be used somewhere, got {deghost}, which cannot")
        deghost = chosen.index(deghost)
    parts = [validity[index] for index in chosen]
    fused, order = _fuse(
        [images[index] for index in chosen],
        task,
        fuser,
        ties=None if ties is None else [ties[index] for index in chosen],
        validity=parts if any(part is not None for part in parts) else None,
        deghost=deghost,
        **options,
    )
    if fused.ndim == 2 and any(image.ndim == 3 for image in images):
        fused = np.repeat(fused[..., None], 3, -1)
    return fused, [chosen[index] for index in order]


def focus_of(task: str, weights: str | None, model, backend: str | None, device) -> _Focus | None:
    """Return how :mod:`ffmef.focus` is to fuse, or None if something else is asked for.

    The formula, ``energy``, is the default for focus stacks on the CPU; the caller may name the model ``focus`` or
    weights of FocusNet instead.

    Raises:
        InputError: the formula or the model is named where it cannot be used.
    """
    if not isinstance(model, str | None):
        return None
    on_cpu = backend in (None, "cpu") and str(device or "cpu") == "cpu"
    if model == focus.NAME or (task == "mff" and (model, weights, backend) == (None, None, None) and on_cpu):
        network = None
    elif model == "focus":
        network = focus_net.read("focus") if on_cpu else None
        if not on_cpu and task == "mff":
            return None  # torch runs it there
    else:
        network = focus_net.read(weights) if model is None and weights is not None and on_cpu else None
        if network is None:
            return None
    name = model or "focus"
    if task != "mff":
        raise InputError(f"model {name} can only be used for task mff, got {task}")
    if None not in (model, weights):
        raise InputError(f"model {name} must be given without weights, got model {model!r} and weights {weights!r}")
    if not on_cpu:
        raise InputError(f"model {name} must run on the CPU, got backend {backend!r} and device {str(device)!r}")
    return _Focus(network)


@contextlib.contextmanager
def _cv2_threads(threads: int | None):
    """Limit OpenCV to this many threads inside the block; None leaves it alone."""
    import cv2

    before = cv2.getNumThreads()
    if threads is not None:
        cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _checked_deghost(deghost, count: int) -> bool | int:
    """Return False, True or an index from 0 of ``count`` images."""
    if isinstance(deghost, bool | np.bool_):
        return bool(deghost)
    if not isinstance(deghost, int | np.integer):
        raise InputError(f"deghost must be True, False or the index of an image, got {deghost!r}")
    if not -count <= deghost < count:
        raise InputError(f"deghost must name one of {count} frames, got {deghost}")
    return int(deghost) % count


def _deghosted(images: list[np.ndarray], validity: list[np.ndarray | None] | None, reference: int | None):
    """Return images without ghosts, and how far each pixel may then be used."""
    from ffmef.deghost import deghost

    if len({image.ndim for image in images}) > 1:
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in images]
    found = deghost(images, reference)
    given = validity or [None] * len(images)
    both = [
        mine if other is None else other if mine is None else np.minimum(mine, other)
        for mine, other in zip(given, found.validity, strict=True)
    ]
    return found.pictures, both if any(part is not None for part in both) else None


def _native_network(source, task: str, backend: str | None, device):
    """Return the native network, which fuses colour pictures in one pass, of named weights, a path or a model."""
    if picture.missing is not None or task == "vif" or str(device or "cpu") != "cpu":
        return None
    if isinstance(source, str | Path):
        return picture.read_network(find(source)) if backend in (None, "cpu") else None
    if not hasattr(source, "fuse_rgb") or source.backend not in (None, "cpu"):
        return None
    on_cpu = next(source.parameters()).device.type == "cpu"
    return picture.network_of(source) if on_cpu else None


def why_not_native(task: str, weights, model: str | None, backend: str | None, device) -> str | None:
    """Return why torch has to fuse what the native library should fuse by these arguments, or None if it need not."""
    if task == "vif" or str(device or "cpu") != "cpu" or backend not in (None, "cpu"):
        return None
    if focus_of(task, weights, model, backend, device) is not None:
        return None
    path = find(_weights_name(task, weights, model, backend))
    if picture.read_network(path) is not None or weight_files.facts(path).get("architecture") != "PyramidFFMEF":
        return None
    if picture.missing is None and path.parent != weight_files.FOLDER:
        return None  # somebody's own model may have sizes without kernels; bundled ones have none
    return picture.missing or "the native library was built from other sources and does not know the bundled weights"


@contextlib.contextmanager
def _torch_threads(threads: int | None):
    """Limit torch to this many threads inside the block; None leaves it alone."""
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def _means(planes: np.ndarray) -> list[float]:
    return [float(plane.mean(dtype=np.float64)) for plane in planes]


def _exposure_order(means: list[float], images: list[np.ndarray], ties: list[bytes] | None) -> list[int]:
    """Return the indices of the images from the darkest to the brightest; the order of the arguments never decides."""

    def key(index: int):
        # Only equal means need the samples, which are large; images that are still equal fuse to the same picture.
        tied = means.count(means[index]) > 1
        samples = np.ascontiguousarray(images[index]).tobytes() if tied else b""
        return means[index], images[index].ndim, samples, ties[index] if ties else b""

    return sorted(range(len(images)), key=key)


# The pictures


def _listed(images, task: str) -> list[tuple[str, np.ndarray]]:
    """Return the images with the names that messages use, infrared before visible."""
    if not isinstance(task, str):  # fuse(under, over) is an easy mistake
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {type(task).__name__}; images must be in a list")
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if task == "vif":
        if not isinstance(images, Mapping) or set(images) != set(ROLES):
            given = sorted(images) if isinstance(images, Mapping) else type(images).__name__
            raise InputError(f"images must be a mapping with the keys infrared and visible for task vif, got {given}")
        return [(f"images[{role!r}]", images[role]) for role in ROLES]
    if isinstance(images, Mapping) or not isinstance(images, Sequence | np.ndarray):
        raise InputError(f"images must be a sequence of arrays for task {task}, got {type(images).__name__}")
    return [(f"images[{index}]", image) for index, image in enumerate(images)]


def _checked(named: list[tuple[str, np.ndarray]], *, in_range: bool = True) -> list[np.ndarray]:
    if len(named) < 2:
        raise InputError(f"images must hold at least 2 pictures, got {len(named)}")
    for name, image in named:
        if not isinstance(image, np.ndarray):
            raise InputError(f"{name} must be a NumPy array, got {type(image).__name__}")
        if isinstance(image, np.ma.MaskedArray) and image.mask.any():
            raise InputError(f"{name} must be a plain array, got a masked one: validity says which pixels to use")
    named = [(name, np.asarray(image).astype(image.dtype.newbyteorder("="), copy=False)) for name, image in named]
    first_name, first = named[0]
    for name, image in named:
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise InputError(f"{name} must have shape (H, W) or (H, W, 3), got {image.shape}")
        if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
            raise InputError(f"{name} must be uint8, uint16 or floating point, got {image.dtype}")
        if image.shape[:2] != first.shape[:2]:
            raise InputError(
                f"{name} must have the size of {first_name}, {_size(first)} (width x height), got {_size(image)}"
            )
        if image.dtype != first.dtype:
            raise InputError(f"{name} must have the dtype of {first_name}, {first.dtype}, got {image.dtype}")
        if image.shape[0] * image.shape[1] < 2:
            raise InputError(
                f"{name} must have at least 2 pixels (the model takes statistics over the picture), got {_size(image)}"
            )
    if in_range:
        _check_range(named)
    return [image for _, image in named]


def _check_range(named: list[tuple[str, np.ndarray]]) -> None:
    for name, image in named:
        if image.dtype.kind == "f":
            low, high = image.min(), image.max()
            if not (low >= 0 and high <= 1):  # NaN fails too
                raise InputError(f"{name} must lie in [0, 1], got values from {low} to {high}")


def _checked_validity(validity, images: list[np.ndarray]) -> list[np.ndarray | None] | None:
    if validity is None:
        return None
    if not isinstance(validity, Sequence | np.ndarray):
        raise InputError(f"validity must be a sequence of maps, got {type(validity).__name__}")
    if len(validity) != len(images):
        raise InputError(f"validity must hold {len(images)} maps, one for each image, got {len(validity)}")
    for index, part in enumerate(validity):
        if part is None:
            continue
        if not isinstance(part, np.ndarray) or part.dtype != np.uint8 or part.shape != images[0].shape[:2]:
            got = f"{part.shape} {part.dtype}" if isinstance(part, np.ndarray) else type(part).__name__
            raise InputError(f"validity[{index}] must be {images[0].shape[:2]} uint8 or None, got {got}")
    return list(validity)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _deepened(samples: np.ndarray, sixteen: bool) -> np.ndarray:
    return samples * np.uint16(257) if sixteen and samples.dtype == np.uint8 else samples


# Colour, in bands of rows


def _bands(height: int, width: int):
    rows = max(1, _BAND // width)
    return (slice(row, row + rows) for row in range(0, height, rows))


def _luminance(images: list[np.ndarray]) -> np.ndarray:
    """Return the luminance of N images as (N, H, W), float32 in [0, 1]."""
    height, width = images[0].shape[:2]
    planes = np.empty((len(images), height, width), np.float32)
    for plane, image in zip(planes, images):
        for rows in _bands(height, width):
            plane[rows] = colour.sample_luminance(image[rows])
    return planes


def _recolour(fused: np.ndarray, images: list[np.ndarray], chroma_sources: list[np.ndarray]) -> np.ndarray:
    """Join the fused luminance, (H, W) in [0, 1], with the merged chroma of the sources."""
    # A grey picture has no chroma, and so no weight in the merge.
    coloured = [image for image in chroma_sources if image.ndim == 3]
    dtype = images[0].dtype
    joined = np.empty((*fused.shape, 3) if coloured else fused.shape, dtype)
    for rows in _bands(*fused.shape):
        joined[rows] = colour.recoloured(fused[rows], [image[rows] for image in coloured], dtype)
    return joined


# The model


def default_weights(task: str) -> str:
    """Return the name of the bundled weights that fuse pictures of a task by default.

    >>> default_weights("mff")
    'focus'
    """
    return registry.default(task).weights_for(task)


def _backend_of_engine(engine: str, backend: str | None) -> str | None:
    """Return the value of ``backend`` that replaces ``engine``, if that is given."""
    if engine not in ("auto", "eager", "fused"):
        raise InputError(f"engine must be one of auto, eager, fused, got {engine!r}")
    if engine == "fused" and backend is not None:
        raise InputError(f"engine 'fused' must be given without a backend, got backend {backend!r}")
    warnings.warn(
        f"engine is deprecated: use backend={None if engine == 'auto' else engine!r}", DeprecationWarning, stacklevel=4
    )
    return backend if engine == "auto" else backend or engine


def _weights_name(task: str, weights: str | None, model: str | None, backend: str | None) -> str:
    """Return the weights to load: those given, or those of a model for the task."""
    if weights is not None:
        if model is not None:
            raise InputError(f"weights cannot be used with the name of a model, got {weights} and {model!r}")
        return weights
    spec = registry.default(task, backend) if model is None else registry.find(model)
    return spec.weights_for(task)


def _load_model(weights: str, images: int, backend: str | None, device):
    """Return the model of the named weights, ready for that many images, or raise an error for the user."""
    import torch

    from ffmef.ops._backends import NAMES, check_device

    try:
        place = torch.device("cpu" if device is None else device)
        if place.type != "cpu":
            _try(place)
    except Exception as error:  # a build of torch without the device raises almost anything
        raise InputError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None
    try:
        check_device(backend if backend in NAMES else None, place)
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error)) from None
    path = find(weights)
    if place.type == "cuda" and place.index is None:  # which GPU this means can change
        place = torch.device("cuda", torch.cuda.current_device())
    model = _ready_model(path, stamp(path), backend, place)
    if spec := registry.of(model):
        spec.check_count(images)
    return model


@functools.cache  # keeps no exceptions; asking at each call would wait for what the device does
def _try(place: torch.device) -> None:
    """Raise what torch does if it cannot use a device."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, device=place).item()


@functools.lru_cache(maxsize=8)
def _ready_model(path: Path, stamp: tuple, backend: str | None, place: torch.device):
    """Return the model of a weight file; all callers share it, so none may change it.

    Reading takes longer than fusing a small picture. A changed file has another stamp, so it is read again.
    """
    from ffmef import models
    from ffmef.ops._backends import why_not
    from ffmef.ops.ffmef_forward import backend_of

    model: Any = models.load(path).eval().to(place)
    if spec := registry.of(model):
        spec.check_backend(backend)
    model.backend = backend
    if backend == "fused":
        sizes = {"channels": model.channels, "kernel_sizes": model.kernel_sizes}
        if (reason := why_not("ffmef_forward", backend_of(place, model.channels), **sizes)) is not None:
            raise InputError(f"backend 'fused' cannot run here: {reason}")
    return model


def _run(model, planes: np.ndarray) -> np.ndarray:
    """Return the model's fused luminance, clamped to [0, 1], on the CPU."""
    import torch

    from ffmef import on_device

    with torch.inference_mode():
        fused = model(torch.from_numpy(planes)[None])
        on_device.check_shape(fused, planes)
        if not bool(torch.isfinite(fused).all()):
            raise InputError(f"model gave {on_device.not_finite('luminance')}")
        return fused[0, 0].clamp(0, 1).float().cpu().numpy()


def _run_stack(model, images: list[np.ndarray]) -> np.ndarray:
    """Return the picture that FocusNet makes, by torch on the CPU: that of :func:`ffmef.focus.fuse`."""
    import torch

    coloured = any(image.ndim == 3 for image in images)
    frames = [
        colour.scaled(image if image.ndim == 3 or not coloured else image[..., None].repeat(3, 2)) for image in images
    ]
    stack = np.stack([frame if coloured else frame[None] for frame in frames]).astype(np.float32)
    with torch.inference_mode():
        fused = model(torch.from_numpy(stack / 255)[None])[0].numpy() * 255
    if not np.isfinite(fused).all():
        raise InputError("model gave a picture that is not finite: its weights do not fit these pictures")
    return colour.unscaled(np.ascontiguousarray(fused.transpose(1, 2, 0) if coloured else fused[0]), images[0].dtype)


def _run_selective(model, images: list[np.ndarray], validity, adjust: Adjustments) -> np.ndarray:
    """Return the picture that PyramidFFMEF makes, by torch on the CPU: equal to the native pass."""
    import torch

    from ffmef.models.pyramid import to_rgb

    dtype, coloured = images[0].dtype, any(image.ndim == 3 for image in images)
    scaled = [colour.scaled(image if image.ndim == 3 else image[..., None].repeat(3, 2)) for image in images]
    with torch.inference_mode():
        rgb = torch.from_numpy(np.stack(scaled).astype(np.float32))[None]
        ycbcr = torch.stack(tuple(colour.rgb_to_ycbcr(one) for one in rgb[0]))[None]
        usable = None
        if validity is not None:
            full = np.full(images[0].shape[:2], 255, np.uint8)
            usable = torch.from_numpy(np.stack([full if part is None else part for part in validity]))
            usable = usable[None] / 255
        fused, shares = model.fuse(ycbcr[:, :, 0].contiguous() / 255, usable, adjust)
        joined = to_rgb(fused, shares, rgb, usable, adjust, ycbcr=ycbcr)
        if not bool(torch.isfinite(joined).all()):
            raise InputError("model gave a picture that is not finite: its weights do not fit these pictures")
        planes = joined[0].numpy()
    fused_picture = colour.unscaled(planes.transpose(1, 2, 0), dtype)
    return np.ascontiguousarray(fused_picture if coloured else fused_picture[..., 0])
