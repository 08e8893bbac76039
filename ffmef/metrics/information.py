"""Metrics of information theory: histograms, mutual information and (so-called) signal-to-noise ratios."""

from __future__ import annotations

import math

import numpy as np

from ffmef.metrics import _edge_windows
from ffmef.metrics._channels import SOURCES, Channel, channel_mean, entropy

TSALLIS_ORDER = 1.85


def ce_of_channel(channel: Channel) -> float:
    fused = channel.histogram("f") / channel.pixels
    total = 0.0
    for source in SOURCES:
        own = channel.histogram(source) / channel.pixels
        both = (own > 0) & (fused > 0)
        total += float((own[both] * np.log2(own[both] / fused[both])).sum())
    return total / 2


def en_of_channel(channel: Channel) -> float:
    return entropy(channel.histogram("f"))


def fmi_of_channel(channel: Channel) -> float:
    if min(channel.shape) < 3:
        return math.nan
    codes = {name: _edge_windows.window_codes(_edge_windows.edge_map(x)) for name, x in channel.levels.items()}
    fused = codes["f"]
    total = 0.0
    for source in SOURCES:
        index = codes[source].astype(np.intp)
        index *= _edge_windows.CODES
        index += fused
        counts = np.bincount(index.ravel())
        used = np.flatnonzero(counts)
        total += float((counts[used] * _edge_windows.scores(*np.divmod(used, _edge_windows.CODES))).sum())
    return total / (2 * fused.size)


def _entropies(channel: Channel, first: str, second: str) -> tuple[float, float, float]:
    joint = channel.joint_histogram(first, second)
    return entropy(joint.sum(1)), entropy(joint.sum(0)), entropy(joint)


def nmi_of_channel(channel: Channel) -> float:
    if not channel.stretchable:
        return math.nan
    total = 0.0
    for source in SOURCES:
        own, fused, joint = _entropies(channel, source, "f")
        if own + fused == 0:
            return math.nan
        total += 2 * (own + fused - joint) / (own + fused)
    return total


def mi_of_channel(channel: Channel) -> float:
    total = 0.0
    for source in channel.sources:
        joint = channel.joint_levels(source, "f")
        total += entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint)
    return total


def _root_over_size(channel: Channel) -> float:
    """Mean over the sources of the root of the summed squared error, divided by the number of pixels."""
    return sum(math.sqrt(channel.squared_error(source)) for source in SOURCES) / (2 * channel.pixels)


def _mean_squared_error(channel: Channel) -> float:
    return sum(channel.squared_error(source) for source in SOURCES) / (2 * channel.pixels)


def psnr_of_channel(channel: Channel, error=_root_over_size) -> float:
    value = error(channel)
    return math.inf if value == 0 else 20 * math.log10(255 / math.sqrt(value))


def rmse_of_channel(channel: Channel) -> float:
    return _root_over_size(channel)


def _standard_rmse_of_channel(channel: Channel) -> float:
    return sum(math.sqrt(channel.squared_error(source) / channel.pixels) for source in SOURCES) / 2


def qncie_of_channel(channel: Channel) -> float:
    if not channel.stretchable:
        return math.nan
    correlation = np.eye(3)
    names = "abf"
    for i, j in ((0, 1), (0, 2), (1, 2)):
        own, other, joint = _entropies(channel, names[i], names[j])
        correlation[i, j] = correlation[j, i] = (own + other - joint) / 8
    shares = np.linalg.eigvalsh(correlation) / 3
    shares = shares[shares > 0]  # two equal channels have one share of 0, up to rounding
    return 1 + float((shares * np.log2(shares)).sum()) / 8


def te_of_channel(channel: Channel, swapped: bool = True) -> float:
    if not channel.stretchable:
        return math.nan
    q = TSALLIS_ORDER
    total = 0.0
    for source in SOURCES:
        joint = channel.joint_histogram(source, "f") / channel.pixels
        of_source, of_fused = joint.sum(1), joint.sum(0)
        rows, columns = (of_fused, of_source) if swapped else (of_source, of_fused)
        product = rows[:, None] * columns
        used = (joint > 0) & (product > 0)
        total += (1 - float((joint[used] ** q / product[used] ** (q - 1)).sum())) / (1 - q)
    return total


def ce(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Cross entropy of the grey levels of the sources and of the fused picture.

    .. math:: \tfrac12 \sum_{X \in \{A,B\}} \sum_{v:\,p_X(v) p_F(v) > 0} p_X(v) \log_2 \frac{p_X(v)}{p_F(v)}

    With p the 256-bin histograms. Lower is better; levels that the fused picture lacks are left out, as in the
    toolkit, so the value may be negative. Always defined. Mean over R, G and B. Source: Bulanon, Burks, Alchanatis,
    Biosystems Engineering 2009.

    Args:
        a: a source, uint8 (H, W, 3) or (H, W), NumPy or torch (all metrics take these).
        b: the other source, of the same size.
        fused: the fused picture, of the same size.

    Raises:
        ValueError: for pictures that are not whole grey levels 0..255 or whose sizes or colours do not fit.

    Example:
        >>> import numpy as np
        >>> dark, bright = np.uint8([[0, 0], [0, 1]]), np.uint8([[1, 1], [1, 0]])
        >>> round(ce(dark, bright, np.uint8([[0, 0], [1, 1]])), 4)
        0.1887
    """
    return channel_mean(ce_of_channel, a, b, fused)


def en(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Entropy of the fused picture's grey levels in bits.

    .. math:: -\sum_v p_F(v) \log_2 p_F(v)

    Higher is better; 0 to 8, 0 for a constant picture. Always defined. Mean over R, G and B. Source: Roberts,
    van Aardt, Ahmed, Journal of Applied Remote Sensing 2008. Arguments and errors as for :func:`ce`.

    Example:
        >>> import numpy as np
        >>> picture = np.uint8([[0, 64], [128, 255]])
        >>> en(picture, picture, picture)
        2.0
    """
    return channel_mean(en_of_channel, a, b, fused)


def fmi(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Feature mutual information: how much the edges around a source's pixel say about those of the fused picture.

    .. math:: \frac1{2N} \sum_{\text{windows}} \sum_{X \in \{A,B\}} \frac{2\,I(x;f)}{H(x)+H(f)}

    The features are binary Sobel edges in 3 x 3 windows; a window's nine pixels, divided by their sum, are taken as
    a distribution over the window, and the correlation of two windows places their joint distribution between
    Frechet's bounds. A score thus depends on two codes of nine bits. Higher is better; about 0 to 1; 1 for pictures
    with equal edges (two constant pictures, too). NaN for sides under 3 pixels. Mean over R, G and B. Source:
    Haghighat, Razian, Fast-FMI, AICT 2014. Arguments and errors as for :func:`ce`.

    Example:
        >>> import numpy as np
        >>> picture = np.arange(36, dtype=np.uint8).reshape(6, 6)
        >>> fmi(picture, picture, picture)
        1.0
    """
    return channel_mean(fmi_of_channel, a, b, fused)


def mi(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Mutual information of each source and the fused picture, added, in bits.

    .. math:: \sum_{X \in \{A,B\}} H(X) + H(F) - H(X,F)

    From 256 x 256 joint histograms of the grey levels, neither stretched nor normalised as in :func:`nmi`. Higher is
    better; 0 upwards, at most H(A) + H(B). Always defined; for a bracket, all sources are added. Mean over R, G and B.
    Source: Qu, Zhang, Yan, Electronics Letters 2002. Arguments and errors as for :func:`ce`.

    Example:
        >>> import numpy as np
        >>> a, b = np.uint8([[0, 0], [9, 9]]), np.uint8([[0, 9], [0, 9]])
        >>> mi(a, b, a), mi(a, b, np.uint8([[0, 1], [2, 3]]))
        (1.0, 2.0)
    """
    return channel_mean(mi_of_channel, a, b, fused)


def nmi(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Normalised mutual information of the sources and the fused picture.

    .. math:: 2 \sum_{X \in \{A,B\}} \frac{H(X)+H(F)-H(X,F)}{H(X)+H(F)}

    From 256 x 256 joint histograms of channels stretched to 0..255. Higher is better; 0 to 2. NaN where a channel is
    constant and not zero (the stretch is 0/0), or all zero in a source and the fused picture. Mean over R, G and B.
    Source: Hossny, Nahavandi, Creighton, Electronics Letters 2008. Arguments and errors as for :func:`ce`.

    Example:
        >>> import numpy as np
        >>> picture = np.uint8([[0, 1], [2, 3]])
        >>> nmi(picture, picture, picture)
        2.0
    """
    return channel_mean(nmi_of_channel, a, b, fused)


def _choose(convention: str, choices: dict):
    if convention not in choices:
        raise ValueError(f"convention must be {' or '.join(map(repr, choices))}, got {convention!r}")
    return choices[convention]


def psnr(a: np.ndarray, b: np.ndarray, fused: np.ndarray, *, convention: str = "toolkit") -> float:
    r"""Peak signal-to-noise ratio in dB; by default the toolkits' version, which depends on the picture's size.

    .. math:: 20 \log_{10} \frac{255}{\sqrt{(e_A + e_B)/2}}, \qquad
        e_X = \frac{\sqrt{\sum (X-F)^2}}{HW} \text{ (toolkit)}, \quad \frac{\sum (X-F)^2}{HW} \text{ (standard)}

    The toolkits take the root of the summed squared error before they divide by the number of pixels; a mean squared
    error has no root. Published tables hold such values (near 57 dB), so they are the default. Higher is
    better; infinite where all three pictures are equal. Mean of the channels' dB. Source: Jagalingam, Hegde, 2015.
    Arguments and errors as for :func:`ce`; ``convention`` is "toolkit" or "standard".

    Example:
        >>> import numpy as np
        >>> zero, ten = np.zeros((4, 4), np.uint8), np.full((4, 4), 10, np.uint8)
        >>> round(psnr(zero, zero, ten, convention="standard"), 2), round(psnr(zero, zero, ten), 2)
        (28.13, 44.15)
    """
    error = _choose(convention, {"toolkit": _root_over_size, "standard": _mean_squared_error})
    return channel_mean(lambda channel: psnr_of_channel(channel, error), a, b, fused)


def rmse(a: np.ndarray, b: np.ndarray, fused: np.ndarray, *, convention: str = "toolkit") -> float:
    r"""Root mean squared error in grey levels; by default the toolkits' version, which shrinks as pictures grow.

    .. math:: \tfrac12 (e_A + e_B), \qquad
        e_X = \frac{\sqrt{\sum (X-F)^2}}{HW} \text{ (toolkit)}, \quad
        \sqrt{\frac{\sum (X-F)^2}{HW}} \text{ (standard)}

    Lower is better; 0, where all three pictures are equal, to 255. Mean over R, G and B. Source: the VIFB toolkit
    (Zhang, Ye, Xiao, CVPR workshops 2020). Arguments and errors as for :func:`ce`; ``convention`` is "toolkit" or
    "standard".

    Example:
        >>> import numpy as np
        >>> zero, ten = np.zeros((4, 4), np.uint8), np.full((4, 4), 10, np.uint8)
        >>> rmse(zero, zero, ten, convention="standard"), rmse(zero, zero, ten)
        (10.0, 2.5)
    """
    measure = _choose(convention, {"toolkit": rmse_of_channel, "standard": _standard_rmse_of_channel})
    return channel_mean(measure, a, b, fused)


def qncie(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Nonlinear correlation information entropy of the two sources and the fused picture.

    .. math:: 1 + \sum_{i=1}^{3} \frac{\lambda_i}{3} \log_{256} \frac{\lambda_i}{3}

    With the eigenvalues of the 3 x 3 matrix of mutual information (base 256) of channels stretched to 0..255, ones on
    its diagonal. Higher is better; 0.80 for independent pictures to 1. NaN where a channel is constant and not zero.
    Mean over R, G and B. Source: Wang, Shen, Zhang, Zhang, 2005. Arguments and errors as for :func:`ce`.

    Example:
        >>> import numpy as np
        >>> ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        >>> round(qncie(ramp, ramp, ramp), 6)
        1.0
    """
    return channel_mean(qncie_of_channel, a, b, fused)


def te(a: np.ndarray, b: np.ndarray, fused: np.ndarray, *, convention: str = "toolkit") -> float:
    r"""Tsallis entropy: divergence of order q = 1.85 between joint and independent grey levels, over both sources.

    .. math:: \sum_{X \in \{A,B\}} \frac{1}{1-q} \Big(1 - \sum_{ij} \frac{h_{XF}(i,j)^q}{(m_i n_j)^{q-1}}\Big)

    With h the joint histogram of stretched channels. In the standard form m is the marginal of the source and n that
    of the fused picture; the toolkit swaps them, so its values are huge and mean little. Terms whose
    product is 0 are left out. Higher is better; 0 upwards in the standard form, 100 to 100 000 on photographs in the
    toolkit's. NaN where a channel is constant and not zero. Mean over R, G and B. Source: Cvejic, Canagarajah, Bull,
    Electronics Letters 2006. Arguments and errors as for :func:`ce`; ``convention`` is "toolkit" or "standard".

    Example:
        >>> import numpy as np
        >>> picture = np.uint8([[0, 255], [0, 255]])
        >>> round(te(picture, picture, picture), 4)
        1.8882
    """
    swapped = _choose(convention, {"toolkit": True, "standard": False})
    return channel_mean(lambda channel: te_of_channel(channel, swapped), a, b, fused)
