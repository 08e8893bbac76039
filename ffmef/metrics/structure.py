"""Metrics of structural similarity."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ffmef.metrics import _windows
from ffmef.metrics._channels import SOURCES, Channel, Pictures, channel_mean, to_grey

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
NEARLY_ZERO = 2e-16  # the constants of QC and QY


def qw_of_channel(channel: Channel) -> float:
    if min(channel.shape) < 11:
        return math.nan
    edges = {name: _windows.magnitude(channel.levels[name], _windows.PREWITT, "zeros") for name in "abf"}
    total = total_weight = 0.0
    for moments in _windows.moments(edges, _windows.gaussian(11, 1.5)):
        va, vb = moments.variance["a"], moments.variance["b"]
        flat = va + vb == 0
        va, vb = va + 0.5 * flat, vb + 0.5 * flat
        share = va / (va + vb)
        weight = np.maximum(va, vb)
        quality = share * moments.similarity("a", "f", C1, C2) + (1 - share) * moments.similarity("b", "f", C1, C2)
        total += float((weight * quality).sum())
        total_weight += float(weight.sum())
    return total / total_weight


def _mean_over_windows(channel: Channel, taps: np.ndarray, measure: Callable[[_windows.Moments], np.ndarray]) -> float:
    """Mean of a measure over the windows inside the picture where it is defined."""
    if min(channel.shape) < len(taps):
        return math.nan
    total, count = 0.0, 0
    for moments in _windows.moments(channel.levels, taps, of_sources=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            values = measure(moments)
        defined = ~np.isnan(values)
        total += float(values.sum(where=defined))
        count += np.count_nonzero(defined)
    return total / count if count else math.nan


def _qy_of_windows(moments: _windows.Moments) -> np.ndarray:
    share = moments.variance["a"] / (moments.variance["a"] + moments.variance["b"])
    like_a, like_b, alike = (
        moments.similarity(*pair, NEARLY_ZERO, NEARLY_ZERO) for pair in (("a", "f"), ("b", "f"), ("a", "b"))
    )
    return np.where(alike >= 0.75, share * like_a + (1 - share) * like_b, np.maximum(like_a, like_b))


def qy_of_channel(channel: Channel) -> float:
    return _mean_over_windows(channel, _windows.gaussian(7, 1.5), _qy_of_windows)


def _qc_of_windows(moments: _windows.Moments) -> np.ndarray:
    with_a, with_b = moments.covariance("a", "f"), moments.covariance("b", "f")
    share = with_a / (with_a + with_b)
    like_a = moments.similarity("a", "f", NEARLY_ZERO, NEARLY_ZERO, with_a)
    like_b = moments.similarity("b", "f", NEARLY_ZERO, NEARLY_ZERO, with_b)
    value = share * like_a + (1 - share) * like_b
    value[share < 0] = 0
    value[share > 1] = 1
    return value


def qc_of_channel(channel: Channel) -> float:
    return _mean_over_windows(channel, _windows.gaussian(7, 1.5), _qc_of_windows)


def _ssim_of_windows(moments: _windows.Moments) -> np.ndarray:
    return sum(moments.similarity(source, "f", C1, C2) for source in SOURCES)


def ssim_of_channel(channel: Channel) -> float:
    return _mean_over_windows(channel, _windows.gaussian(11, 1.5), _ssim_of_windows)


def mef_ssim_of_pictures(pictures: Pictures) -> float:
    if min(pictures.a.shape[:2]) < 44:
        return -math.inf
    import torch

    from ffmef.losses import structural

    grey = [torch.from_numpy(to_grey(x).astype(np.float64)) for x in (pictures.a, pictures.b, pictures.fused)]
    with torch.no_grad():
        return structural.mef_ssim(torch.stack(grey[:2])[None, :, None], grey[2][None, None]).item()


def mef_ssim(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Structural similarity for multi-exposure fusion at three scales.

    .. math:: \prod_l \Big(\operatorname{mean} \frac{2\sigma_{\hat x f}+C}{\sigma_{\hat x}^2+\sigma_f^2+C}\Big)^{w_l}

    The float64 value of :func:`ffmef.losses.structural.mef_ssim`, which states the method, on rounded luma (0.298936
    R + 0.587043 G + 0.114021 B). Higher is better; 0 to 1; 1 for identical pictures. Minus infinity for sides under
    44 pixels, as in the toolkit; 0 where a scale's mean is negative. Source: Ma, Zeng, Wang, IEEE TIP 2015.

    Args:
        a: a source, uint8 (H, W, 3) or (H, W), NumPy or torch (all metrics take these).
        b: the other source, of the same size.
        fused: the fused picture, of the same size.

    Raises:
        ValueError: for pictures that are not whole grey levels 0..255 or whose sizes or colours do not fit.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(48 * 48) % 251).astype(np.uint8).reshape(48, 48)
        >>> round(mef_ssim(picture, picture, picture), 9)
        1.0
    """
    return mef_ssim_of_pictures(Pictures(a, b, fused))


def qw(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Weighted structural similarity of the edges of the sources and of the fused picture.

    .. math:: \sum c\, \big(\lambda\, \mathrm{SSIM}_{AF} + (1 - \lambda)\, \mathrm{SSIM}_{BF}\big), \qquad
        \lambda = \frac{\sigma_A^2}{\sigma_A^2 + \sigma_B^2}, \quad
        c = \frac{\max(\sigma_A^2, \sigma_B^2)}{\sum \max(\sigma_A^2, \sigma_B^2)}

    Of the lengths of Prewitt gradients (zeros outside the picture), in 11 x 11 Gaussian windows (sigma 1.5) inside
    the picture; this is the edge-dependent form that the toolkit computes under this name. Higher is better; at most
    1. Where both variances are 0, both count as 0.5. NaN for sides under 11 pixels. Mean over R, G and B. Source:
    Piella, Heijmans, ICIP 2003. Arguments and errors as for :func:`mef_ssim`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(20 * 20) % 251).astype(np.uint8).reshape(20, 20)
        >>> round(qw(picture, picture, picture), 9)
        1.0
    """
    return channel_mean(qw_of_channel, a, b, fused)


def qy(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Structural similarity by Yang: a mixture where the sources agree, the better of both where they do not.

    .. math:: \lambda\, \mathrm{SSIM}_{AF} + (1 - \lambda)\, \mathrm{SSIM}_{BF} \text{ where } \mathrm{SSIM}_{AB}
        \ge 0.75, \quad \max(\mathrm{SSIM}_{AF}, \mathrm{SSIM}_{BF}) \text{ elsewhere}

    7 x 7 Gaussian windows (sigma 1.5) inside the picture, :math:`\lambda = \sigma_A^2 / (\sigma_A^2 + \sigma_B^2)`,
    undefined windows left out. The constants of SSIM are nearly 0 (2e-16), so windows of clipped areas are decided by
    rounding and values compare to about 1e-4 only. Higher is better; -1 to 1. NaN for sides under 7 pixels. Mean over
    R, G and B. Source: Yang, Zhang, Wang, Xydeas, 2008. Arguments and errors as for :func:`mef_ssim`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(20 * 20) % 251).astype(np.uint8).reshape(20, 20)
        >>> round(qy(picture, picture, picture), 6)
        1.0
    """
    return channel_mean(qy_of_channel, a, b, fused)


def qc(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Structural similarity by Cvejic, mixed by the covariances of the sources with the fused picture.

    .. math:: s\, \mathrm{SSIM}_{AF} + (1 - s)\, \mathrm{SSIM}_{BF}, \qquad
        s = \frac{\sigma_{AF}}{\sigma_{AF} + \sigma_{BF}}

    As the toolkit has it, the score (not s) is 0 where s < 0 and 1 where s > 1. Windows, constants, undefined windows
    and the caution on clipped areas as for :func:`qy`. Higher is better; -1 to 1. NaN for sides under 7 pixels. Mean
    over R, G and B. Source: Cvejic, Loza, Bull, Canagarajah, 2005. Arguments and errors as for :func:`mef_ssim`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(20 * 20) % 251).astype(np.uint8).reshape(20, 20)
        >>> round(qc(picture, picture, picture), 6)
        1.0
    """
    return channel_mean(qc_of_channel, a, b, fused)


def ssim(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Structural similarity of the fused picture with each source, added.

    .. math:: \mathrm{SSIM}(A, F) + \mathrm{SSIM}(B, F)

    :func:`ffmef.losses.structural.ssim` in float64: 11 x 11 Gaussian windows (sigma 1.5) inside the picture,
    constants 0.01 and 0.03 of 255. Higher is better; -2 to 2. NaN for sides under 11 pixels. Mean over R, G and B.
    Source: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004, as the VIFB toolkit adds it. Arguments and errors as for
    :func:`mef_ssim`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(20 * 20) % 251).astype(np.uint8).reshape(20, 20)
        >>> round(ssim(picture, picture, picture), 9)
        2.0
    """
    return channel_mean(ssim_of_channel, a, b, fused)
