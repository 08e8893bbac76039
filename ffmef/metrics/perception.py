"""Metrics of human perception."""

from __future__ import annotations

import functools
import math

import numpy as np

from ffmef.metrics import _windows
from ffmef.metrics._channels import SOURCES, Channel, Pictures, channel_mean

BLOCK = 16
BLUR_REACH = 15
_offsets = np.arange(-BLUR_REACH, BLUR_REACH + 1.0)
# Without the constant factors, which cancel in their quotient.
_BLURS = [np.exp(-(_offsets**2) / (2 * sigma**2)) / sigma for sigma in (2.0, 4.0)]
MASKING = 1e-4
VIF_NOISE = 0.005 * 255**2
VIFP_NOISE = 2.0
VIF_WEIGHTS = (1.0, 0.0, 0.15, 1.0)
VIF_FLOOR, VIF_OFFSET = 1e-10, 1e-7


def _radius(shape: tuple[int, int], sampling: float) -> np.ndarray:
    """Distance from zero frequency in the layout of a real Fourier transform; ``sampling`` pixels per unit."""
    height, width = shape
    x = np.fft.rfftfreq(width) * 2 * width / sampling
    y = np.fft.fftfreq(height) * 2 * height / sampling
    return np.hypot(x, y[:, None])


@functools.lru_cache(maxsize=1)
def _contrast_sensitivity(shape: tuple[int, int]) -> np.ndarray:
    radius = _radius(shape, 30)
    return np.exp(-((radius / 15.3870) ** 2)) - 0.7622 * np.exp(-((radius / 1.3456) ** 2))


@functools.lru_cache(maxsize=1)
def _mannos_sakrison(shape: tuple[int, int]) -> np.ndarray:
    radius = 0.144 * _radius(shape, 8)
    return 2.6 * (0.0192 + radius) * np.exp(-(radius**1.1))


def _filtered(planes: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Filter float64 planes (P, H, W) by a real response in the layout of a real Fourier transform.

    Native code does so where the library is built.
    """
    import torch

    from ffmef.ops.statistics import is_native

    if is_native("spectral_filter"):
        return torch.ops.ffmef.spectral_filter(torch.from_numpy(planes), torch.from_numpy(response)).numpy()
    return _filtered_numpy(planes, response)


def _filtered_numpy(planes: np.ndarray, response: np.ndarray) -> np.ndarray:
    return np.stack([np.fft.irfft2(np.fft.rfft2(plane) * response, s=plane.shape) for plane in planes])


def _masked_contrast(narrow: np.ndarray, wide: np.ndarray) -> np.ndarray:
    contrast = narrow / wide
    contrast -= 1
    np.abs(contrast, out=contrast)
    square = contrast * contrast
    contrast *= square  # a power of 3 is much slower
    square += MASKING
    contrast /= square
    return contrast


def qcb_of_channel(channel: Channel) -> float:
    if not channel.stretchable:
        return math.nan
    sensitivity = _contrast_sensitivity(channel.shape)
    # One by one: filtered together they would share rounding errors, whose quotients count where a picture is black.
    planes = (channel.stretched(name, True)[None].astype(np.float64) for name in "abf")
    filtered = np.concatenate([_filtered(plane, sensitivity) for plane in planes])
    total = 0.0
    for rows, kept in _windows.strips(*channel.shape, BLUR_REACH, inside=False):
        with np.errstate(invalid="ignore", divide="ignore"):
            blurred = [_windows.means(filtered, rows, kept, taps) for taps in _BLURS]
            a, b, fused = _masked_contrast(*blurred)
            weight_a, weight_b = a * a, b * b
            weights = weight_a + weight_b
            weight_a *= np.minimum(a, fused) / np.maximum(a, fused)
            weight_b *= np.minimum(b, fused) / np.maximum(b, fused)
            weight_a += weight_b
            weight_a /= weights
        total += float(weight_a.sum())
    return total / channel.pixels


def _block_sums(values: np.ndarray) -> np.ndarray:
    """Sums over blocks from the top left corner; incomplete ones are filled with zeros."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], BLOCK), axis=0)
    return np.add.reduceat(rows, np.arange(0, values.shape[1], BLOCK), axis=1)


def qcv_of_channel(channel: Channel) -> float:
    if not channel.stretchable:
        return math.nan
    sensitivity = _mannos_sakrison(channel.shape)
    levels = [channel.stretched(name).astype(np.float64) for name in "abf"]
    differences = _filtered(np.stack([levels[0] - levels[2], levels[1] - levels[2]]), sensitivity)
    distortion = weight = 0.0
    for source, seen in zip(SOURCES, differences, strict=True):
        dx, dy = _windows.derivatives(channel.stretched(source), _windows.SOBEL, "zeros")
        square = (dx * dx + dy * dy).astype(np.float64)
        saliency = _block_sums(square * square * np.sqrt(square))  # the fifth power of the length
        distortion += float((saliency * (_block_sums(seen * seen) / BLOCK**2)).sum())
        weight += float(saliency.sum())
    return distortion / weight if weight else math.nan


def _vif_scale(maps: dict[str, np.ndarray], taps: np.ndarray) -> float:
    kept_information = present_information = 0.0
    for moments in _windows.moments(maps, taps):
        variance_f = np.maximum(moments.variance["f"], 0)
        gains, seen, present = {}, {}, {}
        for source in SOURCES:
            variance = np.maximum(moments.variance[source], 0)
            variance[variance < VIF_FLOOR] = 0
            covariance = moments.covariance(source, "f")
            gain = covariance / (variance + VIF_FLOOR)
            gain *= (variance > 0) & (variance_f >= VIF_FLOOR) & (covariance > 0)
            rest = np.maximum(variance_f - gain * covariance, VIF_FLOOR)
            gains[source] = gain
            seen[source] = gain * gain * variance / (rest + VIF_NOISE)
            present[source] = variance / VIF_NOISE
        from_a = gains["a"] < gains["b"]
        kept_information += float((np.log10(1 + np.where(from_a, seen["a"], seen["b"])) + VIF_OFFSET).sum())
        present_information += float((np.log10(1 + np.where(from_a, present["a"], present["b"])) + VIF_OFFSET).sum())
    return kept_information / present_information


def vif_of_channel(channel: Channel) -> float:
    maps = channel.levels
    total = 0.0
    for scale, weight in enumerate(VIF_WEIGHTS):
        size = 2 ** (len(VIF_WEIGHTS) - scale) + 1
        taps = _windows.gaussian(size, size / 5)
        if scale:
            if min(maps["f"].shape) < size:
                return math.nan
            maps = _windows.halved(maps, taps)
        if min(maps["f"].shape) < size:
            return math.nan
        if weight:
            total += weight * _vif_scale(maps, taps)
    return total / sum(VIF_WEIGHTS)


def viff_of_pictures(pictures: Pictures) -> float:
    if not pictures.in_colour:
        return float(np.mean([vif_of_channel(channel) for channel in pictures.channels()]))
    planes = [_lightness(picture) for picture in (pictures.a, pictures.b, pictures.fused)]
    return vif_of_channel(Channel(planes[0], planes[1], planes[2]))


def _lightness(picture: np.ndarray) -> np.ndarray:
    """Return the CIE lightness of an sRGB picture, 0..255, rounded; a grey picture as it is."""
    if picture.ndim == 2:
        return picture
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    luminance = sum(w * linear[picture[..., c]] for c, w in enumerate((0.2126729, 0.7151522, 0.0721750)))
    lightness = np.where(luminance > (6 / 29) ** 3, 116 * np.cbrt(luminance) - 16, luminance * (29 / 3) ** 3)
    return np.floor(lightness * 2.55 + 0.5).astype(np.uint8)


def vifp_of_channel(channel: Channel) -> float:
    if min(channel.shape) < 41:
        return math.nan
    total = 0.0
    for source in SOURCES:
        maps = {"a": channel.levels[source], "f": channel.levels["f"]}
        kept = present = 0.0
        for scale in range(4):
            size = 2 ** (4 - scale) + 1
            taps = _windows.gaussian(size, size / 5)
            if scale:
                maps = _windows.halved(maps, taps)
            for moments in _windows.moments(maps, taps):
                variance, variance_f = (np.maximum(moments.variance[name], 0) for name in "af")
                variance[variance < VIF_FLOOR] = 0
                covariance = moments.covariance("a", "f")
                gain = covariance / (variance + VIF_FLOOR)
                gain *= (variance > 0) & (variance_f >= VIF_FLOOR) & (covariance > 0)
                rest = np.maximum(np.where(variance_f < VIF_FLOOR, 0, variance_f - gain * covariance), VIF_FLOOR)
                kept += float(np.log10(1 + gain * gain * variance / (rest + VIFP_NOISE)).sum())
                present += float(np.log10(1 + variance / VIFP_NOISE).sum())
        total += kept / present if present else math.nan
    return total


def qcb(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Contrast preservation after the eye's contrast sensitivity, by Chen and Blum.

    .. math:: \operatorname{mean} \big(\lambda_A Q_{AF} + \lambda_B Q_{BF}\big), \qquad
        Q_{XF} = \frac{\min(C'_X, C'_F)}{\max(C'_X, C'_F)}, \quad \lambda_X = \frac{C_X'^2}{C_A'^2 + C_B'^2}

    Channels stretched to 0..255 are filtered by a difference of Gaussians in the Fourier domain;
    :math:`C = |G_2 * x / G_4 * x - 1|`, masked: :math:`C' = C^3 / (C^2 + 10^{-4})`. Higher is better; 0 to 1. NaN
    where a channel is constant and not zero, or any pixel is 0/0. Mean over R, G and B. In large black areas the
    filtered values are near 1e-13 and their quotients are rounding errors: programs that differ only in their Fourier
    transform scatter by 1e-7 there. Source: Chen, Blum, Image and Vision Computing 2009.

    Args:
        a: a source, uint8 (H, W, 3) or (H, W), NumPy or torch (all metrics take these).
        b: the other source, of the same size.
        fused: the fused picture, of the same size.

    Raises:
        ValueError: for pictures that are not whole grey levels 0..255 or whose sizes or colours do not fit.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(20 * 20) % 251).astype(np.uint8).reshape(20, 20)
        >>> round(qcb(picture, picture, picture), 9)
        1.0
    """
    return channel_mean(qcb_of_channel, a, b, fused)


def qcv(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Perceived difference from the sources, weighted by their edges, by Chen and Varshney.

    .. math:: \frac{\sum_w \lambda_A D_A + \lambda_B D_B}{\sum_w \lambda_A + \lambda_B}

    Over 16 x 16 blocks of channels stretched to 0..255: :math:`\lambda` the sum of Sobel lengths to the power 5, D
    the mean square of the difference after the contrast sensitivity
    :math:`2.6 (0.0192 + 0.144 r) e^{-(0.144 r)^{1.1}}`; incomplete blocks are filled with zeros. Lower is better; 0
    upwards. NaN where a channel is constant and not zero or both sources are all zero. Mean over R, G and B. Source:
    Chen, Varshney, Information Fusion 2007. Arguments and errors as for :func:`qcb`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(20 * 20) % 251).astype(np.uint8).reshape(20, 20)
        >>> qcv(picture, picture, picture)
        0.0
    """
    return channel_mean(qcv_of_channel, a, b, fused)


def vif(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Visual information fidelity for fusion.

    .. math:: \frac{1}{2.15} \sum_{s} p_s
        \frac{\sum \log_{10}(1 + g^2 \sigma_X^2 / (\sigma_V^2 + \sigma_N^2)) + 10^{-7}}
        {\sum \log_{10}(1 + \sigma_X^2 / \sigma_N^2) + 10^{-7}}, \qquad p = (1, 0, 0.15, 1)

    Four scales with Gaussian windows of 17, 9, 5 and 3 pixels inside the picture; g is the gain and
    :math:`\sigma_V^2` the residual of the fused picture's regression on a source, :math:`\sigma_N^2 = 325.125`. Each
    window counts for the source with the smaller gain. Higher is better; not bounded by 1. NaN for sides under 41
    pixels. Mean over R, G and B. Source: Han, Cai, Cao, Xu, Information Fusion 2013. Arguments and errors as for
    :func:`qcb`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(48 * 48) % 251).astype(np.uint8).reshape(48, 48)
        >>> round(vif(picture, picture, picture), 6)
        1.0
    """
    return channel_mean(vif_of_channel, a, b, fused)


def viff(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Visual information fidelity for fusion, of colour pictures on their lightness.

    The formula of :func:`vif`, on one channel: CIE lightness of colour pictures (sRGB, D65, scaled to 0..255 and
    rounded), as its authors publish it; the benchmark toolkits pass R, G and B instead, which gives :func:`vif`. The
    same as :func:`vif` for grey pictures. Higher is better; not bounded by 1. NaN for sides under 41 pixels. Source:
    Han, Cai, Cao, Xu, Information Fusion 2013. Arguments and errors as for :func:`qcb`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(48 * 48) % 251).astype(np.uint8).reshape(48, 48)
        >>> viff(picture, picture, picture // 2) == vif(picture, picture, picture // 2)
        True
    """
    return viff_of_pictures(Pictures(a, b, fused))


def vifp(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    r"""Visual information fidelity (in the pixel domain) of the fused picture with each source, added.

    .. math:: \sum_{X \in \{A,B\}} \frac{\sum_s \sum \log_{10}(1 + g^2 \sigma_X^2 / (\sigma_V^2 + 2))}
        {\sum_s \sum \log_{10}(1 + \sigma_X^2 / 2)}

    Scales, windows and regression as for :func:`vif`, but no choice between the sources. This is what studies of
    infrared and visible fusion call VIF. Higher is better; not bounded by 2. NaN for sides under 41 pixels and constant
    sources. Mean over R, G and B. Source: Sheikh, Bovik, IEEE TIP 2006. Arguments and errors as for :func:`qcb`.

    Example:
        >>> import numpy as np
        >>> picture = (np.arange(48 * 48) % 251).astype(np.uint8).reshape(48, 48)
        >>> round(vifp(picture, picture, picture), 6)
        2.0
    """
    return channel_mean(vifp_of_channel, a, b, fused)
