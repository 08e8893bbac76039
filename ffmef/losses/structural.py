"""Structural similarity of a fused picture with its sources, differentiable in the fused picture."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ffmef.ops.library import plain_tensors
from ffmef.ops.reference import halve
from ffmef.windows import gaussian

WINDOW = 11
EXPONENTS = (0.0448, 0.2856, 0.3001)  # of the three scales of MEF-SSIM, before they are made to sum to 1
_STABILISER = 2.0**-52  # keeps the quotients and the weights of textureless patches defined
_NORM_FLOOR = 0.001  # grey levels; keeps the division of a flat patch by its norm defined
_STRIP_PIXELS = 1 << 16
_GRADIENT_FLOOR = 1e-3  # a power's slope below it is taken here, so a bad start still learns


_GAUSSIAN = gaussian(WINDOW, 1.5)
_BOX = (1.0,) * WINDOW


class _SlidingSum(torch.autograd.Function):
    """Weighted sum over every window that lies inside the picture, one axis after the other.

    Shifted additions need no copy of the picture per tap and are several times faster on a CPU than a convolution of
    one channel. On a GPU, launches would dominate, so there the sums are two products with banded matrices. The
    adjoint of a symmetric window is the same sum over the zero-padded gradient.
    """

    @staticmethod
    def forward(maps: Tensor, taps: Sequence[float]) -> Tensor:
        return _by_bands(maps, taps) if maps.device.type == "cuda" else _by_shifts(maps, taps)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.taps = inputs[1]

    @staticmethod
    def backward(ctx, grad: Tensor):
        border = len(ctx.taps) - 1
        return _SlidingSum.apply(F.pad(grad, (border,) * 4), ctx.taps), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _) -> Tensor:
        return _SlidingSum.apply(tangent, ctx.taps)

    @staticmethod
    def vmap(info, in_dims, maps: Tensor, taps: Sequence[float]):
        return _SlidingSum.apply(maps.movedim(in_dims[0], 0), taps), 0


def _sliding_sum(maps: Tensor, taps: Sequence[float]) -> Tensor:
    """Return :class:`_SlidingSum`; torch.compile traces no function with a jvp, and fuses the shifts itself."""
    return _by_shifts(maps, taps) if torch.compiler.is_dynamo_compiling() else _SlidingSum.apply(maps, taps)


def _by_shifts(maps: Tensor, taps: Sequence[float]) -> Tensor:
    for dim in (-2, -1):
        length = maps.shape[dim] - len(taps) + 1
        total = maps.narrow(dim, 0, length) * taps[0]
        for i, tap in enumerate(taps[1:], start=1):
            total.add_(maps.narrow(dim, i, length), alpha=tap)
        maps = total
    return maps


def _by_bands(maps: Tensor, taps: Sequence[float]) -> Tensor:
    """Return the same sums as products with banded matrices, one for each axis."""
    capturing = maps.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()
    band = _captured_band if capturing else _band
    down, across = (band(side, tuple(taps), maps.dtype, maps.device) for side in maps.shape[-2:])
    return down.mT @ (maps.flatten(0, -3) @ across).view(*maps.shape[:-1], across.shape[1])


@functools.lru_cache(maxsize=64)
def _band(side: int, taps: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (side, side - T + 1): column i holds the T taps from row i on."""
    with plain_tensors():
        step = torch.arange(side).unsqueeze(1) - torch.arange(side - len(taps) + 1)
        inside = (step >= 0) & (step < len(taps))
        band = torch.tensor(taps, dtype=torch.float64)[step.clamp(0, len(taps) - 1)] * inside
        return band.to(dtype).to(device)


@functools.cache
def _captured_band(side: int, taps: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return :func:`_band`, which must then live as long as any CUDA graph that reads it."""
    return _band(side, taps, dtype, device)


def _gaussian(maps: Tensor) -> Tensor:
    return _sliding_sum(maps, _GAUSSIAN)


def _desired_structure(sources: Tensor, pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return the factor of each source in the desired patch (B, N, h, w) and that patch's Gaussian variance.

    The desired patch is sum_k factor_k (patch_k - its mean), so box and Gaussian statistics of products of two sources
    suffice; no patch is ever formed. ``pairs`` names each source with itself, then all others. Whole
    grey levels make the box sums exact in float64.
    """
    area = WINDOW * WINDOW
    count = sources.shape[1]
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    sums, means = _sliding_sum(sources, _BOX), _gaussian(sources)
    products = _of(sources, first) * _of(sources, second)
    scatter = (_sliding_sum(products, _BOX) * area - _of(sums, first) * _of(sums, second)) / area
    covariance = _gaussian(products) - _of(means, first) * _of(means, second)

    def combine(values: Tensor, factors: Tensor | None) -> Tensor:
        terms = values if factors is None else values * _of(factors, first) * _of(factors, second)
        return (terms[:, :count].sum(1) + 2 * terms[:, count:].sum(1)).clamp_min(0)

    norms = scatter[:, :count].clamp_min(0).sqrt()
    consistency = (combine(scatter, None).sqrt() + _STABILISER) / (norms.sum(1) + _STABILISER)
    # tan reaches the limit of 10 at 0.937, so the upper clip changes no value and keeps tan off its pole.
    power = torch.tan(consistency.clamp(0, 0.99) * (math.pi / 2)).clamp_max(10).unsqueeze(1)
    energies = norms + _NORM_FLOOR
    weights = (energies / WINDOW) ** power + _STABILISER
    factors = weights / weights.sum(1, keepdim=True) / energies
    norm = combine(scatter, factors).sqrt()
    scale = torch.where(norm > 0, energies.amax(1) / norm, 0)
    factors = factors * scale.unsqueeze(1)
    return factors, combine(covariance, factors)


def _of(maps: Tensor, numbers: list[int]) -> Tensor:
    """Return maps (B, K, h, w) selected by number, in that order, without copying an index to the device."""
    return torch.stack([maps[:, number] for number in numbers], 1)


def _mef_ssim_map(sources: Tensor, fused: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    constant = (0.03 * 255) ** 2
    with torch.no_grad():
        factors, desired_variance = _desired_structure(sources, pairs)
        source_means = _gaussian(sources)
    fused_mean = _gaussian(fused)
    fused_variance = _gaussian(fused * fused) - fused_mean * fused_mean
    products = _gaussian(sources * fused) - source_means * fused_mean
    covariance = (factors * products).sum(1)
    return (2 * covariance + constant) / (desired_variance + fused_variance.squeeze(1) + constant)


def _mean_of_map(sources: Tensor, fused: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Return the mean of the local values; without gradients, strip by strip: bounded memory, data in cache."""
    height, width = fused.shape[-2] - WINDOW + 1, fused.shape[-1] - WINDOW + 1
    rows = height if torch.is_grad_enabled() and fused.requires_grad else max(16, _STRIP_PIXELS // width)
    total = fused.new_zeros(fused.shape[0])
    for top in range(0, height, rows):
        strip = slice(top, min(top + rows, height) + WINDOW - 1)
        total = total + _mef_ssim_map(sources[..., strip, :], fused[..., strip, :], pairs).sum((-2, -1))
    return total / (height * width)


def mef_ssim(sources: Tensor, fused: Tensor, *, scales: int = 3) -> Tensor:
    r"""Return the structural similarity of a fused picture with the best structure in any of its sources.

    .. math:: \prod_l \Big(\operatorname{mean} \frac{2\sigma_{\hat x f}+C}{\sigma_{\hat x}^2+\sigma_f^2+C}\Big)^{w_l}

    The desired patch :math:`\hat x` adds the mean-free source patches, weighted by their own contrast and by how well
    they agree, and takes the norm of the strongest of them (Ma, Zeng, Wang: Perceptual quality assessment for
    multi-exposure image fusion, IEEE TIP 2015, equations 3 to 12). Windows are 11 x 11 and lie inside the picture;
    :math:`C = (0.03 \cdot 255)^2`; the weights of the scales are 0.0448, 0.2856, 0.3001, made to sum to 1. There is
    no luminance term. The value lies in [0, 1], higher is better; a scale whose mean is negative counts as 0.

    Args:
        sources: (B, N, 1, H, W), N >= 2 pictures in grey levels 0..255, float32 or float64 (lower precisions are
            computed in float32). They are constants: no gradient reaches them.
        fused: (B, 1, H, W), in grey levels 0..255. The gradient is defined everywhere.
        scales: the number of scales, each half as large as the one before; 3 is the published measure.

    Returns:
        (B,) values.

    Raises:
        ValueError: shapes do not fit, ``scales`` is out of range, or the smallest scale has a side under 11 pixels.

    Example:
        >>> import torch
        >>> picture = torch.arange(48.0 * 48).remainder(251).view(1, 1, 48, 48)
        >>> mef_ssim(torch.stack([picture, picture], 1), picture)
        tensor([1.])
    """
    if sources.dim() != 5 or sources.shape[1] < 2 or sources.shape[2] != 1:
        raise ValueError(f"sources must be (B, N, 1, H, W) with N >= 2, got {tuple(sources.shape)}")
    expected = (sources.shape[0], *sources.shape[2:])
    if tuple(fused.shape) != expected:
        raise ValueError(f"fused must be {expected} like sources, got {tuple(fused.shape)}")
    if not 1 <= scales <= len(EXPONENTS):
        raise ValueError(f"scales must be 1 to {len(EXPONENTS)}, got {scales}")
    least = WINDOW * 2 ** (scales - 1)
    if min(fused.shape[-2:]) < least:
        raise ValueError(f"fused must have sides of at least {least} pixels at {scales} scales, got {expected[2:]}")
    dtype = torch.promote_types(torch.promote_types(sources.dtype, fused.dtype), torch.float32)
    # The measure ignores the mean; grey levels around zero keep float32 products small.
    sources = sources.detach().to(dtype).squeeze(2) - 128
    fused = fused.to(dtype) - 128
    count = sources.shape[1]
    pairs = [(i, i) for i in range(count)] + list(itertools.combinations(range(count), 2))
    exponents = [exponent / sum(EXPONENTS[:scales]) for exponent in EXPONENTS[:scales]]
    value = slope = fused.new_ones(fused.shape[0])
    for level, exponent in enumerate(exponents):
        if level:
            sources, fused = halve(sources), halve(fused)
        score = _mean_of_map(sources, fused, pairs)
        value = value * score.detach().clamp_min(0) ** exponent
        slope = slope * (score + (score.detach().clamp_min(_GRADIENT_FLOOR) - score.detach())) ** exponent
    return slope + (value - slope.detach())


def ssim(x: Tensor, y: Tensor, *, data_range: float = 255.0) -> Tensor:
    r"""Return the mean structural similarity of two pictures.

    .. math:: \operatorname{mean}
        \frac{(2\mu_x\mu_y+C_1)(2\sigma_{xy}+C_2)}{(\mu_x^2+\mu_y^2+C_1)(\sigma_x^2+\sigma_y^2+C_2)}

    Gaussian windows of 11 x 11 pixels, sigma 1.5, inside the picture; :math:`C_1 = (0.01 R)^2`,
    :math:`C_2 = (0.03 R)^2` with R the data range (Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE TIP
    2004). The value lies in [-1, 1], higher is better; it is symmetric and differentiable in both pictures.

    Args:
        x: (B, C, H, W), float32 or float64 (lower precisions are computed in float32).
        y: like ``x``.
        data_range: the span of the values: 255 for grey levels, 1 for pictures in [0, 1].

    Returns:
        (B,) values, the mean over channels and windows.

    Raises:
        ValueError: shapes differ or have a side under 11 pixels.

    Example:
        >>> import torch
        >>> picture = torch.arange(16.0 * 16).view(1, 1, 16, 16)
        >>> ssim(picture, picture)
        tensor([1.])
    """
    if x.dim() != 4 or x.shape != y.shape:
        raise ValueError(f"y must be (B, C, H, W) like x, got {tuple(y.shape)} and {tuple(x.shape)}")
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"x must have sides of at least {WINDOW} pixels, got {tuple(x.shape[-2:])}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y = _gaussian(x), _gaussian(y)
    # Second moments around the middle of the range lose fewer digits; only the means need the true level.
    middle = data_range / 2
    x, y, low_x, low_y = x - middle, y - middle, mean_x - middle, mean_y - middle
    variances = _gaussian(x * x + y * y) - low_x * low_x - low_y * low_y
    covariance = _gaussian(x * y) - low_x * low_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean((-3, -2, -1))
