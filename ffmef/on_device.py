"""Fuses pictures on a device of torch that is not the CPU: samples go there and back, and all else happens there.

A GPU does everything on the current stream, and nothing waits for it before the result is asked for. Pictures go
through pinned memory: while one is on its way, the next is copied. Colour is that of :mod:`ffmef.imaging.colour`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ffmef import glare, picture
from ffmef.adjust import NEUTRAL, Adjustments
from ffmef.errors import InputError
from ffmef.imaging import colour
from ffmef.ops import picture_colour

if TYPE_CHECKING:
    from ffmef.models import PyramidFFMEF

Wait = Callable[[], tuple[np.ndarray, list[int]]]


@dataclass
class Bracket:
    """What is to be fused, and how.

    Attributes:
        images: pictures that :func:`ffmef.fuse` accepts.
        task: the task.
        validity: of each image, or None.
        adjust: changes that a model with ``fuse_rgb`` makes.
        room: whether :func:`ffmef.glare.make_room` changes the second image, the visible one.
        order_of: from the sums of the luminance of each image to the order in which the model takes them; None for the
            order given.
    """

    images: list[np.ndarray]
    task: str = "mef"
    validity: Sequence[np.ndarray | None] | None = None
    adjust: Adjustments = NEUTRAL
    room: bool = False
    order_of: Callable[[list[float]], list[int]] | None = None


@dataclass
class _Going:
    """A result that a device computes, and numbers that tell whether it may be used.

    Attributes:
        picture: samples.
        facts: float64 vectors on the device: ``range``, the least and the greatest value of what must be finite;
            ``samples``, those of each floating-point image; ``sums``, of the luminance of each image.
    """

    picture: Tensor
    facts: dict[str, Tensor] = field(default_factory=dict)


def place_of(model: Any, device: str | torch.device | None) -> torch.device | None:
    """Return where a model is to fuse pictures if that is not the CPU: the device, or else where its parameters are.

    Example:
        >>> place_of(None, "cuda:1"), place_of(torch.nn.Linear(2, 2), None)
        (device(type='cuda', index=1), None)
    """
    if model is None:
        return None if device is None or torch.device(device).type == "cpu" else torch.device(device)
    if device is None:
        parameters: Any = getattr(model, "parameters", tuple)()
        device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    place = torch.device(device)
    return None if place.type == "cpu" else place


def takes_pictures(model: Any, task: str) -> bool:
    """Return whether a model fuses coloured pictures itself, in any order."""
    return hasattr(model, "fuse_rgb") and task != "vif"


def start(model: Any, bracket: Bracket, place: torch.device) -> Wait:
    """Start to fuse a bracket, and return what waits for the picture and for the order of its images.

    The waiting function raises :class:`ffmef.picture.OutOfRange` for floating-point samples outside [0, 1].
    """
    with torch.inference_mode(), _whole_float32:
        if takes_pictures(model, bracket.task):
            going = _by_pictures(model, bracket, place)
        elif getattr(model, "takes_frames", False):
            going = _by_frames(model, bracket, place)
        else:
            return _by_luminance(model, bracket, place)
    arrive = _on_the_way_back(going)
    dtype, order = bracket.images[0].dtype, list(range(len(bracket.images)))

    def wait() -> tuple[np.ndarray, list[int]]:
        found, facts = arrive()
        _check(facts, "picture")
        return found.astype(dtype, copy=False), order

    return wait


class _WholeFloat32(contextlib.AbstractContextManager):
    """Keeps convolutions of cuDNN from rounding to TF32, torch's default: that could change a picture by a level.

    The setting is the process's: the first of several threads changes it, and the last one restores it.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock, contextlib.suppress(RuntimeError):  # torch refuses to say where finer settings were made
            if self._inside == 0:
                self._before = torch.backends.cudnn.allow_tf32
                torch.backends.cudnn.allow_tf32 = False
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._inside == 1 and self._before:
                torch.backends.cudnn.allow_tf32 = True
            self._inside = max(0, self._inside - 1)


_whole_float32 = _WholeFloat32()


# How models take pictures


def _by_pictures(model: PyramidFFMEF, bracket: Bracket, place: torch.device) -> _Going:
    """Fuse by a model that fuses colour itself; grey pictures become coloured ones there."""
    images = bracket.images
    pictures = _sent(images, place, torch.float32)
    grey = all(image.ndim == 2 for image in images)
    if grey and isinstance(pictures, Tensor):
        pictures = pictures[..., None].expand(*pictures.shape, 3).contiguous()
    elif any(image.ndim == 2 for image in images):
        pictures = [one if one.dim() == 3 else one[..., None].expand(*one.shape, 3).contiguous() for one in pictures]
    facts = _samples_range(pictures)
    if bracket.validity is None and bracket.adjust.neutral and _is_recorded(model, len(images)):
        from ffmef.graphs import LARGEST_PICTURES, through_graphs

        stack = pictures if isinstance(pictures, Tensor) else torch.stack(pictures)
        fused = through_graphs(model, _fused_stack, LARGEST_PICTURES)(stack)
    elif bracket.validity is None and bracket.adjust.neutral:
        fused = model.fuse_rgb(list(pictures))
    else:
        full = np.full(images[0].shape[:2], 255, np.uint8)
        usable = [full if part is None else part for part in bracket.validity or ()]
        fused = model.fuse_rgb(list(pictures), list(_sent(usable, place)) if usable else None, bracket.adjust)
    if fused.is_floating_point():
        facts["range"] = _range(fused)
    return _Going(fused[..., 0].contiguous() if grey else fused, facts)


def _is_recorded(model: PyramidFFMEF, count: int) -> bool:
    return hasattr(model, "why_not_native") and model.why_not_native(count=count) is None


def _fused_stack(model, pictures: Tensor) -> Tensor:
    return model.fuse_rgb(list(pictures.unbind()))


def _by_frames(model, bracket: Bracket, place: torch.device) -> _Going:
    """Fuse by a model that takes frames, each channel by itself."""
    pictures = list(_sent(bracket.images, place))
    coloured = any(one.dim() == 3 for one in pictures)
    facts = _samples_range(pictures)
    frames = []
    for one in pictures:
        planes = colour.scaled(one).float()
        frames.append(planes if planes.dim() == 3 else planes.expand(3 if coloured else 1, *planes.shape))
    fused = model(torch.stack(frames)[None] / 255)[0] * 255
    facts["range"] = _range(fused)
    samples = colour.unscaled(fused.permute(1, 2, 0) if coloured else fused[0], pictures[0].dtype)
    return _Going(samples.contiguous(), facts)


def _by_luminance(model, bracket: Bracket, place: torch.device) -> Wait:
    """Fuse by a model that takes luminance, in an order that depends on it."""
    pictures = list(_sent(bracket.images, place, apart=True))
    facts = _samples_range(pictures)
    planes = picture_colour.sample_luminance(pictures)
    order = list(range(len(pictures)))
    if bracket.order_of is not None:
        # Sums of floating-point numbers usually depend on their order, but these are exact: luminance is a multiple of
        # 2 ** -27, and 2 ** 26 pixels of it fit into 53 bits.
        facts["sums"] = planes.sum((1, 2), dtype=_widest(place))
        going = _joined(model, planes[facts["sums"].argsort(stable=True)], pictures, bracket, facts)
    else:
        going = _joined(model, planes, pictures, bracket, facts)
    arrive = _on_the_way_back(going)

    def wait() -> tuple[np.ndarray, list[int]]:
        found, facts = arrive()
        _check(facts, "luminance")
        final = order
        if bracket.order_of is not None:
            sums = facts["sums"].tolist()
            final = bracket.order_of(sums)
            if final != sorted(order, key=lambda index: sums[index]):  # of images of equal sums, samples decide
                with torch.inference_mode(), _whole_float32:
                    again = _joined(model, planes[torch.tensor(final, device=place)], pictures, bracket, {})
                found, facts = _on_the_way_back(again)()
                _check(facts, "luminance")
        return found.astype(bracket.images[0].dtype, copy=False), final

    return wait


def _joined(model, planes: Tensor, pictures: list[Tensor], bracket: Bracket, facts: dict[str, Tensor]) -> _Going:
    """Fuse luminance (N, H, W) and join the result with the colour of the pictures."""
    from ffmef.graphs import through_graphs

    if bracket.room:
        planes = torch.stack([planes[0], glare.make_room(planes[1], planes[0])])
    fused = through_graphs(model)(planes[None])
    check_shape(fused, planes)
    facts["range"] = _range(fused)
    sources = [one for one in (pictures[1:] if bracket.task == "vif" else pictures) if one.dim() == 3]
    y = fused[0, 0].clamp(0, 1).float()
    return _Going(picture_colour.recoloured(y, sources, pictures[0].dtype), facts)


def check_shape(fused: Tensor, planes) -> None:
    """Raise InputError unless a model returned luminance (1, 1, H, W) for planes (N, H, W)."""
    expected = (1, 1, *planes.shape[1:])
    if tuple(fused.shape) != expected:
        raise InputError(f"model must return luminance of shape {expected}, got {tuple(fused.shape)}")


# There and back


def _sent(
    arrays: Sequence[np.ndarray], place: torch.device, floating: torch.dtype | None = None, *, apart: bool = False
):
    """Return arrays of one dtype on a device: as one tensor if they have one shape, otherwise, or ``apart``, as a list.

    Copies to a GPU may still be under way. Floating-point numbers become ``floating``, or else at least float32.
    """
    given = [torch.from_numpy(without_flips(_known(array))) for array in arrays]
    dtype = given[0].dtype
    if dtype.is_floating_point:
        dtype = floating or torch.promote_types(dtype, torch.float32)
        dtype = torch.float32 if _widest(place) == torch.float32 else dtype
    if not apart and len({one.shape for one in given}) == 1:
        there: Any = torch.empty((len(given), *given[0].shape), dtype=dtype, device=place)
    else:
        there = [torch.empty(one.shape, dtype=dtype, device=place) for one in given]
    for target, tensor in zip(there, given, strict=True):
        if place.type == "cuda":
            tensor = torch.empty(tensor.shape, dtype=dtype, pin_memory=True).copy_(tensor)
        target.copy_(tensor, non_blocking=True)
    return there


def _known(array: np.ndarray) -> np.ndarray:
    """Return the array in a dtype that torch knows; floating point wider than float64 it does not."""
    return array.astype(np.float64) if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array


def without_flips(array: np.ndarray) -> np.ndarray:
    """Return the array, contiguous for torch too: NumPy ignores even a negative stride of an axis of one pixel."""
    array = np.ascontiguousarray(array)
    return array.copy() if any(stride < 0 for stride in array.strides) else array


def _widest(place: torch.device) -> torch.dtype:
    return torch.float32 if place.type == "mps" else torch.float64


def _range(values: Tensor) -> Tensor:
    """Return the least and the greatest value, or NaN if there is one."""
    return torch.stack(torch.aminmax(values)).to(_widest(values.device))


def _samples_range(pictures) -> dict[str, Tensor]:
    if not pictures[0].is_floating_point():
        return {}
    return {"samples": torch.cat([_range(one) for one in pictures])}


def _on_the_way_back(going: _Going) -> Callable[[], tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Start to copy a result and its facts to the host, and return what waits for them."""
    names, place = list(going.facts), going.picture.device
    sizes = [len(going.facts[name]) for name in names]
    numbers = torch.cat([going.facts[name] for name in names]) if names else None
    tensors = [going.picture] if numbers is None else [going.picture, numbers]
    if place.type == "cuda":
        back = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
        arrived = torch.cuda.current_stream(place).record_event()
    else:
        back, arrived = [tensor.cpu() for tensor in tensors], None

    def wait() -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if arrived is not None:
            arrived.synchronize()
        found = back[0].numpy() if arrived is None else _out_of(back[0])
        parts = np.split(back[1].numpy().astype(np.float64), np.cumsum(sizes)[:-1]) if names else []
        return found, dict(zip(names, parts, strict=True))

    return wait


def _out_of(pinned: Tensor) -> np.ndarray:
    """Return a copy in ordinary memory. It is NumPy's, which asks for huge pages: that took a third of the time."""
    found = np.empty_like(pinned.numpy())
    torch.from_numpy(found).copy_(pinned)
    return found


def _check(facts: dict[str, np.ndarray], what: str) -> None:
    """Raise for samples outside [0, 1], and for results that are not finite."""
    for index, (low, high) in enumerate(facts.get("samples", np.empty(0)).reshape(-1, 2).tolist()):
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise picture.OutOfRange(f"images[{index}] must lie in [0, 1], got values from {low} to {high}")
    if not np.isfinite(facts.get("range", np.zeros(2))).all():
        raise InputError(f"model gave {not_finite(what)}")


def not_finite(what: str) -> str:
    """Return the end of the message about a result that is not finite."""
    article = "luminance" if what == "luminance" else "a picture"
    return f"{article} that is not finite: its weights do not fit these pictures"
