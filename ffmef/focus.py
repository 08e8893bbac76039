"""Focus stacks: two to thousands of frames, one after another, fused by how sharp each is around each pixel.

Nothing here is learned. The sharpness of a frame in a band of the Laplacian pyramid is the energy of that band in a
Gaussian window, plus that of the finer bands, which tell the frame in focus from the halo of one out of focus. A
frame's weight in the average of a band is the eighth power of its energy relative to the sharpest frame's, the energy
of noise added to both: one frame decides where the frames differ, and noise averages out where they do not. Frames are
read twice, and memory depends only on the size of a frame. Sums are of whole numbers, so the order of the frames
changes no sample.

Sources: Burt, Adelson, A multiresolution spline (ACM Transactions on Graphics 1983), for blending band by band; Huang,
Jing, Evaluation of focus measures in multi-focus image fusion (Pattern Recognition Letters 2007), for the energy of the
Laplacian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ffmef.errors import InputError

if TYPE_CHECKING:
    from ffmef.focus_net import Network, Spread

NAME = "energy"  # what --model calls the formula
BANDS = 6  # of the pyramid, besides the mean picture
WINDOW = 1.5  # deviation of the Gaussian window in pixels of its band
NEXT_BAND = 0.25  # weight of the next coarser band's energy
FINER_BANDS = 2.0  # weight of the finer bands' energy
SMOOTH = 3.0  # deviation of the window of the depth map in pixels
NOISE = 1.0  # energy in squared grey levels below which frames count as equally sharp, besides that of their noise
NOISE_SHARE = 0.05  # of the places, the flattest, that tell a frame's noise
NOISE_GAIN = 4.0  # times that energy
SQUARINGS = 3  # of a weight: the power 8
FEATURES = 14  # that the network sees per pixel of a band
FLOOR = 0.25  # energy in squared grey levels, added before the features' logarithms
CENTRE, SPREAD = 3.0, 3.0  # of the features
LOGITS = -30.0, 0.0  # least and greatest that the network may predict: weights up to 1
MOST_FRAMES = 4096  # of equal weight that fit in the sums
_SUM_STEPS = 1 << 11  # steps of a grey level, in sums of weighted bands over that many frames
_WEIGHT_STEPS = 1 << 18  # steps of a weight of 1, in sums of weights over that many
SLACK = 2.0**-10  # grey levels by which floating point may miss a whole one; less than half a step of 16 bits
_ROWS_OF = 1 << 17  # pixels processed at a time, where a temporary array would be as large as the picture

Frame = np.ndarray | Callable[[], np.ndarray]


@dataclass(frozen=True)
class Fused:
    """The fused picture and, if asked for, the number (from 0) of the frame that was sharpest at each pixel."""

    pixels: np.ndarray
    sharpest: np.ndarray | None


def fuse(frames: Sequence[Frame], *, depth_map: bool = False, network: Network | None = None) -> Fused:
    r"""Fuse frames of one scene that differ in focus.

    .. math:: B_l = \frac{\sum_k w_{kl} L_l(x_k)}{\sum_k w_{kl}}, \qquad
        w_{kl} = \Big(\frac{E_{kl} + 1 + 2^{l+2} n}{\max_j E_{jl} + 1 + 2^{l+2} n}\Big)^8, \qquad
        E_{kl} = S_{kl} + \tfrac14 {\uparrow} S_{k,l+1} + 2 {\downarrow} E_{k,l-1}, \qquad S_{kl} = g * (L_l x_k)^2

    With :math:`L_l` the bands of a Laplacian pyramid of frame :math:`x_k` in grey levels 0..255, the finest of which
    has l = 0, squares averaged over the channels, and g a Gaussian of 1.5 pixels of the band. The frames' noise n is
    the least over them of the fifth percentile of :math:`S_{k0}`; white noise doubles E from band to band. With a
    network, n is 0. What is left above the bands is weighted by the energy of
    the coarsest of them. Each channel of the result is limited to the range of all frames in the nearest 4 x 4 pixels,
    the next whole grey level included, because bands of different frames ring where they meet.

    Args:
        frames: two or more arrays of one size, (H, W, 3) or (H, W), uint8, uint16 or floating point in [0, 1]; or
            functions that return one, called twice, or four times with a network; then only one frame is in memory at
            a time.
        depth_map: also return which frame was sharpest, by the finest energy in a window of 3 pixels.
        network: predicts the weights in place of the formula, see :class:`ffmef.models.FocusNet`;
            :func:`ffmef.focus_net.read` returns it.

    Returns:
        The picture, of the deepest frame's dtype, in colour if any frame is, and which frame was sharpest, uint8
        (H, W), or uint16 from 257 frames on.

    Raises:
        InputError: there are fewer than two frames, or more than 4096, or one is no such array or differs in size.

    Example:
        >>> left = np.full((8, 8), 100, np.uint8)
        >>> right = left.copy()
        >>> left[::2, :4] = right[::2, 4:] = 200
        >>> fused = fuse([left, right], depth_map=True)
        >>> fused.sharpest[4].tolist(), fused.pixels.shape
        ([0, 0, 0, 0, 1, 1, 1, 1], (8, 8))
    """
    if not isinstance(frames, Sequence | np.ndarray):
        raise InputError(f"frames must be a sequence of arrays or functions, got {type(frames).__name__}")
    if not 2 <= len(frames) <= MOST_FRAMES:
        raise InputError(f"frames must be 2 to {MOST_FRAMES}, got {len(frames)}")
    best, noise, sharpest, form, spread = _sharpest(frames, depth_map, network is not None)
    if network is None or spread is None:
        return Fused(_blended(frames, form, _by_formula(form, best, noise)), sharpest)
    weigh = _by_network(frames, form, best, spread, network)
    return Fused(_blended(frames, form, weigh, again=True), sharpest)


# First pass: how sharp the sharpest frame is, and which one it is


@dataclass(frozen=True)
class _Form:
    """What the frames have in common."""

    shape: tuple[int, int]
    dtype: np.dtype
    coloured: bool

    @property
    def levels(self) -> list[tuple[int, int]]:
        """The sizes of the bands, finest first, and of what is left."""
        shapes = [self.shape]
        while len(shapes) <= BANDS and min(shapes[-1]) > 1:
            height, width = shapes[-1]
            shapes.append(((height + 1) // 2, (width + 1) // 2))
        return shapes


def _scale(dtype: np.dtype) -> float:
    """Return the factor that scales samples to grey levels 0..255."""
    return 255.0 if dtype.kind == "f" else 255.0 / np.iinfo(dtype).max


def _pixels(frame: Frame) -> np.ndarray:
    pixels = frame() if callable(frame) else frame
    if isinstance(pixels, np.ndarray):
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels


def _sharpest(
    frames: Sequence[Frame], depth_map: bool, spreads: bool
) -> tuple[list[np.ndarray], float, np.ndarray | None, _Form, Spread | None]:
    """Return the greatest energy in each band, the frames' noise, which frame is sharpest, and the energies' spread."""
    best: list[np.ndarray] = []
    noises: list[float] = []
    sharpest = np.zeros((0, 0), np.uint8)
    form: _Form | None = None
    spread: Spread | None = None
    for index, frame in enumerate(frames):
        pixels = _pixels(frame)
        _check(pixels, index, form)
        if form is None:
            form = _Form(pixels.shape[:2], pixels.dtype, False)
            best = [np.full(shape, -1, np.float32) for shape in form.levels]
            spread = _spread(form) if spreads else None
            if depth_map:
                sharpest = np.zeros(form.shape, np.uint8 if len(frames) <= 256 else np.uint16)
                smoothest = np.full(form.shape, -1, np.float32)
        dtype = max(form.dtype, pixels.dtype, key=lambda d: (d.kind == "f", d.itemsize))
        form = _Form(form.shape, dtype, form.coloured or pixels.ndim == 3)
        energies = _energies(pixels, form.levels, noises)
        del pixels
        for greatest, energy in zip(best, energies, strict=True):
            np.maximum(greatest, energy, out=greatest)
        if spread:
            spread.add(energies)
        if depth_map:
            finest = _smoothed(energies[0], SMOOTH)
            for rows in _strips(form.shape):
                np.putmask(sharpest[rows], finest[rows] > smoothest[rows], index)
            np.maximum(smoothest, finest, out=smoothest)
            del finest
        del energies
    assert form is not None  # there are at least two frames
    return best, min(noises), sharpest if depth_map else None, form, spread


def _spread(form: _Form) -> Spread:
    from ffmef import focus_net

    return focus_net.Spread(form.levels)


def _check(pixels: np.ndarray, index: int, form: _Form | None) -> None:
    if not isinstance(pixels, np.ndarray):
        raise InputError(f"frames[{index}] must be a NumPy array or a function, got {type(pixels).__name__}")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or pixels.size == 0:
        raise InputError(f"frames[{index}] must have shape (H, W) or (H, W, 3), got {pixels.shape}")
    if form is not None and pixels.shape[:2] != form.shape:
        raise InputError(f"frames[{index}] must have the size of frames[0], {form.shape}, got {pixels.shape[:2]}")
    if pixels.dtype not in (np.uint8, np.uint16) and pixels.dtype.kind != "f":
        raise InputError(f"frames[{index}] must be uint8, uint16 or floating point, got {pixels.dtype}")
    if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails too
        raise InputError(f"frames[{index}] must lie in [0, 1], got values from {pixels.min()} to {pixels.max()}")


def _strips(shape: tuple[int, int]):
    rows = max(2, _ROWS_OF // shape[1] // 2 * 2)  # whole cells of :class:`_Range`
    return (slice(top, top + rows) for top in range(0, shape[0], rows))


def _plane(pixels: np.ndarray, channel: int) -> np.ndarray:
    """Return one channel in grey levels 0..255; a grey frame gives the same for every channel."""
    plane = (pixels if pixels.ndim == 2 else pixels[..., channel]).astype(np.float32)
    plane *= np.float32(_scale(pixels.dtype))
    return plane


def _smoothed(values: np.ndarray, deviation: float) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(values, (0, 0), deviation)


def _energies(pixels: np.ndarray, shapes: list[tuple[int, int]], noises: list[float] | None = None) -> list[np.ndarray]:
    """Return how sharp a frame is around each place, for each band and for what is left; append its noise."""
    import cv2

    own = _squares(pixels, shapes)
    for energy in own:
        cv2.GaussianBlur(energy, (0, 0), WINDOW, dst=energy)
    if noises is not None:
        noises.append(float(np.quantile(own[0][::4, ::4], NOISE_SHARE)) if own else 0.0)
    return _summed(own, shapes)


def _squares(pixels: np.ndarray, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Return the squares of each band, averaged over the channels."""
    import cv2

    channels = 1 if pixels.ndim == 2 else 3
    own = [np.zeros(shape, np.float32) for shape in shapes[:-1]]
    for channel in range(channels):
        rest = _plane(pixels, channel)
        for energy in own:
            half = cv2.pyrDown(rest)
            for rows, band in _band(rest, half):
                np.multiply(band, band, out=band)
                energy[rows] += band
            rest = half
        rest = half = np.empty(0)  # never hold two channels
    for energy in own:
        energy *= np.float32(1 / channels)
    return own


def _summed(own: list[np.ndarray], shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Add its neighbours' part to the energy of each band, in place; return them and the energy of what is left."""
    import cv2

    finer: np.ndarray | None = None
    for level, energy in enumerate(own):
        if level + 1 < len(own):
            following: np.ndarray = cv2.resize(own[level + 1], energy.shape[::-1], interpolation=cv2.INTER_LINEAR)
            following *= np.float32(NEXT_BAND)
            energy += following
            del following
        if finer is not None:
            energy += finer
        half: np.ndarray = cv2.pyrDown(energy)
        half *= np.float32(FINER_BANDS)
        finer = half
    return [*own, np.ones(shapes[-1], np.float32) if finer is None else finer]


def _band(plane: np.ndarray, half: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows and the band of a plane there: the plane less ``cv2.pyrUp`` of its half, the same to the bit.

    Each of its rows depends on at most three rows of the half.
    """
    import cv2

    height, width = plane.shape
    for rows in _strips(plane.shape):
        bottom = min(rows.stop, height)
        first, last = max(rows.start // 2 - 1, 0), min((bottom + 1) // 2 + 1, half.shape[0])
        coarse = cv2.pyrUp(half[first:last], dstsize=(width, min(2 * last, height) - 2 * first))
        yield rows, plane[rows] - coarse[rows.start - 2 * first : bottom - 2 * first]


# Second pass: the weighted mean of each band


Weigher = Callable[[Frame], list[np.ndarray]]  # from a frame to its weights, up to 1, in each band


def _by_formula(form: _Form, best: list[np.ndarray], noise: float) -> Weigher:
    def weigh(frame: Frame) -> list[np.ndarray]:
        weights = _energies(_pixels(frame), form.levels)
        for level, (weight, greatest) in enumerate(zip(weights, best, strict=True)):
            _weigh(weight, greatest, NOISE + NOISE_GAIN * 2**level * noise)
        return weights

    return weigh


def _by_network(
    frames: Sequence[Frame], form: _Form, best: list[np.ndarray], spread: Spread, network: Network
) -> Weigher:
    from ffmef import focus_net

    greatest, below = spread.below(best)

    def logits(frame: Frame) -> list[np.ndarray]:
        return focus_net.logits(network, frame, form.levels, greatest, below)

    # One more pass: all logits may be far below zero, and sums of whole numbers would lose small weights.
    tops = focus_net.greatest_logits(logits, frames, form.levels)
    return lambda frame: focus_net.weights(logits(frame), tops)


def _blended(frames: Sequence[Frame], form: _Form, weigh: Weigher, again: bool = False) -> np.ndarray:
    """Return the frames' weighted mean; ``again`` reads each frame once more rather than hold it during weighing."""
    import cv2

    channels = 3 if form.coloured else 1
    # Sums of grey levels and of weights must stay below 2**31.
    spare = MOST_FRAMES >> (len(frames) - 1).bit_length()
    sum_steps, weight_steps = _SUM_STEPS * spare, _WEIGHT_STEPS * spare
    totals = [[np.zeros(shape, np.int32) for shape in form.levels] for _ in range(channels)]
    weight_totals = [np.zeros(shape, np.int32) for shape in form.levels]
    ranges = [_Range(form.shape) for _ in range(channels)]
    for frame in frames:
        if again:
            weights = weigh(frame)
            pixels = _pixels(frame)
        else:
            pixels = _pixels(frame)
            weights = weigh(pixels)
        for weight, total in zip(weights, weight_totals, strict=True):
            _add(total, weight, None, weight_steps)
        for channel, of_channel in enumerate(totals):
            rest = _plane(pixels, channel)
            ranges[channel].add(rest)
            for total, weight in zip(of_channel[:-1], weights[:-1], strict=True):
                half = cv2.pyrDown(rest)
                for rows, band in _band(rest, half):
                    _add(total[rows], weight[rows], band, sum_steps)
                rest = half
            _add(of_channel[-1], weights[-1], rest, sum_steps)
            rest = half = np.empty(0)  # freed
        del pixels, weights
    picture = np.empty((*form.shape, 3) if form.coloured else form.shape, form.dtype)
    for channel in range(channels):
        plane = _collapsed(totals[channel], weight_totals)
        totals[channel] = []
        target = picture[..., channel] if form.coloured else picture
        for rows in _strips(form.shape):
            _store(ranges[channel].limited(plane, rows), target[rows], form)
    return picture


class _Range:
    """The least and greatest of all frames in cells of 2 x 2 pixels of a channel, in whole grey levels.

    Where bands of different frames meet, as at a depth edge before strong texture, their sum may ring: it leaves the
    range of every frame.
    """

    def __init__(self, shape: tuple[int, int]):
        cells = (shape[0] + 1) // 2, (shape[1] + 1) // 2
        self._least, self._greatest = np.full(cells, 255, np.uint8), np.zeros(cells, np.uint8)

    def add(self, plane: np.ndarray) -> None:
        """Widen the range to a frame's grey levels."""
        import cv2

        cell = np.ones((2, 2), np.uint8)
        for rows in _strips(plane.shape):
            cells = slice(rows.start // 2, rows.stop // 2)
            least = cv2.erode(plane[rows], cell, anchor=(0, 0))[::2, ::2] + np.float32(SLACK)
            np.minimum(self._least[cells], np.floor(least).astype(np.uint8), out=self._least[cells])
            greatest = cv2.dilate(plane[rows], cell, anchor=(0, 0))[::2, ::2] - np.float32(SLACK)
            np.maximum(self._greatest[cells], np.ceil(greatest).astype(np.uint8), out=self._greatest[cells])

    def limited(self, plane: np.ndarray, rows: slice) -> np.ndarray:
        """Return rows of a plane within the range of the cell around each pixel and of the three nearest others."""
        import cv2

        bottom, window = min(rows.stop, plane.shape[0]), np.ones((3, 3), np.uint8)
        first = max(rows.start // 2 - 1, 0)
        cells, inside = slice(first, (bottom + 1) // 2 + 1), slice(rows.start - 2 * first, bottom - 2 * first)
        limits = (
            around(cell.repeat(2, 0).repeat(2, 1), window)[inside, : plane.shape[1]]
            for around, cell in ((cv2.erode, self._least[cells]), (cv2.dilate, self._greatest[cells]))
        )
        return np.clip(plane[rows], *limits)


def _weigh(energy: np.ndarray, best: np.ndarray, noise: float) -> None:
    """Turn a frame's energy into its weight, in place."""
    for rows in _strips(energy.shape):
        weight = energy[rows]
        weight += np.float32(noise)
        weight /= best[rows] + np.float32(noise)
        for _ in range(SQUARINGS):
            np.multiply(weight, weight, out=weight)


def _add(total: np.ndarray, weight: np.ndarray, band: np.ndarray | None, steps: int) -> None:
    for rows in _strips(total.shape):
        values = np.multiply(weight[rows], np.float32(steps), dtype=np.float32)  # weights may be float16
        if band is not None:
            values *= band[rows]
        np.rint(values, out=values)
        total[rows] += values.astype(np.int32)


def _collapsed(totals: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    import cv2

    plane: np.ndarray | None = None
    for total, weight in zip(reversed(totals), reversed(weights), strict=True):
        band = total.view(np.float32)  # in place: each sum is read before it is overwritten
        for rows in _strips(total.shape):
            quotient = total[rows].astype(np.float64) / np.maximum(weight[rows], 1)
            band[rows] = quotient * (_WEIGHT_STEPS / _SUM_STEPS)
        if plane is not None:
            band += cv2.pyrUp(plane, dstsize=band.shape[::-1])
        plane = band
    assert plane is not None  # there is at least one band, what is left
    return plane


def _store(plane: np.ndarray, target: np.ndarray, form: _Form) -> None:
    values = np.clip(plane, 0, 255) / np.float32(_scale(form.dtype))
    target[...] = np.clip(values, 0, 1) if form.dtype.kind == "f" else np.rint(values)
