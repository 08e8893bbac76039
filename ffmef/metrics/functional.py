"""The metrics on batches of tensors, on any device, differentiable if their formulas allow it.

Every function takes the sources ``a`` and ``b`` (:func:`mef_ssim` any number) and the fused picture as (B, C, H, W) in
grey levels 0..255, float32 or float64, and returns (B,) values: the mean over the channels. The function of the same
name in :mod:`ffmef.metrics` states the formula, the range and the source. In float64 the values equal that function's
within the tolerance of ``docs/metrics.md``; in float32 they agree to about 1e-4, less closely if a picture is flat.
:data:`DIFFERENTIABLE` names the metrics with a gradient in all three pictures. The others count grey levels or edges,
so they have no gradient and need whole grey levels. :data:`BY_TOOLKIT` names those that :mod:`ffmef.metrics` computes
on the CPU, whatever the tensors' device.

Every function raises ValueError if the shapes differ or are not (B, C, H, W), or if a side is too small for the
metric's windows. Those that count grey levels also raise it for values that are not whole numbers from 0 to 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ffmef.losses import structural
from ffmef.ops.reference import halve
from ffmef.windows import gaussian

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_SOBEL, _PREWITT = (1.0, 2.0, 1.0), (1.0, 1.0, 1.0)
_MS_SSIM_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_VIF_FLOOR, _VIF_OFFSET = 1e-10, 1e-7


def _checked(*pictures: Tensor) -> list[Tensor]:
    names = (*(chr(ord("a") + i) for i in range(len(pictures) - 1)), "fused")
    for name, picture in zip(names, pictures, strict=True):
        if picture.dim() != 4:
            raise ValueError(f"{name} must be (B, C, H, W), got {tuple(picture.shape)}")
        if picture.shape != pictures[0].shape:
            raise ValueError(f"{name} must have the shape of a, {tuple(pictures[0].shape)}, got {tuple(picture.shape)}")
    dtype = torch.float32
    for picture in pictures:
        dtype = torch.promote_types(dtype, picture.dtype)
    return [picture.to(dtype) for picture in pictures]


def _root(values: Tensor) -> Tensor:
    """Return the square root, with slope 0 at 0."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1).sqrt(), 0)


def _quotient(first: Tensor, second: Tensor) -> Tensor:
    """Return the quotient where the divisor is not 0, else 0."""
    used = second != 0
    return torch.where(used, first / torch.where(used, second, 1), 0)


def _mean(values: Tensor) -> Tensor:
    """Mean over channels and pixels."""
    return values.mean((1, 2, 3))


def _size(picture: Tensor) -> int:
    """Pixels of a channel."""
    return picture.shape[-2] * picture.shape[-1]


def _total(values: Tensor) -> Tensor:
    """Sum over the pixels of each channel."""
    return values.sum((2, 3))


def _derivatives(picture: Tensor, smoothing: Sequence[float], border: str) -> tuple[Tensor, Tensor]:
    """Derivatives to the right and upward."""
    padded = F.pad(picture, (1, 1, 1, 1), mode=border)
    before, here, after = smoothing
    rows = before * padded[..., :-2, :] + here * padded[..., 1:-1, :] + after * padded[..., 2:, :]
    columns = before * padded[..., :-2] + here * padded[..., 1:-1] + after * padded[..., 2:]
    return rows[..., 2:] - rows[..., :-2], columns[..., :-2, :] - columns[..., 2:, :]


def _window_sums(maps: Tensor, taps: Sequence[float]) -> Tensor:
    return structural._sliding_sum(maps, tuple(taps))


class _Moments:
    """Means, variances and covariances of pictures in the windows inside them."""

    def __init__(self, taps: Sequence[float], **pictures: Tensor):
        # A common shift keeps float32 products small and changes no variance.
        self._taps, self._pictures = taps, {name: picture - 128 for name, picture in pictures.items()}
        self._means = {name: _window_sums(picture, taps) for name, picture in self._pictures.items()}
        self._known: dict[str, Tensor] = {}

    def mean(self, name: str) -> Tensor:
        return self._means[name] + 128

    def covariance(self, first: str, second: str) -> Tensor:
        key = "".join(sorted(first + second))
        if key not in self._known:
            product = _window_sums(self._pictures[first] * self._pictures[second], self._taps)
            self._known[key] = product - self._means[first] * self._means[second]
        return self._known[key]

    def contrast_structure(self, first: str, second: str) -> Tensor:
        spread = self.covariance(first, first) + self.covariance(second, second)
        return (2 * self.covariance(first, second) + C2) / (spread + C2)

    def similarity(self, first: str, second: str) -> Tensor:
        mean, other = self.mean(first), self.mean(second)
        luminance = (2 * mean * other + C1) / (mean * mean + other * other + C1)
        return luminance * self.contrast_structure(first, second)


def _least(picture: Tensor, side: int, name: str) -> None:
    if min(picture.shape[-2:]) < side:
        raise ValueError(f"{name} needs sides of at least {side} pixels, got {tuple(picture.shape[-2:])}")


# Histograms


def _histograms(index: Tensor, bins: int) -> Tensor:
    """Counts (B, C, bins) of whole numbers (B, C, H, W), float64."""
    batch, channels = index.shape[:2]
    offset = torch.arange(batch * channels, device=index.device).view(batch, channels, 1) * bins
    counts = torch.bincount((index.flatten(2) + offset).flatten(), minlength=batch * channels * bins)
    return counts.view(batch, channels, bins).double()


def _levels(picture: Tensor, name: str) -> Tensor:
    levels = picture.detach().long()
    wrong = (levels != picture) | (picture < 0) | (picture > 255)
    if bool(wrong.any()):
        raise ValueError(f"{name} must hold whole grey levels 0..255, got {picture.detach()[wrong][0].item()}")
    return levels


def _entropy(counts: Tensor) -> Tensor:
    share = counts / counts.sum(-1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(-1) / math.log(2)


def en(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Entropy, see :func:`ffmef.metrics.en`.

    Example:
        >>> picture = torch.tensor([[[[0.0, 64.0], [128.0, 255.0]]]])
        >>> en(picture, picture, picture)
        tensor([2.], dtype=torch.float64)
    """
    _, _, fused = _checked(a, b, fused)
    return _entropy(_histograms(_levels(fused, "fused"), 256)).mean(1)


def ce(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Cross entropy, see :func:`ffmef.metrics.ce`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> ce(x, x, x).item()
        0.0
    """
    shares = [_histograms(_levels(x, n), 256) for x, n in zip(_checked(a, b, fused), ("a", "b", "fused"), strict=True)]
    shares = [counts / counts.sum(-1, keepdim=True) for counts in shares]
    total = fused.new_zeros(())
    for own in shares[:2]:
        both = (own > 0) & (shares[2] > 0)
        ratio = torch.where(both, own, 1) / torch.where(both, shares[2], 1)
        total = total + torch.where(both, own * ratio.log2(), 0).sum(-1)
    return (total / 2).mean(1)


def mi(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Mutual information, see :func:`ffmef.metrics.mi`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> mi(x, x, x).item()
        16.0
    """
    a, b, fused = (_levels(x, n) for x, n in zip(_checked(a, b, fused), ("a", "b", "fused"), strict=True))
    total = fused.new_zeros(())
    for source in (a, b):
        joint = _histograms(source * 256 + fused, 65536)
        table = joint.unflatten(-1, (256, 256))
        total = total + _entropy(table.sum(-1)) + _entropy(table.sum(-2)) - _entropy(joint)
    return total.mean(1)


# The fused picture alone, and errors


def ag(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Average gradient, see :func:`ffmef.metrics.ag`.

    Example:
        >>> x = torch.arange(4.0).expand(1, 1, 4, 4)
        >>> round(ag(x, x, x).item(), 4)
        1.2571
    """
    _, _, fused = _checked(a, b, fused)
    _least(fused, 2, "ag")
    dy, dx = torch.gradient(fused, dim=(-2, -1))
    height, width = fused.shape[-2:]
    return (_total(_root((dx * dx + dy * dy) / 2)) / ((height - 1) * (width - 1))).mean(1)


def ei(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Edge intensity, see :func:`ffmef.metrics.ei`.

    Example:
        >>> x = torch.arange(4.0).expand(1, 1, 4, 4)
        >>> ei(x, x, x).item()
        6.0
    """
    _, _, fused = _checked(a, b, fused)
    dx, dy = _derivatives(fused, _SOBEL, "replicate")
    return _mean(_root(dx * dx + dy * dy))


def sd(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Standard deviation, see :func:`ffmef.metrics.sd`.

    Example:
        >>> picture = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]]).requires_grad_()
        >>> value = sd(picture, picture, picture)
        >>> value.sum().backward()
        >>> value.item() ** 2, picture.grad.sum().item()
        (5.0..., 0.0)
    """
    _, _, fused = _checked(a, b, fused)
    return _root(fused.var((2, 3), correction=0)).mean(1)


def sf(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Spatial frequency, see :func:`ffmef.metrics.sf`.

    Example:
        >>> x = torch.arange(4.0).expand(1, 1, 4, 4)
        >>> round(sf(x, x, x).item(), 4)
        0.866
    """
    _, _, fused = _checked(a, b, fused)
    squares = _total(fused.diff(dim=-2) ** 2) + _total(fused.diff(dim=-1) ** 2)
    return _root(squares / _size(fused)).mean(1)


def _error(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    roots = [_root(_total((x - fused) ** 2)) for x in (a, b)]
    return (roots[0] + roots[1]) / (2 * _size(a))


def rmse(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Root of the summed squared error over the size, see :func:`ffmef.metrics.rmse`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> rmse(x, x, x).item()
        0.0
    """
    a, b, fused = _checked(a, b, fused)
    return _error(a, b, fused).mean(1)


def psnr(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """The toolkit's signal-to-noise ratio, see :func:`ffmef.metrics.psnr`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> round(psnr(x, x, x + 1).item(), 2)
        60.17
    """
    a, b, fused = _checked(a, b, fused)
    return (20 * math.log10(255) - 10 * _error(a, b, fused).log10()).mean(1)


# Correlations


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    first, second = (x - x.mean((2, 3), keepdim=True) for x in (first, second))
    return _total(first * second) / (_total(first * first) * _total(second * second)).sqrt()


def cc(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Mean correlation, see :func:`ffmef.metrics.cc`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> cc(x, x, 2 * x).item()
        1.0
    """
    a, b, fused = _checked(a, b, fused)
    return ((_correlation(a, fused) + _correlation(b, fused)) / 2).mean(1)


def scd(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Sum of the correlations of differences, see :func:`ffmef.metrics.scd`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> round(scd(x, x.flip(-1), x + x.flip(-1)).item(), 4)
        2.0
    """
    a, b, fused = _checked(a, b, fused)
    return (_correlation(fused - b, a) + _correlation(fused - a, b)).mean(1)


# Edges


def _sigmoid(values: Tensor, gain: float, slope: float, centre: float) -> Tensor:
    return gain * torch.sigmoid(slope * (values - centre))


def _angle(dx: Tensor, dy: Tensor) -> Tensor:
    steep = dx == 0
    return torch.where(steep, math.pi / 2, torch.atan(dy / torch.where(steep, 1, dx)))


def qabf(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Edge preservation, see :func:`ffmef.metrics.qabf`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> qabf(x, x, x).item() > qabf(x, x, x.mT).item()
        True
    """
    a, b, fused = _checked(a, b, fused)
    edges = [_derivatives(picture, _SOBEL, "constant") for picture in (a, b, fused)]
    strengths = [_root(dx * dx + dy * dy) for dx, dy in edges]
    angles = [_angle(dx, dy) for dx, dy in edges]
    kept = weight = fused.new_zeros(())
    for strength, angle in zip(strengths[:2], angles[:2], strict=True):
        relative = _quotient(torch.minimum(strength, strengths[2]), torch.maximum(strength, strengths[2]))
        relative = torch.where(strength == strengths[2], 255 * strength.detach(), relative)  # the toolkit's error
        aligned = 1 - (angle - angles[2]).abs() / (math.pi / 2)
        quality = _sigmoid(relative, 0.9994, 15, 0.5) * _sigmoid(aligned, 0.9879, 22, 0.8)
        kept = kept + _total(quality * strength)
        weight = weight + _total(strength)
    return (kept / weight).mean(1)


def _lost_and_added(a: Tensor, b: Tensor, fused: Tensor) -> tuple[Tensor, Tensor]:
    pictures = _checked(a, b, fused)
    _least(pictures[0], 2, "n_abf and l_abf")
    edges = [_derivatives(picture, _SOBEL, "reflect") for picture in pictures]
    strengths = [_root(dx * dx + dy * dy) / 8 for dx, dy in edges]
    angles = [_angle(dx, dy) for dx, dy in edges]
    artefact = (strengths[2] > strengths[0]) & (strengths[2] > strengths[1])
    lost = added = total = fused.new_zeros(())
    for strength, angle in zip(strengths[:2], angles[:2], strict=True):
        relative = _quotient(torch.minimum(strength, strengths[2]), torch.maximum(strength, strengths[2]))
        aligned = ((angle - angles[2]).abs() - math.pi / 2).abs() * (2 / math.pi)
        kept = (_sigmoid(relative, 0.9999, 19, 0.5) * _sigmoid(aligned, 0.9995, 22, 0.5)).sqrt()
        weight = torch.where(strength >= 2, strength**1.5, 0.001)
        missing = (1 - kept) * weight
        added = added + _total(torch.where(artefact, missing, 0))
        lost = lost + _total(torch.where(artefact, 0, missing))
        total = total + _total(weight)
    return (lost / total).mean(1), (added / total).mean(1)


def n_abf(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Edges that were added, see :func:`ffmef.metrics.n_abf`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> n_abf(x, x, x).item()
        0.0
    """
    return _lost_and_added(a, b, fused)[1]


def l_abf(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Edges that were lost, see :func:`ffmef.metrics.l_abf`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> l_abf(x, x, x).item() < 1e-3
        True
    """
    return _lost_and_added(a, b, fused)[0]


# Structural similarity


def ssim(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Structural similarity with each source, summed, see :func:`ffmef.metrics.ssim`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> round(ssim(x, x, x).item(), 4)
        2.0
    """
    a, b, fused = _checked(a, b, fused)
    _least(a, 11, "ssim")
    moments = _Moments(structural._GAUSSIAN, a=a, b=b, f=fused)
    return _mean(moments.similarity("a", "f")) + _mean(moments.similarity("b", "f"))


def ms_ssim(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Structural similarity at five scales with each source, summed, see :func:`ffmef.metrics.ms_ssim`.

    Example:
        >>> x = (torch.arange(176.0)[:, None] + torch.arange(176.0) % 80)[None, None]
        >>> round(ms_ssim(x, x, x).item(), 4)
        2.0
    """
    pictures = _checked(a, b, fused)
    _least(a, 176, "ms_ssim")
    values = [fused.new_ones(()), fused.new_ones(())]
    last = len(_MS_SSIM_EXPONENTS) - 1
    for level, exponent in enumerate(_MS_SSIM_EXPONENTS):
        if level:
            pictures = [halve(picture) for picture in pictures]
        moments = _Moments(structural._GAUSSIAN, **dict(zip("abf", pictures, strict=True)))
        of_scale = moments.similarity if level == last else moments.contrast_structure
        values = [
            value * of_scale(source, "f").mean((2, 3)).clamp_min(0) ** exponent
            for value, source in zip(values, "ab", strict=True)
        ]
    return (values[0] + values[1]).mean(1)


def qw(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Structural similarity of edges, see :func:`ffmef.metrics.qw`.

    Example:
        >>> x = torch.arange(256.0).view(1, 1, 16, 16)
        >>> round(qw(x, x, x).item(), 4)
        1.0
    """
    edges = []
    for picture in _checked(a, b, fused):
        dx, dy = _derivatives(picture, _PREWITT, "constant")
        edges.append(_root(dx * dx + dy * dy))
    _least(a, 11, "qw")
    moments = _Moments(structural._GAUSSIAN, **dict(zip("abf", edges, strict=True)))
    va, vb = moments.covariance("a", "a"), moments.covariance("b", "b")
    flat = va + vb == 0
    va, vb = torch.where(flat, 0.5, va), torch.where(flat, 0.5, vb)
    share, weight = va / (va + vb), torch.maximum(va, vb)
    quality = share * moments.similarity("a", "f") + (1 - share) * moments.similarity("b", "f")
    return (_total(weight * quality) / _total(weight)).mean(1)


def _luma(picture: Tensor) -> Tensor:
    """Rounded luma (…, 1, H, W); the gradient is that of luma without rounding."""
    if picture.shape[-3] == 1:
        return picture
    red, green, blue = picture.unbind(-3)
    luma = 0.298936 * red + 0.587043 * green + 0.114021 * blue
    return (luma + ((luma + 0.5).floor() - luma).detach()).unsqueeze(-3)


def mef_ssim(sources: Tensor, fused: Tensor, *more: Tensor) -> Tensor:
    """Structural similarity for multi-exposure fusion, see :func:`ffmef.metrics.mef_ssim`.

    Args:
        sources: (B, N, C, H, W), two or more exposures in grey levels 0..255; constants that no gradient reaches.
        fused: (B, C, H, W). Its gradient is that of luma without rounding.
        more: the exposures may also be separate arguments, each (B, C, H, W), with the fused picture last.

    Example:
        >>> x = torch.arange(48.0 * 48).view(1, 1, 48, 48) % 256
        >>> round(mef_ssim(torch.stack([x, x], 1), x).item(), 4)
        1.0
    """
    sources, fused = _stacked(sources, fused, *more)
    return structural.mef_ssim(_luma(sources), _luma(fused))


def _stacked(sources: Tensor, fused: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
    """Return sources (B, N, C, H, W) and the fused picture, given as these two or as separate pictures."""
    if not more:
        return sources, fused
    *frames, last = _checked(sources, fused, *more)
    return torch.stack(frames, 1), last


def mef_ssim_c(sources: Tensor, fused: Tensor, *more: Tensor) -> Tensor:
    """Structural similarity of colour patches, see :func:`ffmef.metrics.mef_ssim_c`.

    Args:
        sources: (B, N, C, H, W), two or more exposures in grey levels 0..255.
        fused: (B, C, H, W).
        more: as for :func:`mef_ssim`.

    Example:
        >>> picture = torch.arange(3 * 64.0).view(1, 3, 8, 8)
        >>> mef_ssim_c(torch.stack([picture, picture], 1), picture)
        tensor([1.])
    """
    sources, fused = _stacked(sources, fused, *more)
    if sources.dim() != 5 or sources.shape[1] < 2:
        raise ValueError(f"sources must be (B, N, C, H, W) with N >= 2, got {tuple(sources.shape)}")
    if fused.shape != sources[:, 0].shape:
        raise ValueError(f"fused must be {tuple(sources[:, 0].shape)} like sources, got {tuple(fused.shape)}")
    _least(fused, 8, "mef_ssim_c")
    dtype = torch.promote_types(torch.promote_types(sources.dtype, fused.dtype), torch.float32)
    sources, fused = sources.to(dtype) - 128, fused.to(dtype) - 128

    def mean(values: Tensor) -> Tensor:
        return _window_sums(values.mean(-3), (1 / 8,) * 8)

    means, mean_f = mean(sources), mean(fused)
    variances = mean(sources * sources) - means * means
    variance_f = mean(fused * fused) - mean_f * mean_f
    covariances = mean(sources * fused.unsqueeze(1)) - means * mean_f.unsqueeze(1)
    whole = sources.mean((2, 3, 4))[:, :, None, None]
    exposed = torch.exp(-(((means + 0.5) / 255) ** 2 + ((whole + 0.5) / 255) ** 2) / (2 * 0.2**2))
    mean_x = (exposed * means).sum(1) / exposed.sum(1) + 128
    variance_x, strongest = variances.max(1)
    covariance = covariances.gather(1, strongest.unsqueeze(1)).squeeze(1)
    mean_f = mean_f + 128
    value = (2 * mean_x * mean_f + C1) * (2 * covariance + C2)
    value = value / ((mean_x * mean_x + mean_f * mean_f + C1) * (variance_x + variance_f + C2))
    return value.mean((1, 2))


# Visual information fidelity


def _regression(moments: _Moments, source: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return gain and residual of the fused picture's regression on a source, and the source's variance."""
    variance = moments.covariance(source, source).clamp_min(0)
    variance = torch.where(variance < _VIF_FLOOR, 0, variance)
    variance_f = moments.covariance("f", "f").clamp_min(0)
    covariance = moments.covariance(source, "f")
    used = (variance > 0) & (variance_f >= _VIF_FLOOR) & (covariance > 0)
    gain = torch.where(used, covariance / (variance + _VIF_FLOOR), 0)
    rest = torch.where(variance_f < _VIF_FLOOR, 0, variance_f - gain * covariance).clamp_min(_VIF_FLOOR)
    return gain, rest, variance


def _vif_scales(pictures: dict[str, Tensor]):
    for scale in range(4):
        size = 2 ** (4 - scale) + 1
        taps = gaussian(size, size / 5)
        if scale:
            pictures = {name: _window_sums(picture, taps)[..., ::2, ::2] for name, picture in pictures.items()}
        yield _Moments(taps, **pictures)


def vif(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Visual information fidelity for fusion, see :func:`ffmef.metrics.vif`.

    Example:
        >>> x = (torch.arange(176.0)[:, None] + torch.arange(176.0) % 80)[None, None]
        >>> round(vif(x, x, x).item(), 4)
        1.0
    """
    a, b, fused = _checked(a, b, fused)
    _least(a, 41, "vif")
    noise, total = 0.005 * 255**2, fused.new_zeros(())
    for weight, moments in zip((1.0, 0.0, 0.15, 1.0), _vif_scales({"a": a, "b": b, "f": fused}), strict=True):
        if not weight:
            continue
        (gain_a, rest_a, var_a), (gain_b, rest_b, var_b) = (_regression(moments, source) for source in "ab")
        from_a = gain_a < gain_b
        seen = torch.where(from_a, gain_a**2 * var_a / (rest_a + noise), gain_b**2 * var_b / (rest_b + noise))
        present = torch.where(from_a, var_a, var_b) / noise
        kept = _total((1 + seen).log10() + _VIF_OFFSET) / _total((1 + present).log10() + _VIF_OFFSET)
        total = total + weight * kept
    return (total / 2.15).mean(1)


def vifp(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
    """Visual information fidelity with each source, summed, see :func:`ffmef.metrics.vifp`.

    Example:
        >>> x = (torch.arange(176.0)[:, None] + torch.arange(176.0) % 80)[None, None]
        >>> round(vifp(x, x, x).item(), 4)
        2.0
    """
    a, b, fused = _checked(a, b, fused)
    _least(a, 41, "vifp")
    kept, present = ([fused.new_zeros(()), fused.new_zeros(())] for _ in range(2))
    for moments in _vif_scales({"a": a, "b": b, "f": fused}):
        for i, source in enumerate("ab"):
            gain, rest, variance = _regression(moments, source)
            kept[i] = kept[i] + _total((1 + gain**2 * variance / (rest + 2)).log10())
            present[i] = present[i] + _total((1 + variance / 2).log10())
    return (kept[0] / present[0] + kept[1] / present[1]).mean(1)


# Metrics that count edges or stretched levels: ffmef.metrics computes them one picture after the other


def _by_toolkit(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def metric(a: Tensor, b: Tensor, fused: Tensor) -> Tensor:
        from ffmef import metrics

        pictures = _checked(a, b, fused)
        in_colour = name in OF_COLOUR and a.shape[1] == 3
        if name in OF_COLOUR and a.shape[1] not in (1, 3):
            raise ValueError(f"{name.lower()} needs 1 or 3 channels, got {a.shape[1]}")
        values = []
        for planes in zip(*(x.detach().cpu() for x in pictures), strict=True):
            parts = [[x.movedim(0, -1) for x in planes]] if in_colour else zip(*planes, strict=True)
            channels = [metrics.compute(x.numpy(), y.numpy(), z.numpy(), [name])[name] for x, y, z in parts]
            values.append(math.fsum(channels) / len(channels))
        return torch.tensor(values, dtype=torch.float64, device=fused.device)

    metric.__name__ = metric.__qualname__ = name.lower()
    metric.__doc__ = f"Values of :func:`ffmef.metrics.{name.lower()}` for each picture of a batch, without gradient."
    if name not in ("BRISQUE", "NIQE"):  # these need further packages
        metric.__doc__ += f"""

    Example:
        >>> x = (torch.arange(176)[:, None] + torch.arange(176) % 80).repeat(2, 1, 1, 1).float()
        >>> {name.lower()}(x, x, x).shape
        torch.Size([2])
    """
    return metric


OF_COLOUR = ("VIFF", "BRISQUE", "NIQE")  # not averaged over the channels
BY_TOOLKIT = ("FMI", "NMI", "QNCIE", "TE", "QP", "QC", "QY", "QCB", "QCV", *OF_COLOUR)
"""Metrics that :mod:`ffmef.metrics` computes on the CPU."""
DIFFERENTIABLE = (
    "PSNR", "RMSE", "AG", "EI", "SD", "SF", "QABF", "N_ABF", "L_ABF", "CC", "SCD", "QW", "MEF_SSIM", "MEF_SSIM_C",
    "SSIM", "MS_SSIM", "VIF", "VIFP",
)  # fmt: skip
"""Metrics with a gradient."""
fmi, nmi, qncie, te, qp, qc, qy, qcb, qcv, viff, brisque, niqe = map(_by_toolkit, BY_TOOLKIT)

__all__ = ["BY_TOOLKIT", "DIFFERENTIABLE", "ce", "en", "mi"]
__all__ += [name.lower() for name in (*BY_TOOLKIT, *DIFFERENTIABLE)]
