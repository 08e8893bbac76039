"""Differentiable surrogates of the measures that judge fused pictures; each is smaller for a better picture.

Every term takes a :class:`View` and returns one value, the mean over the batch. A surrogate is close to its measure
where a slope exists but not equal to it, so a gain is no substitute for looking at the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ffmef.losses import edges
from ffmef.losses.histograms import entropy, soft_histogram, soft_joint_histogram
from ffmef.losses.structural import _sliding_sum, mef_ssim
from ffmef.windows import gaussian


class View:
    """The sources and the fused picture as the viewer sees them, RGB in [0, 1], with what several terms share.

    Args:
        sources: (B, N, 3, H, W), constants.
        picture: (B, 3, H, W), clipped.
        unclipped: (B, 3, H, W), before clipping.
        luminance: (B, 1, H, W), the network's output before any clipping.

    Attributes:
        grey_sources: (B, N, H, W).
        grey: (B, 1, H, W).
        planes: sources (3 B, N, H, W) and picture (3 B, 1, H, W) with each channel as a separate picture, or the grey
            pictures (B, N, H, W) and (B, 1, H, W).
    """

    def __init__(self, sources: Tensor, picture: Tensor, unclipped: Tensor, luminance: Tensor, *, grey: bool = False):
        self.sources, self.picture, self.unclipped, self.luminance = sources, picture, unclipped, luminance
        self.grey_sources = _grey(sources)
        self.grey = _grey(picture).unsqueeze(1)
        self.planes = sources.transpose(1, 2).flatten(0, 1), picture.flatten(0, 1).unsqueeze(1)
        if grey:
            self.planes = self.grey_sources, self.grey

    def extreme(self, brightest: bool) -> Tensor:
        """Return the grey source (B, 1, H, W) of the lowest or highest mean."""
        return self.pick(self.grey_sources, brightest)

    def pick(self, maps: Tensor, brightest: bool) -> Tensor:
        """Return the map (B, 1, H, W) of the darkest or the brightest source, from maps of all sources."""
        means = self.grey_sources.mean((-2, -1))
        chosen = means.argmax(1) if brightest else means.argmin(1)
        return maps[torch.arange(len(maps), device=maps.device), chosen].unsqueeze(1)


def structure(view: View) -> Tensor:
    """1 - MEF-SSIM of the grey pictures at three scales."""
    return 1 - mef_ssim(view.grey_sources.unsqueeze(2) * 255, view.grey * 255).mean()


def signed_gradient(view: View) -> Tensor:
    """Distance of each forward difference to the strongest among the sources, sign included."""
    sources, picture = view.planes
    total = picture.new_zeros(())
    for wanted, got in zip(edges.differences(sources), edges.differences(picture), strict=True):
        strongest = wanted[:, 0]
        for other in wanted.unbind(1)[1:]:
            strongest = torch.where(other.abs() > strongest.abs(), other, strongest)
        total = total + (got.squeeze(1) - strongest).abs().mean()
    return total


def edge_strength(view: View) -> Tensor:
    """1 - QABF with an orientation that does not wrap: how much of each source's Sobel edges is kept."""
    sources, picture = view.planes
    with torch.no_grad():
        source_x, source_y = edges.sobel(sources)
        weights = edges.magnitude(source_x, source_y)
    dx, dy = edges.sobel(picture)
    strength = edges.magnitude(dx, dy)
    kept = torch.minimum(strength, weights) / torch.maximum(strength, weights)
    cross, dot = source_x * dy - source_y * dx, source_x * dx + source_y * dy
    aligned = 1 - torch.atan2(cross.abs(), dot.abs() + 1e-6) / (math.pi / 2)
    quality = 0.9994 * torch.sigmoid(15 * (kept - 0.5)) * 0.9879 * torch.sigmoid(22 * (aligned - 0.8))
    return 1 - ((quality * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))).mean()


def edge_structure(view: View) -> Tensor:
    """1 - QW: structural similarity of Prewitt magnitudes, the more varied source counting more."""
    sources, picture = (edges.magnitude(*edges.prewitt(plane * 255), floor=1e-2) for plane in view.planes)
    with torch.no_grad():
        source_mean = _blur(sources)
        source_variance = (_blur(sources * sources) - source_mean * source_mean).clamp_min(0) + 1e-3
        share = source_variance / source_variance.sum(1, keepdim=True)
        weights = source_variance.amax(1)
        weights = weights / weights.sum((1, 2), keepdim=True)
    mean = _blur(picture)
    variance = _blur(picture * picture) - mean * mean
    covariance = _blur(sources * picture) - source_mean * mean
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean * source_mean + c1) / (mean * mean + source_mean * source_mean + c1)
    similarity = similarity * (2 * covariance + c2) / (variance + source_variance + c2)
    return 1 - ((share * similarity).sum(1) * weights).sum((1, 2)).mean()


def fidelity(view: View) -> Tensor:
    """Root mean squared distance to a source, mean over the sources."""
    squares = (view.picture.unsqueeze(1) - view.sources).square().mean((-3, -2, -1))
    return (squares + 1e-8).sqrt().mean()


def flatness(view: View) -> Tensor:
    """1 - the mean gradient of each channel over that of the stronger source at each pixel; more earns nothing."""
    sources, picture = view.planes
    with torch.no_grad():
        strongest = edges.magnitude(*edges.sobel(sources)).amax(1).mean((1, 2))
    return (1 - edges.magnitude(*edges.sobel(picture)).mean((1, 2, 3)) / strongest).clamp_min(0).mean()


def information_loss(view: View) -> Tensor:
    """1 - visual information fidelity of the grey picture, against the source with the smaller gain at each pixel.

    Scales 1, 3 and 4 of the four; the second has no weight in the measure. The measure exceeds 1 where contrast is
    exaggerated, which this term does not reward.
    """
    sources, picture = view.grey_sources * 255, view.grey * 255
    noise = 0.005 * 255**2
    total = picture.new_zeros(picture.shape[0])
    for window, weight in ((17, 1.0), (9, 0.0), (5, 0.15), (3, 1.0)):
        taps = gaussian(window, window / 5)
        if window < 17:
            sources, picture = (_sliding_sum(maps, taps)[..., ::2, ::2] for maps in (sources, picture))
        if not weight:
            continue
        with torch.no_grad():
            source_mean = _sliding_sum(sources, taps)
            variance = (_sliding_sum(sources * sources, taps) - source_mean * source_mean).clamp_min(0)
        mean = _sliding_sum(picture, taps)
        own = (_sliding_sum(picture * picture, taps) - mean * mean).clamp_min(0)
        covariance = _sliding_sum(sources * picture, taps) - source_mean * mean
        gain = (covariance / (variance + 1)).clamp_min(0)
        rest = (own - gain * covariance).clamp_min(1e-3)
        chosen = gain.detach().argmin(1, keepdim=True)
        gain, rest, variance = (maps.gather(1, chosen) for maps in (gain, rest, variance))
        kept = torch.log1p(gain * gain * variance / (rest + noise)).sum((1, 2, 3))
        total = total + weight * kept / (torch.log1p(variance / noise).sum((1, 2, 3)) + 1e-3)
    return (1 - total / 2.15).clamp_min(0).mean()


def contrast_loss(view: View) -> Tensor:
    """1 - the Chen-Blum measure on grey pictures: how well the visible contrast of each source is kept."""
    sources, picture = _visible_contrast(view.grey_sources), _visible_contrast(view.grey)
    kept = (torch.minimum(sources, picture) + 1e-4) / (torch.maximum(sources, picture) + 1e-4)
    weights = sources * sources + 1e-8
    return 1 - (kept * weights / weights.sum(1, keepdim=True)).sum(1).mean()


def dullness(view: View) -> Tensor:
    """1 - the entropy of the picture's channels in 64 bins, over the largest possible."""
    return 1 - entropy(soft_histogram(view.planes[1].flatten(1))).mean() / 6


def tone_distance(view: View) -> Tensor:
    """Cross entropy (bits) between the histograms of the sources and of the picture, 64 bins."""
    sources, picture = (_thin(maps) for maps in view.planes)
    with torch.no_grad():
        wanted = soft_histogram(sources.flatten(0, 1).flatten(1)).view(*sources.shape[:2], -1)
    got = soft_histogram(picture.flatten(1)).unsqueeze(1)
    return (wanted * ((wanted + 1e-4) / (got + 1e-4)).log2()).sum(-1).mean()


def independence(view: View) -> Tensor:
    """1 - the mutual information of the picture with its sources, normalised by their entropies, 32 bins."""
    picture = _thin(view.grey).flatten(1)
    total = picture.new_zeros(())
    for source in _thin(view.grey_sources).unbind(1):
        joint = soft_joint_histogram(source.flatten(1), picture)
        entropies = entropy(joint.sum(1)) + entropy(joint.sum(2))
        total = total + 2 * (entropies - entropy(joint.flatten(1))) / (entropies + 1e-6)
    return 1 - total.mean() / view.grey_sources.shape[1]


def clipping(view: View) -> Tensor:
    """Mean distance of the unclipped picture and of the network's output to [0, 1]."""
    picture, luminance = ((m - m.detach().clamp(0, 1)).abs().mean() for m in (view.unclipped, view.luminance))
    return picture + luminance


def washed_out(view: View) -> Tensor:
    """How far the smoothed picture lies above 0.82 where the darkest exposure has middle tones, 0.1 to 0.8."""
    smoothed, offered = _smooth(view.grey), _smooth(view.extreme(brightest=False))
    return (_between(offered, 0.1, 0.8) * (smoothed - 0.82).clamp_min(0)).mean() / 0.18


def drowned(view: View) -> Tensor:
    """How far the smoothed picture lies below 0.12 where the brightest exposure has middle tones, 0.2 to 0.9."""
    smoothed, offered = _smooth(view.grey), _smooth(view.extreme(brightest=True))
    return (_between(offered, 0.2, 0.9) * (0.12 - smoothed).clamp_min(0)).mean() / 0.12


def clipped(view: View) -> Tensor:
    """How far the largest of R, G and B lies above 0.96 where it lies below 0.94 in the darkest exposure."""
    free = view.pick(view.sources.amax(2), brightest=False) < 0.94
    return (free * (view.unclipped.amax(1, keepdim=True) - 0.96).clamp_min(0)).mean() / 0.1


def shade_loss(view: View) -> Tensor:
    """How much coarse light and shade is lost, at 1/8, 1/16 and 1/32 size, where not all exposures record them.

    The picture should keep nineteen twentieths of the difference between neighbouring cells, as shown by the grey
    exposure with the smallest one among those that record both cells (means from 0.06 to 0.94). Where all exposures
    record both, nothing counts as lost.
    """
    total = view.grey.new_zeros(())
    for size in (8, 16, 32):
        if min(view.grey.shape[-2:]) < 2 * size:
            break
        sources, picture = (F.avg_pool2d(maps, size) for maps in (view.grey_sources, view.grey))
        recorded = (sources > 0.06) & (sources < 0.94)
        for axis in (-1, -2):
            step = sources.shape[axis] - 1
            both = recorded.narrow(axis, 1, step) & recorded.narrow(axis, 0, step)
            slopes = sources.diff(dim=axis)
            least = slopes.abs().masked_fill(~both, 2.0).amin(1, keepdim=True)
            chosen = both & (slopes.abs() == least)
            wanted = (slopes * chosen).sum(1, keepdim=True) / chosen.sum(1, keepdim=True).clamp_min(1)
            wanted = wanted * ~both.all(1, keepdim=True)
            missing = 0.95 * wanted.abs() - picture.diff(dim=axis) * wanted.sign()
            total = total + (missing.clamp_min(0) * (wanted != 0)).mean()
    return total


TERMS: dict[str, Callable[[View], Tensor]] = {
    term.__name__: term
    for term in (
        structure,
        signed_gradient,
        edge_strength,
        edge_structure,
        fidelity,
        flatness,
        information_loss,
        contrast_loss,
        dullness,
        tone_distance,
        independence,
        clipping,
        washed_out,
        drowned,
        clipped,
        shade_loss,
    )
}


def _grey(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.unbind(-3)
    return 0.298936 * red + 0.587043 * green + 0.114021 * blue


def _thin(maps: Tensor) -> Tensor:
    """Return every second pixel of every second row of pictures over 256 x 256, enough for a histogram."""
    return maps[..., ::2, ::2] if maps.shape[-1] * maps.shape[-2] > 256 * 256 else maps


def _smooth(maps: Tensor) -> Tensor:
    """Means of 8 x 8 pixels, in steps of 4."""
    quarters = F.avg_pool2d(maps, 4)
    return F.avg_pool2d(quarters, 2, 1)


def _between(maps: Tensor, low: float, high: float) -> Tensor:
    return ((maps > low) & (maps < high)).to(maps.dtype)


def _blur(maps: Tensor) -> Tensor:
    return _sliding_sum(maps, _GAUSSIAN_11)


_GAUSSIAN_11 = gaussian(11, 1.5)


def _visible_contrast(grey: Tensor) -> Tensor:
    """Masked contrast after Chen and Blum, periodic at the border; all three filters are one product of spectra."""
    height, width = grey.shape[-2:]
    # In float32 on every device: half-precision transforms need sizes that are powers of two.
    spectrum = torch.fft.rfft2(grey * 255)
    fy = torch.fft.fftfreq(height, device=grey.device, dtype=grey.dtype).unsqueeze(1)
    fx = torch.fft.rfftfreq(width, device=grey.device, dtype=grey.dtype)
    radius = (2 * fx * width / 30).square() + (2 * fy * height / 30).square()
    sensitivity = torch.exp(-radius / 15.3870**2) - 0.7622 * torch.exp(-radius / 1.3456**2)
    frequency = 2 * math.pi**2 * (fx.square() + fy.square())
    fine = torch.fft.irfft2(spectrum * (sensitivity * torch.exp(-frequency * 4)), s=(height, width))
    coarse = torch.fft.irfft2(spectrum * (sensitivity * torch.exp(-frequency * 16)), s=(height, width))
    coarse = torch.where(coarse.abs() < 1, torch.where(coarse < 0, -1.0, 1.0).to(coarse.dtype), coarse)
    contrast = (fine / coarse - 1).abs()
    return contrast**3 / (contrast.square() + 1e-4)
