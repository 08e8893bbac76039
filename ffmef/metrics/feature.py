"""Metrics of image features: gradients, edges, contrast and phase congruency."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ffmef.metrics import _phase_congruency, _windows
from ffmef.metrics._channels import SOURCES, Channel, Pictures, channel_mean
from ffmef.metrics.information import _choose

# Gain, slope and centre of the two sigmoids of QABF, for strength and orientation.
STRENGTH = (0.9994, 15.0, 0.5)
ORIENTATION = (0.9879, 22.0, 0.8)
# For N_abf and L_abf: gain, slope and centre of the two sigmoids, then the weight of an edge.
EDGE_STRENGTH = (0.9999, 19.0, 0.5)
EDGE_ORIENTATION = (0.9995, 22.0, 0.5)
LEAST_EDGE, LEAST_WEIGHT, WEIGHT_EXPONENT = 2.0, 0.001, 1.5
FEATURE = 0.1  # least phase congruency of a feature
QP_OFFSET = 1e-4


def ag_of_channel(channel: Channel) -> float:
    height, width = channel.shape
    if min(height, width) < 2:
        return math.nan
    grey = channel.fused_grey.astype(np.float64)
    dy, dx = np.gradient(grey)
    return float(np.sqrt((dx * dx + dy * dy) / 2).sum()) / ((height - 1) * (width - 1))


def ei_of_channel(channel: Channel) -> float:
    return float(_windows.magnitude(channel.levels["f"], _windows.SOBEL, "replicate").mean())


def sd_of_channel(channel: Channel) -> float:
    return float(channel.levels["f"].std())


def _spatial_frequency(levels: np.ndarray) -> float:
    levels = levels.astype(np.int32)
    total = sum(int(np.square(np.diff(levels, axis=axis)).sum(dtype=np.int64)) for axis in (0, 1))
    return math.sqrt(total / levels.size)


def sf_of_channel(channel: Channel) -> float:
    return _spatial_frequency(channel.levels["f"])


def sf_side_by_side(pictures: Pictures) -> float:
    """Spatial frequency of the channels side by side: differences cross their seams."""
    if pictures.a.ndim == pictures.b.ndim == 2:
        return float(np.mean([sf_of_channel(channel) for channel in pictures.channels()]))
    return _spatial_frequency(np.concatenate([pictures.fused[..., c] for c in range(3)], 1))


def _sigmoid(values: np.ndarray, parameters: tuple[float, float, float]) -> np.ndarray:
    gain, slope, centre = parameters
    return gain / (1 + np.exp(-slope * (values - centre)))


def qabf_of_channel(channel: Channel, tie: float | None = None) -> float:
    preserved = weight = 0.0
    for rows, kept in _windows.strips(*channel.shape, 1, inside=False):
        squares, angles = {}, {}
        for name, levels in channel.levels.items():
            dx, dy = (d[kept] for d in _windows.derivatives(levels[rows], _windows.SOBEL, "zeros"))
            squares[name] = dx * dx + dy * dy
            angle = np.full(dx.shape, math.pi / 2)
            np.divide(dy, dx, out=angle, where=dx != 0)
            np.arctan(angle, out=angle, where=dx != 0)
            angles[name] = angle
        strength_f = np.sqrt(squares["f"])
        for source in SOURCES:
            strength = np.sqrt(squares[source])
            larger = np.maximum(strength, strength_f)
            relative = np.divide(np.minimum(strength, strength_f), larger, out=np.zeros_like(larger), where=larger > 0)
            equal = squares[source] == squares["f"]
            relative[equal] = 255 * strength_f[equal] if tie is None else tie
            aligned = 1 - np.abs(angles[source] - angles["f"]) / (math.pi / 2)
            quality = _sigmoid(relative, STRENGTH) * _sigmoid(aligned, ORIENTATION)
            preserved += float((quality * strength).sum())
            weight += float(strength.sum())
    return preserved / weight if weight else math.nan


def _lost_and_added(channel: Channel) -> tuple[float, float]:
    """Return how much edge information is lost and how much is added; with what is kept they make 1."""
    if min(channel.shape) < 2:
        return math.nan, math.nan
    strengths, angles = {}, {}
    for name, levels in channel.levels.items():
        dx, dy = _windows.derivatives(levels, _windows.SOBEL, "mirror")
        strengths[name] = np.sqrt(dx * dx + dy * dy) / 8
        angle = np.full(dx.shape, math.pi / 2)
        np.divide(dy, dx, out=angle, where=dx != 0)
        np.arctan(angle, out=angle, where=dx != 0)
        angles[name] = angle
    fused = strengths["f"]
    artefact = (fused > strengths["a"]) & (fused > strengths["b"])
    lost = added = total = 0.0
    for source in SOURCES:
        own = strengths[source]
        larger = np.maximum(own, fused)
        relative = np.divide(np.minimum(own, fused), larger, out=np.zeros_like(larger), where=larger > 0)
        aligned = np.abs(np.abs(angles[source] - angles["f"]) - math.pi / 2) * (2 / math.pi)
        kept = np.sqrt(_sigmoid(relative, EDGE_STRENGTH) * _sigmoid(aligned, EDGE_ORIENTATION))
        weight = np.where(own >= LEAST_EDGE, own**WEIGHT_EXPONENT, LEAST_WEIGHT)
        missing = (1 - kept) * weight
        added += float(missing.sum(where=artefact))
        lost += float(missing.sum(where=~artefact))
        total += float(weight.sum())
    return lost / total, added / total


def n_abf_of_channel(channel: Channel) -> float:
    return _lost_and_added(channel)[1]


def l_abf_of_channel(channel: Channel) -> float:
    return _lost_and_added(channel)[0]


def qp_of_channel(channel: Channel) -> float:
    if min(channel.shape) < 2:
        return math.nan
    maps = dict(zip(channel.levels, _phase_congruency.maps(list(channel.levels.values())), strict=True))
    from_a = maps["a"][0] > maps["b"][0]
    masks = {name: maps[name][0] > FEATURE for name in SOURCES}
    masks["max"] = np.where(from_a, masks["a"], masks["b"])
    count = np.count_nonzero(masks["max"])
    if not count:
        return math.nan
    taps = _windows.gaussian(11, 1.5)
    product = 1.0
    for feature in range(3):
        of = {name: maps[name][feature] for name in "abf"}
        of["max"] = np.where(from_a, of["a"], of["b"])
        for name, mask in masks.items():
            of[name] = of[name] * mask
        total, row = 0.0, 0
        for moments in _windows.moments(of, taps, inside=False):
            best: Any = None
            for name, mask in masks.items():
                spread = np.sqrt(np.abs(moments.variance[name] * moments.variance["f"]))
                score = (moments.covariance(name, "f") + QP_OFFSET) / (spread + QP_OFFSET)
                score *= mask[row : row + len(score)]
                best = score if best is None else np.maximum(best, score)
            total += float(best.sum())
            row += len(best)
        product *= total / count
    return product


def ag(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Average gradient of the fused picture in grey levels per pixel.

    .. math:: \frac{1}{(H-1)(W-1)} \sum \sqrt{\frac{F_x^2 + F_y^2}{2}}

    Central differences, one-sided at the border; the sum runs over all HW pixels. Higher is better; from 0, for a
    constant picture, to about 255; NaN for sides under 2 pixels. Mean over R, G and B; for a colour picture fused
    from grey sources, the value of its grey version. Source: Cui, Feng, Xu, Li, Chen, Optics Communications 2015.

    Args:
        a: a source, uint8 (H, W, 3) or (H, W), NumPy or torch (all metrics take these).
        b: the other source, of the same size.
        fused: the fused picture, of the same size.

    Raises:
        ValueError: for pictures that are not whole grey levels 0..255 or whose sizes or colours do not fit.

    Example:
        >>> import numpy as np
        >>> ramp = np.tile(np.arange(5, dtype=np.uint8), (5, 1))
        >>> round(ag(ramp, ramp, ramp), 4)
        1.1049
    """
    return channel_mean(ag_of_channel, a, b, fused)


def ei(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Edge intensity: mean length of the fused picture's Sobel gradient, borders repeated.

    .. math:: \operatorname{mean} \sqrt{(S_x * F)^2 + (S_y * F)^2}

    Higher is better; from 0, for a constant picture, to 1443. Always defined. Mean over R, G and B. Source: Rajalingam,
    Priya, 2018. Arguments and errors as for :func:`ag`.

    Example:
        >>> import numpy as np
        >>> ramp = np.tile(np.arange(6, dtype=np.uint8), (6, 1))
        >>> round(ei(ramp, ramp, ramp), 4)
        6.6667
    """
    return channel_mean(ei_of_channel, a, b, fused)


def sd(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Standard deviation of the fused picture's grey levels, over all HW pixels.

    .. math:: \sqrt{\tfrac1{HW} \sum (F - \bar F)^2}

    Higher is better; 0 to 127.5. Always defined. Mean over R, G and B. Source: Rao, Measurement Science and
    Technology 1997. Arguments and errors as for :func:`ag`.

    Example:
        >>> import numpy as np
        >>> picture = np.uint8([[0, 10], [10, 0]])
        >>> sd(picture, picture, picture)
        5.0
    """
    return channel_mean(sd_of_channel, a, b, fused)


def sf(a: np.ndarray, b: np.ndarray, fused: np.ndarray, *, convention: str = "mefb") -> float:
    r"""Spatial frequency of the fused picture.

    .. math:: \sqrt{\tfrac1{HW} \sum (F_{y,x} - F_{y,x-1})^2 + \tfrac1{HW} \sum (F_{y,x} - F_{y-1,x})^2}

    Divided by the number of pixels, not of differences. Higher is better; 0, for a constant picture, to 361. Always
    defined. ``convention`` "mefb" takes the mean over R, G and B; "vifb" puts the three channels side by side, as that
    toolkit does, and differences cross the seams. Source: Eskicioglu, Fisher, IEEE Transactions on
    Communications 1995. Arguments and errors as for :func:`ag`.

    Example:
        >>> import numpy as np
        >>> picture = np.uint8([[0, 4], [0, 4]])
        >>> round(sf(picture, picture, picture), 4)
        2.8284
    """
    if _choose(convention, {"mefb": False, "vifb": True}):
        return sf_side_by_side(Pictures(a, b, fused))
    return channel_mean(sf_of_channel, a, b, fused)


def qabf(a: np.ndarray, b: np.ndarray, fused: np.ndarray, *, convention: str = "toolkit") -> float:
    r"""Gradient preservation Q^{AB/F}: how much of the sources' edges the fused picture keeps.

    .. math:: \frac{\sum Q^{AF} g_A + Q^{BF} g_B}{\sum g_A + g_B}, \qquad
        Q^{XF} = \frac{0.9994}{1 + e^{-15(G - 0.5)}} \cdot \frac{0.9879}{1 + e^{-22(\alpha - 0.8)}}

    g is the length of the Sobel gradient (zeros outside the picture, so its frame is an edge), G the smaller of two
    lengths divided by the larger one, and :math:`\alpha = 1 - |\theta_X - \theta_F| / (\pi/2)`. Where the lengths are
    equal the toolkit sets G to 255 g instead of 1, hence 0.9994 instead of 0.9989; ``convention="standard"`` sets 1.
    Higher is better; 0 to 0.9873. NaN for two all-zero sources. Mean over R, G and B. Source: Xydeas, Petrovic,
    Electronics Letters 2000. Arguments and errors as for :func:`ag`.

    Example:
        >>> import numpy as np
        >>> picture = np.arange(36, dtype=np.uint8).reshape(6, 6)
        >>> round(qabf(picture, picture, picture), 4)
        0.9753
    """
    tie = _choose(convention, {"toolkit": None, "standard": 1.0})
    return channel_mean(lambda channel: qabf_of_channel(channel, tie), a, b, fused)


def n_abf(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Share of the edge information that the fused picture invents: edges stronger than in both sources.

    .. math:: \frac{\sum_{g_F > g_A, g_B} (1 - Q_{AF}) w_A + (1 - Q_{BF}) w_B}{\sum w_A + w_B}

    With g the length of the Sobel gradient (mirrored at the border, in grey levels per pixel);
    :math:`Q_{XF} = \sqrt{S_g(\min(g_X, g_F) / \max(g_X, g_F))\, S_o(||\theta_X - \theta_F| - \pi/2| \cdot 2/\pi)}`
    with sigmoids of gain, slope and centre 0.9999, 19, 0.5 and 0.9995, 22, 0.5; :math:`w = g^{1.5}` from 2 grey levels
    on, 0.001 below. This value, :func:`l_abf` and the quality by these constants add up to 1. Lower is better; 0 to 1.
    NaN for sides under 2 pixels. Mean over R, G and B. Source: Petrovic, Xydeas, ICCV 2005, as changed by Shreyamsha
    Kumar, Signal, Image and Video Processing 2013, whose code is in general use. Arguments and errors as for
    :func:`ag`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(20 * 20) % 251).astype(np.uint8).reshape(20, 20)
        >>> n_abf(picture, picture, picture)
        0.0
    """
    return channel_mean(n_abf_of_channel, a, b, fused)


def l_abf(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Share of the edge information of the sources that the fused picture loses.

    .. math:: \frac{\sum_{g_F \le g_A \text{ or } g_F \le g_B} (1 - Q_{AF}) w_A + (1 - Q_{BF}) w_B}{\sum w_A + w_B}

    Terms, source and border as for :func:`n_abf`. Lower is better; 0 to 1. NaN for sides under 2 pixels. Mean over R,
    G and B. Arguments and errors as for :func:`ag`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(20 * 20) % 251).astype(np.uint8).reshape(20, 20)
        >>> round(l_abf(picture, picture, picture), 3), round(l_abf(picture, picture, 0 * picture), 2)
        (0.0, 0.99)
    """
    return channel_mean(l_abf_of_channel, a, b, fused)


def qp(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Agreement of phase congruency and of its principal moments with the sources.

    .. math:: P_{pc} \cdot P_M \cdot P_m, \qquad
        P = \frac{1}{|\text{mask}|} \sum \max_{X \in \{A, B, \max\}} \frac{\sigma_{XF} + 10^{-4}}
        {\sqrt{|\sigma_X^2 \sigma_F^2|} + 10^{-4}}

    Correlations in 11 x 11 Gaussian windows (sigma 1.5) where the sources' phase congruency exceeds 0.1; "max" takes
    each pixel from the source with the larger one. Phase congruency is Kovesi's, 4 scales and 6 orientations, as the
    toolkit changed it; its maps are kept in float32. Higher is better; at most about 1, near 1 for identical pictures
    (only the sources' maps are masked). NaN where no pixel exceeds 0.1 and for sides under 2 pixels. Mean over R, G and
    B. Source: Zhao, Laganiere, Liu, 2007; Liu et al., IEEE TPAMI 2012. Arguments and errors as for :func:`ag`.

    Example:
        >>> import numpy as np
        >>> picture = np.kron([[0, 1], [1, 0]], np.full((16, 16), 200)).astype(np.uint8)
        >>> round(qp(picture, picture, picture), 6)
        1.0
    """
    return channel_mean(qp_of_channel, a, b, fused)
