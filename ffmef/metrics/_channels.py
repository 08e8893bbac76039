"""Checks the three pictures that a metric compares, and keeps what the metrics of one colour channel share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

SOURCES = ("a", "b")
MORE = "cdeghijklmnopqrstuvwxyz"  # names of a bracket's further sources; f is the fused picture
_GREY_WEIGHTS = (0.298936, 0.587043, 0.114021)


def as_picture(value: object, name: str) -> np.ndarray:
    """Return a picture as uint8 (H, W) or (H, W, 3), or say what is wrong with ``name``."""
    if hasattr(value, "detach"):  # a torch tensor, in any layout
        array: np.ndarray = value.detach().cpu().numpy()
        if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
            array = np.moveaxis(array, 0, -1)
        value = array
    picture = np.asarray(value)
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[..., 0]
    if picture.ndim != 2 and not (picture.ndim == 3 and picture.shape[2] == 3):
        raise ValueError(f"{name} must be (H, W) or (H, W, 3), got {picture.shape}")
    if picture.size == 0:
        raise ValueError(f"{name} must have pixels, got {picture.shape}")
    if picture.dtype != np.uint8:
        if picture.dtype.kind not in "uif":
            raise ValueError(f"{name} must hold numbers, got {picture.dtype}")
        bad = ~((picture >= 0) & (picture <= 255) & (picture == np.floor(picture)))  # NaN fails too
        if bad.any():
            raise ValueError(f"{name} must hold whole grey levels 0..255, got {picture[bad].flat[0]}")
        picture = picture.astype(np.uint8)
    return picture


def to_grey(picture: np.ndarray) -> np.ndarray:
    r"""Return the rounded luma of a colour picture, and a grey picture as it is.

    .. math:: \lfloor 0.298936 R + 0.587043 G + 0.114021 B + 0.5 \rfloor

    Use it to compare grey pictures with colour pictures. Source: ITU-R BT.601.

    Args:
        picture: uint8 (H, W, 3) or (H, W).

    Returns:
        uint8 (H, W).

    Example:
        >>> to_grey(np.uint8([[[255, 0, 0], [0, 255, 0]]])).tolist()
        [[76, 150]]
    """
    if picture.ndim == 2:
        return picture
    red, green, blue = (weight * picture[..., i] for i, weight in enumerate(_GREY_WEIGHTS))
    return np.floor(red + green + blue + 0.5).astype(np.uint8)


def stretch_table(low: int, high: int, *, unit: bool = False) -> np.ndarray:
    """Return the table of 256 grey levels that stretches ``low``..``high`` to 0..255 and rounds, halves up.

    Most of the toolkit stretches grey levels, where halves are exact. QCB stretches levels divided by 255 (``unit``),
    where rounding decides which side of a half a level falls; the order of the operations is the toolkit's.
    """
    levels = np.clip(np.arange(256), low, high)
    if unit:
        exact = (levels / 255 - low / 255) / (high / 255 - low / 255) * 255
    else:
        exact = 255.0 * (levels - low) / (high - low)
    return np.floor(exact + 0.5).astype(np.uint8)


def entropy(counts: np.ndarray) -> float:
    """Return the entropy in bits of a histogram of counts."""
    used = counts[counts > 0] / counts.sum()
    return float(-(used * np.log2(used)).sum())


def _remembered(method: Callable) -> Callable:
    """Compute once per channel and arguments; results are freed with the channel."""

    @functools.wraps(method)
    def wrapper(self, *names):
        key = (method.__name__, *names)
        if key not in self._memory:
            self._memory[key] = method(self, *names)
        return self._memory[key]

    return wrapper


class Channel:
    """One colour channel of the sources ``a`` and ``b`` and of the fused picture ``f``, with shared intermediates.

    All methods name pictures by the letters a, b and f. Everything is computed on first use and kept as long as the
    channel exists.
    """

    def __init__(
        self,
        a: np.ndarray,
        b: np.ndarray,
        fused: np.ndarray,
        fused_grey: np.ndarray | None = None,
        more: Sequence[np.ndarray] = (),
    ):
        self._memory: dict = {}
        named = (("a", a), ("b", b), *zip(MORE, more, strict=False), ("f", fused))
        self.levels = {name: np.ascontiguousarray(x) for name, x in named}
        self.sources = [name for name in self.levels if name != "f"]
        self.shape: tuple[int, int] = a.shape
        self.pixels = a.size
        self.fused_grey = self.levels["f"] if fused_grey is None else fused_grey

    @_remembered
    def histogram(self, name: str) -> np.ndarray:
        """Counts of the 256 grey levels."""
        return np.bincount(self.levels[name].ravel(), minlength=256)

    @_remembered
    def squared_error(self, source: str) -> int:
        """Sum of squared differences between a source and the fused channel."""
        difference = self.levels[source].astype(np.int32) - self.levels["f"]
        return int((difference * difference).sum(dtype=np.int64))

    @_remembered
    def _stretch_table(self, name: str, unit: bool) -> np.ndarray | None:
        used = np.flatnonzero(self.histogram(name))
        low, high = int(used[0]), int(used[-1])
        if low < high:
            return stretch_table(low, high, unit=unit)
        return np.arange(256, dtype=np.uint8) if low == 0 else None

    @property
    def stretchable(self) -> bool:
        """Whether all three channels can be stretched: a constant one gives 0/0 unless it is all zero."""
        return all(self._stretch_table(name, False) is not None for name in "abf")

    @_remembered
    def stretched(self, name: str, unit: bool = False) -> np.ndarray:
        """The channel stretched to 0..255 and rounded, see :func:`stretch_table`."""
        return self._stretch_table(name, unit)[self.levels[name]]

    @_remembered
    def joint_histogram(self, first: str, second: str) -> np.ndarray:
        """Counts (256, 256) of pairs of stretched levels, rows for ``first``."""
        return _joint_counts(self.stretched(first), self.stretched(second))

    @_remembered
    def joint_levels(self, first: str, second: str) -> np.ndarray:
        """Counts (256, 256) of pairs of levels as they are, rows for ``first``."""
        return _joint_counts(self.levels[first], self.levels[second])

    @_remembered
    def product_sum(self, first: str, second: str) -> int:
        """Exact sum of the products of two pictures' levels."""
        levels = np.arange(256, dtype=np.int64)
        return int(levels @ self.joint_levels(first, second) @ levels)

    def scatter(self, first: str, second: str) -> int:
        """Exact covariance of two pictures' levels, times the square of the number of pixels."""
        levels = np.arange(256, dtype=np.int64)
        sums = [int(self.histogram(name) @ levels) for name in (first, second)]
        return self.pixels * self.product_sum(first, second) - sums[0] * sums[1]


def _joint_counts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    index = first.astype(np.intp).ravel()
    index *= 256
    index += second.ravel()
    return np.bincount(index, minlength=65536).reshape(256, 256)


class Pictures:
    """Checked sources and fused picture.

    Grey sources are compared with the first channel of a colour fused picture only, as the toolkits do. A grey source
    beside a colour one is compared with every channel.
    """

    def __init__(self, a: object, b: object, fused: object, more: Sequence[object] = ()):
        self.a, self.b, self.fused = (as_picture(x, n) for x, n in ((a, "a"), (b, "b"), (fused, "fused")))
        if len(more) > len(MORE):
            raise ValueError(f"more must hold at most {len(MORE)} pictures, got {len(more)}")
        self.more = [as_picture(x, f"more[{i}]") for i, x in enumerate(more)]
        named = [(f"more[{i}]", picture) for i, picture in enumerate(self.more)]
        for name, picture in (("b", self.b), *named, ("fused", self.fused)):
            if picture.shape[:2] != self.a.shape[:2]:
                raise ValueError(f"{name} must have the size of a, {self.a.shape[:2]}, got {picture.shape[:2]}")
        if self.fused.ndim == 2 and self.in_colour:
            raise ValueError(
                "fused must have 3 channels like its colour source, got a grey picture; "
                "compare on luma: ffmef.metrics.to_luma of each picture"
            )

    @property
    def sources(self) -> list[np.ndarray]:
        return [self.a, self.b, *self.more]

    @property
    def in_colour(self) -> bool:
        """Whether any source has colour."""
        return any(picture.ndim == 3 for picture in self.sources)

    def channels(self) -> Iterator[Channel]:
        """Yield the channels to score, one at a time so that only one's intermediates are in memory."""
        if not self.in_colour:
            if self.fused.ndim == 2:
                yield Channel(self.a, self.b, self.fused, more=self.more)
            else:
                yield Channel(self.a, self.b, self.fused[..., 0], to_grey(self.fused), self.more)
            return
        for c in range(3):
            plane = [x if x.ndim == 2 else x[..., c] for x in (*self.sources, self.fused)]
            yield Channel(plane[0], plane[1], plane[-1], more=plane[2:-1])


def channel_mean(measure: Callable[[Channel], float], a: object, b: object, fused: object) -> float:
    """Return the mean of a measure over the channels of three pictures."""
    return float(np.mean([measure(channel) for channel in Pictures(a, b, fused).channels()]))
