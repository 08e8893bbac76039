"""FocusNet: predicted weights for the bands of a focus stack of any number of frames in any order.

The definition of the model in plain torch; :mod:`ffmef.focus` computes the same with NumPy, one frame at a time.
Shapes: B stacks, N frames, C channels, H x W pixels; maps of one band are (B * N, 1, h, w).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ffmef import focus
from ffmef.ops.library import autocasts, plain_tensors

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_START = -3.0  # of the logits, away from the upper limit of the clamp
_NARROW = (1 / 4, 2 / 4, 1 / 4)


def gaussian(deviation: float) -> tuple[float, ...]:
    """Return the taps that ``cv2.GaussianBlur`` takes for floating point."""
    reach = (round(deviation * 8 + 1) | 1) // 2
    taps = [math.exp(-0.5 * (place / deviation) ** 2) for place in range(-reach, reach + 1)]
    return tuple(tap / math.fsum(taps) for tap in taps)


_WINDOW = gaussian(focus.WINDOW)  # made here, because compilers cannot trace how it is made


class Measured(NamedTuple):
    """What is known about the frames in one band before any weight is predicted.

    Attributes:
        logs: (B * N, 8, h, w), logarithms of the frame's own energies, see :class:`FocusNet`.
        energy: (B * N, 1, h, w), log(E + 1), the first of them.
    """

    logs: Tensor
    energy: Tensor


class FocusNet(nn.Module):
    r"""Fuses focus stacks band by band with weights that small networks predict from the energies of all frames.

    With :math:`L_l x_k` the bands of the Laplacian pyramid of frame :math:`x_k` in grey levels 0..255, six of them and
    what is left, :math:`S_{kl}` and :math:`E_{kl}` as in :func:`ffmef.focus.fuse` and :math:`M_l = \max_k E_{kl}`,

    .. math::
        B_l = \sum_k w_{kl} L_l x_k, \qquad w_{kl} = \operatorname{softmax}_k(z_{kl}), \qquad
        z_{kl} = \operatorname{clamp}\Big(-8\, d_{kl} + \phi_l(f_{kl}), -30, 0\Big), \qquad
        d_{kl} = \log\frac{M_l + 1}{E_{kl} + 1}

    :math:`\phi_l` is a separate network for each band, applied to each pixel: two layers of ``channels`` and one that
    also sees the features. Before training :math:`\phi` is constant, so the weights are those of the formula without
    learning. The features :math:`f_{kl}` are

    - logarithms of energies of the frame: of E + 1, and of the following plus 1/4: S; the squared band in windows of
      3 pixels and of about 16; S of the two next finer bands, by ``pyrDown``, and of the two next coarser ones,
      interpolated; 0 where there is no such band;
    - :math:`d_{kl}`, and that of the next finer band and of the two next coarser ones;
    - how far the mean over the frames and the least of log(E + 1) lie below the greatest.

    Nothing depends on the order of the frames or on distant pixels. The result is limited as that of
    :func:`ffmef.focus.fuse` is.

    Args:
        channels: of the hidden layers.
        backend: None; this model has no other.

    Raises:
        ValueError: ``channels`` is not 1 to 256; when called, for frames that are not (B, N, H, W) or (B, N, C, H, W)
            with two or more frames.

    Attributes:
        takes_frames: tells :func:`ffmef.fuse` to pass this model pictures, not their luminance.

    Example:
        >>> import torch
        >>> FocusNet()(torch.rand(1, 3, 40, 56)).shape
        torch.Size([1, 1, 40, 56])
    """

    takes_frames = True

    def __init__(self, channels: int = 24, *, backend: str | None = None) -> None:
        super().__init__()
        if not 1 <= channels <= 256:
            raise ValueError(f"channels must be 1 to 256, got {channels}")
        self.channels, self.backend = channels, backend
        self.first = nn.ModuleList(nn.Conv2d(focus.FEATURES, channels, 1) for _ in range(focus.BANDS + 1))
        self.second = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(focus.BANDS + 1))
        self.last = nn.ModuleList(nn.Conv2d(channels + focus.FEATURES, 1, 1) for _ in range(focus.BANDS + 1))
        for layer in (*self.first, *self.second):
            nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))
        for layer in self.last:
            nn.init.zeros_(layer.get_parameter("weight"))
            nn.init.constant_(layer.get_parameter("bias"), _START)

    def config(self) -> dict:
        """Return the constructor's arguments, as weight files keep them."""
        return {"channels": self.channels}

    def forward(self, frames: Tensor) -> Tensor:
        """Fuse frames.

        Args:
            frames: (B, N, H, W) luminance or (B, N, C, H, W) in [0, 1], N >= 2.

        Returns:
            (B, 1, H, W) or (B, C, H, W), unclamped; float64 if the weights are, else float32, under autocast too.

        Raises:
            ValueError: a shape is wrong.
        """
        if frames.dim() not in (4, 5) or frames.shape[1] < 2 or frames.numel() == 0:
            raise ValueError(f"frames must be (B, N, H, W) or (B, N, C, H, W), N >= 2, got {tuple(frames.shape)}")
        if not autocasts(frames.device):
            return self._fuse(frames)
        with torch.autocast(frames.device.type, enabled=False):  # squared grey levels exceed float16
            return self._fuse(frames)

    def _fuse(self, frames: Tensor) -> Tensor:
        """Fuse frames in at least float32; the networks run in the dtype of their weights."""
        frames = frames.to(torch.promote_types(_dtype(self.first[0]), torch.float32))
        pictures = (frames.unsqueeze(2) if frames.dim() == 4 else frames) * 255
        batch, count = pictures.shape[:2]
        # Training needs no gradients of the features.
        with torch.set_grad_enabled(torch.is_grad_enabled() and frames.requires_grad):
            bands, rest = pyramid(pictures.flatten(0, 1))
            features = self._features(bands, rest, count)
        fused: Tensor | None = None
        for level in range(len(bands), -1, -1):
            band = bands[level] if level < len(bands) else rest
            # The last network always weighs what is left, however few bands a small picture has.
            weights = self._logits(features[level], level if level < len(bands) else focus.BANDS)
            weights = weights.unflatten(0, (batch, count)).softmax(1)
            total = (weights * band.unflatten(0, (batch, count))).sum(1)
            fused = total if fused is None else total + up(fused, total.shape[-2:])
        assert fused is not None  # what is left is always there
        return limited(fused, pictures) / 255

    def _logits(self, features: Tensor, level: int) -> Tensor:
        given = features.to(_dtype(self.first[level]))
        hidden = F.relu(self.first[level](given))
        hidden = F.relu(self.second[level](hidden))
        predicted = self.last[level](torch.cat([hidden, given], 1))
        own = features[:, 8:9] * focus.SPREAD
        return (predicted - 2**focus.SQUARINGS * own).clamp(*focus.LOGITS)

    def _features(self, bands: list[Tensor], rest: Tensor, count: int) -> list[Tensor]:
        """Return the features of each band, finest first, and of what is left."""
        measured = measure(bands, rest)
        energies = [one.energy.unflatten(0, (-1, count)) for one in measured]
        greatest = [energy.amax(1, keepdim=True) for energy in energies]
        below = [(most - energy).flatten(0, 1) for most, energy in zip(greatest, energies, strict=True)]
        features = []
        for level, one in enumerate(measured):
            size = one.energy.shape[-2:]
            coarser = [between(below[other], size) for other in (level + 1, level + 2) if other < len(below)]
            nothing = torch.zeros_like(below[level])
            finer = down(below[level - 1]) if level else nothing
            coarser += [nothing] * (2 - len(coarser))
            mean = (greatest[level] - energies[level].mean(1, keepdim=True)).expand_as(energies[level]).flatten(0, 1)
            least = (greatest[level] - energies[level].amin(1, keepdim=True)).expand_as(energies[level]).flatten(0, 1)
            apart = torch.cat([below[level], finer, *coarser, mean, least], 1)
            features.append(torch.cat([(one.logs - focus.CENTRE) / focus.SPREAD, apart / focus.SPREAD], 1))
        return features


def _dtype(layer: nn.Module) -> torch.dtype:
    return cast(nn.Conv2d, layer).weight.dtype  # torch.func.functional_call puts plain tensors in place of parameters


def pyramid(pictures: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the bands of the Laplacian pyramid of pictures (M, C, H, W), finest first, and what is left."""
    bands: list[Tensor] = []
    while len(bands) < focus.BANDS and min(pictures.shape[-2:]) > 1:
        half = down(pictures)
        bands.append(pictures - up(half, pictures.shape[-2:]))
        pictures = half
    return bands, pictures


def limited(fused: Tensor, pictures: Tensor) -> Tensor:
    """Return fused pictures (B, C, H, W) within the range of the frames around each pixel, see ``ffmef.focus.fuse``."""
    height, width = fused.shape[-2:]
    limits = []
    for sign in (-1, 1):
        extreme = ((sign * pictures.detach()).amax(1) - focus.SLACK).ceil()
        cells = F.max_pool2d(extreme, 2, ceil_mode=True)
        cells = cells.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width]
        limits.append(sign * F.max_pool2d(cells, 3, 1, 1))
    return torch.minimum(torch.maximum(fused, limits[0]), limits[1])


def measure(bands: list[Tensor], rest: Tensor) -> list[Measured]:
    """Return the energies of every band of every frame; what is left takes those of the coarsest band."""
    squares = [band.square().mean(1, keepdim=True) for band in bands]
    own = [blur(square, _WINDOW) for square in squares]
    narrow = [blur(square, _NARROW) for square in squares]
    if not own:
        own, narrow = [torch.ones_like(rest[:, :1])], [torch.ones_like(rest[:, :1])]
    else:
        own.append(down(own[-1]))
        narrow.append(own[-1])
    measured: list[Measured] = []
    finer: Tensor | None = None
    for level, (energy, small) in enumerate(zip(own, narrow, strict=True)):
        size = energy.shape[-2:]
        if not bands:
            total = energy
        elif finer is not None and level == len(bands):
            total = finer
        else:
            total = energy if level + 1 == len(bands) else energy + focus.NEXT_BAND * between(own[level + 1], size)
            total = total if finer is None else total + finer
            finer = focus.FINER_BANDS * down(total)
        nothing = torch.zeros_like(energy)
        maps = [
            energy,
            small,
            between(down(down(energy)), size),
            down(own[level - 1]) if level > 0 else nothing,
            down(down(own[level - 2])) if level > 1 else nothing,
            *(between(own[other], size) if other < len(own) else nothing for other in (level + 1, level + 2)),
        ]
        entire = (total + focus.NOISE).log()
        measured.append(Measured(torch.cat([entire, (torch.cat(maps, 1) + focus.FLOOR).log()], 1), entire))
    return measured


# Filters of OpenCV, their borders included


def down(maps: Tensor) -> Tensor:
    """Return maps of half size as ``cv2.pyrDown``."""
    rows = _filtered(maps, _BINOMIAL, -2)[..., ::2, :]
    return _filtered(rows, _BINOMIAL, -1)[..., ::2]


def up(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps of twice the size, one less where ``size`` is odd, as ``cv2.pyrUp``."""
    for axis, length in zip((-2, -1), size, strict=True):
        maps = maps.movedim(axis, -1)
        # Reflected on one side and repeated on the other.
        before = maps[..., 1:2] if maps.shape[-1] > 1 else maps
        padded = torch.cat([before, maps, maps[..., -1:]], -1)
        even = (padded[..., :-2] + 6 * padded[..., 1:-1] + padded[..., 2:]) / 8
        odd = (padded[..., 1:-1] + padded[..., 2:]) / 2
        maps = torch.stack([even, odd], -1).flatten(-2)[..., :length].movedim(-1, axis)
    return maps


def between(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps interpolated to a size as ``cv2.resize``."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def shrink(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps of a smaller size as ``cv2.resize`` with ``INTER_AREA``: means over what each pixel covers."""
    for axis, length in zip((-2, -1), size, strict=True):
        given = maps.shape[axis]
        # In steps of 1 / length of a given pixel everything is a whole number.
        edges = torch.arange(length + 1, device=maps.device) * given
        borders = torch.arange(given + 1, device=maps.device) * length
        over = torch.minimum(edges[1:, None], borders[1:]) - torch.maximum(edges[:-1, None], borders[:-1])
        shares = over.clamp_min(0).to(maps.dtype) / given
        maps = shares @ maps if axis == -2 else maps @ shares.T
    return maps


def blur(maps: Tensor, taps: tuple[float, ...]) -> Tensor:
    """Return maps filtered along both sides, borders reflected."""
    return _filtered(_filtered(maps, taps, -2), taps, -1)


def _filtered(maps: Tensor, taps: tuple[float, ...], axis: int) -> Tensor:
    reach, length = len(taps) // 2, maps.shape[axis]
    if reach < length:
        sides = (0, 0, reach, reach) if axis == -2 else (reach, reach, 0, 0)
        maps = F.pad(maps, sides, mode="reflect")
    else:
        places = torch.arange(-reach, length + reach, device=maps.device)
        turn = max(2 * (length - 1), 1)
        places = places.remainder(turn)
        maps = maps.index_select(axis, torch.minimum(places, turn - places) if length > 1 else places * 0)
    kernel = _kernel(taps, maps).view((1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1))
    # Every channel counts as a separate picture, so one filter does for all.
    return F.conv2d(maps.flatten(0, 1).unsqueeze(1), kernel).view(*maps.shape[:2], *_valid(maps, len(taps), axis))


def _kernel(taps: tuple[float, ...], maps: Tensor) -> Tensor:
    """Return taps on the maps' device. They are copied to a GPU once, lest every filter wait for it."""
    if type(maps) is not Tensor or torch.compiler.is_compiling():
        return maps.new_tensor(taps)
    return _kept(taps, maps.dtype, maps.device)


@functools.lru_cache(maxsize=64)
def _kept(taps: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with plain_tensors():
        return torch.tensor(taps, dtype=dtype, device=device)


def _valid(maps: Tensor, taps: int, axis: int) -> tuple[int, int]:
    """Return the size of maps filtered along an axis without their borders."""
    height, width = maps.shape[-2:]
    return (height - taps + 1, width) if axis == -2 else (height, width - taps + 1)
