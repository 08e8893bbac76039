"""Metrics of structural similarity."""

from __future__ import annotations

import functools
import itertools
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
    """Return the mean of a measure over the windows inside the picture where it is defined."""
    if min(channel.shape) < len(taps):
        return math.nan
    total, count = 0.0, 0
    for moments in _windows.moments(channel.levels, taps, of_sources=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            values = measure(moments)
        defined = ~np.isnan(values)
        total += float(values.sum(where=defined))
        count += int(np.count_nonzero(defined))
    return total / count if count else math.nan


def _qy_of_windows(moments: _windows.Moments) -> np.ndarray:
    """Apply the published rule to two sources; more must all be alike, and their variances weight them all."""
    sources = [name for name in moments.variance if name != "f"]
    alike = [moments.similarity(*pair, NEARLY_ZERO, NEARLY_ZERO) for pair in itertools.combinations(sources, 2)]
    like_fused = [moments.similarity(name, "f", NEARLY_ZERO, NEARLY_ZERO) for name in sources]
    total = functools.reduce(np.add, (moments.variance[name] for name in sources))
    *shares, last = [moments.variance[name] / total for name in sources]
    last = functools.reduce(np.subtract, shares, 1.0)
    mixture = functools.reduce(np.add, (s * like for s, like in zip([*shares, last], like_fused, strict=True)))
    return np.where(functools.reduce(np.minimum, alike) >= 0.75, mixture, functools.reduce(np.maximum, like_fused))


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


def _planes(picture: np.ndarray):
    """Return a picture as float64 (C, H, W)."""
    import torch

    planes = picture[None] if picture.ndim == 2 else np.moveaxis(picture, -1, 0)
    return torch.from_numpy(planes.astype(np.float64))


def mef_ssim_of_pictures(pictures: Pictures) -> float:
    if min(pictures.a.shape[:2]) < 44:
        return -math.inf
    import torch

    from ffmef.losses import structural

    sources = torch.stack([_planes(to_grey(x)) for x in pictures.sources])[None]
    with torch.no_grad():
        return structural.mef_ssim(sources, _planes(to_grey(pictures.fused))[None]).item()


def mef_ssim_c_of_pictures(pictures: Pictures) -> float:
    if min(pictures.a.shape[:2]) < 8:
        return math.nan
    import torch

    from ffmef.metrics import functional

    channels = 3 if pictures.in_colour else pictures.fused.ndim * 2 - 3
    planes = [_planes(x).expand(channels, -1, -1) for x in (*pictures.sources, pictures.fused)]
    with torch.no_grad():
        return functional.mef_ssim_c(torch.stack(planes[:-1])[None], planes[-1][None]).item()


def ms_ssim_of_channel(channel: Channel) -> float:
    if min(channel.shape) < 176:
        return math.nan
    import torch

    from ffmef.metrics import functional

    planes = {name: _planes(levels)[None] for name, levels in channel.levels.items()}
    with torch.no_grad():
        return functional.ms_ssim(planes["a"], planes["b"], planes["f"]).item()


def _correlation(covariance: int, first: int, second: int) -> float:
    """Return Pearson's correlation from whole numbers, NaN where a picture is constant."""
    return covariance / math.sqrt(first * second) if first > 0 and second > 0 else math.nan


def cc_of_channel(channel: Channel) -> float:
    spread = channel.scatter("f", "f")
    values = [_correlation(channel.scatter(x, "f"), channel.scatter(x, x), spread) for x in channel.sources]
    return sum(values) / len(values)


def scd_of_channel(channel: Channel) -> float:
    of = {pair: channel.scatter(*pair) for pair in ("aa", "bb", "ff", "ab", "af", "bf")}
    without_b = of["ff"] - 2 * of["bf"] + of["bb"]
    without_a = of["ff"] - 2 * of["af"] + of["aa"]
    return _correlation(of["af"] - of["ab"], without_b, of["aa"]) + _correlation(
        of["bf"] - of["ab"], without_a, of["bb"]
    )


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


def mef_ssim_c(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Structural similarity for multi-exposure fusion of colour patches, luminance included.

    .. math:: \operatorname{mean} \frac{(2\mu_{\hat x}\mu_f + C_1)(2\sigma_{\hat x f} + C_2)}
        {(\mu_{\hat x}^2 + \mu_f^2 + C_1)(\sigma_{\hat x}^2 + \sigma_f^2 + C_2)}, \qquad
        \mu_{\hat x} = \frac{\sum_k L_k \mu_k}{\sum_k L_k}, \quad
        L_k = \exp\Big(-\frac{(\mu_k - 1/2)^2 + (\bar\mu_k - 1/2)^2}{2 \cdot 0.2^2}\Big)

    In windows of 8 x 8 pixels inside the picture, across all channels, at one scale. The desired patch has the
    structure and contrast of the source with the largest variance there, and a mean weighted by how well each source's
    window (:math:`\mu_k`) and whole picture (:math:`\bar\mu_k`, both from 0 to 1) are exposed. Higher is better; at
    most 1. NaN for sides under 8 pixels. Source: Ma, Duanmu, Yeganeh, Wang, IEEE Transactions on Computational Imaging
    2018, with the limit on the exponent that its code sets. Arguments and errors as for :func:`mef_ssim`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(48 * 48) % 251).astype(np.uint8).reshape(48, 48)
        >>> round(mef_ssim_c(picture, picture, picture), 9)
        1.0
    """
    return mef_ssim_c_of_pictures(Pictures(a, b, fused))


def ms_ssim(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Structural similarity at five scales of the fused picture with each source, added.

    .. math:: \sum_{X \in \{A,B\}} \mathrm{SSIM}_5(X,F)^{w_5} \prod_{l=1}^{4} \mathrm{cs}_l(X,F)^{w_l}, \qquad
        w = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

    With cs the factor of contrast and structure in :func:`ssim`, its windows and constants, and 2 x 2 means between the
    scales. A scale whose mean is negative counts as 0. Higher is better; 0 to 2. NaN for sides under 176
    pixels. Mean over R, G and B. Source: Wang, Simoncelli, Bovik, Asilomar 2003. Arguments and errors as for
    :func:`mef_ssim`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(176 * 176) % 251).astype(np.uint8).reshape(176, 176)
        >>> round(ms_ssim(picture, picture, picture), 9)
        2.0
    """
    return channel_mean(ms_ssim_of_channel, a, b, fused)


def cc(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Mean correlation of the fused picture with the sources.

    .. math:: \frac{r(A,F) + r(B,F)}{2}

    With r Pearson's correlation of the pixels, from whole numbers without rounding. Higher is better; -1 to 1. NaN
    where a channel is constant. Mean over R, G and B. Source: Deshmukh, Bhosale, 2010. Arguments and errors as for
    :func:`mef_ssim`.

    Example:
        >>> import numpy as np
        >>> a, b = np.uint8([[0, 1], [2, 3]]), np.uint8([[3, 2], [1, 0]])
        >>> cc(a, a, a), cc(a, b, a)
        (1.0, 0.0)
    """
    return channel_mean(cc_of_channel, a, b, fused)


def scd(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Sum of the correlations of differences: each source with what it gave the fused picture.

    .. math:: r(F - B, A) + r(F - A, B)

    With r Pearson's correlation of the pixels, from whole numbers without rounding. Higher is better; -2 to 2. NaN
    where a source is constant, or differs from the fused picture by a constant. Mean over R, G and B. Source: Aslantas,
    Bendes, AEU 2015. Arguments and errors as for :func:`mef_ssim`.

    Example:
        >>> import numpy as np
        >>> a, b = np.uint8([[0, 1], [2, 3]]), np.uint8([[3, 0], [1, 9]])
        >>> round(scd(a, b, a + b), 9)
        2.0
    """
    return channel_mean(scd_of_channel, a, b, fused)


def qw(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Weighted structural similarity of the edges of the sources and of the fused picture.

    .. math:: \sum c\, \big(\lambda\, \mathrm{SSIM}_{AF} + (1 - \lambda)\, \mathrm{SSIM}_{BF}\big), \qquad
        \lambda = \frac{\sigma_A^2}{\sigma_A^2 + \sigma_B^2}, \quad
        c = \frac{\max(\sigma_A^2, \sigma_B^2)}{\sum \max(\sigma_A^2, \sigma_B^2)}

    Computed on the lengths of Prewitt gradients (zeros outside the picture), in 11 x 11 Gaussian windows (sigma 1.5)
    inside the picture; this is the edge-dependent form that the toolkit computes under this name. Higher is better; at
    most 1. Where both variances are 0, both count as 0.5. NaN for sides under 11 pixels. Mean over R, G and B. Source:
    Piella, Heijmans, ICIP 2003. Arguments and errors as for :func:`mef_ssim`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(20 * 20) % 251).astype(np.uint8).reshape(20, 20)
        >>> round(qw(picture, picture, picture), 9)
        1.0
    """
    return channel_mean(qw_of_channel, a, b, fused)


def qy(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Structural similarity by Yang: a mixture where the sources agree, the better of the two where they do not.

    .. math:: \lambda\, \mathrm{SSIM}_{AF} + (1 - \lambda)\, \mathrm{SSIM}_{BF} \text{ where } \mathrm{SSIM}_{AB}
        \ge 0.75, \quad \max(\mathrm{SSIM}_{AF}, \mathrm{SSIM}_{BF}) \text{ elsewhere}

    7 x 7 Gaussian windows (sigma 1.5) inside the picture, :math:`\lambda = \sigma_A^2 / (\sigma_A^2 + \sigma_B^2)`,
    undefined windows left out. The constants of SSIM are nearly 0 (2e-16), so rounding decides windows in clipped
    areas, and values compare to about 1e-4 only. Higher is better; -1 to 1. NaN for sides under 7 pixels. Mean over
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
