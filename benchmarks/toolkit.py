"""Fusion metrics as the benchmark toolkits compute them: one metric at a time, square windows, one window at a time.

Each takes two uint8 RGB sources and the fused picture and returns the mean over the channels, like ``ffmef.metrics``.
"""

from __future__ import annotations

import numpy as np


def window(size: int, sigma: float) -> np.ndarray:
    """Return a square Gaussian window that sums to 1."""
    axis = np.arange(size) - (size - 1) / 2
    taps = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))
    return taps / taps.sum()


def valid(picture: np.ndarray, taps: np.ndarray) -> np.ndarray:
    from scipy.signal import convolve2d

    return convolve2d(picture, taps, mode="valid")


def moments(x: np.ndarray, y: np.ndarray, taps: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the local means, variances and covariance of two pictures."""
    mean_x, mean_y = valid(x, taps), valid(y, taps)
    variance_x, variance_y = valid(x * x, taps) - mean_x**2, valid(y * y, taps) - mean_y**2
    return mean_x, mean_y, variance_x, variance_y, valid(x * y, taps) - mean_x * mean_y


def over_channels(measure):
    def metric(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
        channels = zip(*(np.moveaxis(picture.astype(float), -1, 0) for picture in (a, b, fused)), strict=True)
        return float(np.mean([measure(*channel) for channel in channels]))

    return metric


@over_channels
def vif(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    """Visual information fidelity for fusion (Han et al.): four scales, windows of 17, 9, 5 and 3 pixels."""
    noise = 0.005 * 255**2
    total = 0.0
    for size, weight in zip((17, 9, 5, 3), (1, 0, 0.15, 1), strict=True):
        taps = window(size, size / 5)
        if size < 17:
            a, b, fused = (valid(picture, taps)[::2, ::2] for picture in (a, b, fused))
        gains, fidelity, reference = [], [], []
        for source in (a, b):
            _, _, variance, fused_variance, covariance = moments(source, fused, taps)
            variance, fused_variance = np.maximum(variance, 0), np.maximum(fused_variance, 0)
            gain = covariance / (variance + 1e-10)
            rest = fused_variance - gain * covariance
            flat = variance < 1e-10
            gain, rest, variance = (
                np.where(flat, 0, gain),
                np.where(flat, fused_variance, rest),
                np.where(flat, 0, variance),
            )
            flat = fused_variance < 1e-10
            gain, rest = np.where(flat, 0, gain), np.where(flat, 0, rest)
            rest, gain = np.where(gain < 0, fused_variance, rest), np.maximum(gain, 0)
            gains.append(gain)
            fidelity.append(np.log10(1 + gain**2 * variance / (np.maximum(rest, 1e-10) + noise)))
            reference.append(np.log10(1 + variance / noise))
        first = gains[0] < gains[1]
        chosen, base = (np.where(first, *pair) for pair in (fidelity, reference))
        total += weight * (chosen + 1e-7).sum() / (base + 1e-7).sum()
    return total / 2.15


@over_channels
def qw(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    """Edge-dependent, weighted structural similarity (Piella)."""
    from scipy.signal import correlate2d

    rows = np.array([[1.0, 0, -1]] * 3)
    edges = [
        np.hypot(correlate2d(picture, rows, mode="same"), correlate2d(picture, rows.T, mode="same"))
        for picture in (a, b, fused)
    ]
    taps, c1, c2 = window(11, 1.5), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity, variances = [], []
    for source in edges[:2]:
        mean_x, mean_y, variance_x, variance_y, covariance = moments(source, edges[2], taps)
        variances.append(variance_x)
        contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
        similarity.append((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * contrast)
    flat = 0.5 * (variances[0] + variances[1] == 0)
    first, second = variances[0] + flat, variances[1] + flat
    share, weight = first / (first + second), np.maximum(first, second)
    return (weight * (share * similarity[0] + (1 - share) * similarity[1])).sum() / weight.sum()


@over_channels
def fmi(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> float:
    """Feature mutual information of edges (Haghighat et al.), window by window."""
    maps = [edges(picture) for picture in (a, b, fused)]
    height, width = fused.shape
    total = 0.0
    for top in range(height - 2):
        for left in range(width - 2):
            first, second, own = (m[top : top + 3, left : left + 3].T.reshape(-1) for m in maps)
            total += window_score(first, own) + window_score(second, own)
    return total / 2 / ((height - 2) * (width - 2))


def edges(picture: np.ndarray) -> np.ndarray:
    """Return the thinned Sobel edges, 0 or 1."""
    from scipy.signal import correlate2d

    sobel = np.array([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]]) / 8
    padded = np.pad(picture, 1, mode="edge")
    dy, dx = correlate2d(padded, sobel, mode="valid"), correlate2d(padded, sobel.T, mode="valid")
    strength = dx**2 + dy**2
    frame = np.pad(strength, 1, constant_values=-1)  # a missing neighbour is never stronger
    left, right, up, down = frame[1:-1, :-2], frame[1:-1, 2:], frame[:-2, 1:-1], frame[2:, 1:-1]
    slack = 100 * np.finfo(float).eps
    across = (np.abs(dx) >= np.abs(dy) - slack) & (left <= strength) & (strength > right)
    along = (np.abs(dy) >= np.abs(dx) - slack) & (up <= strength) & (strength > down)
    return ((strength > 4 * strength.mean()) & (across | along)).astype(float)


def window_score(source: np.ndarray, fused: np.ndarray) -> float:
    """Return the normalised mutual information of two windows under a joint distribution between Frechet's bounds."""
    if (source == fused).all():
        return 1.0
    source, fused = (np.ones(9) if np.ptp(w) == 0 else w for w in (source, fused))
    p, q = source / source.sum(), fused / fused.sum()
    index = np.arange(1, 10)
    deviation = [np.sqrt(max((index**2 * mass).sum() - (index * mass).sum() ** 2, 0)) for mass in (p, q)]
    spread = np.sqrt(((p - 1 / 9) ** 2).sum() * ((q - 1 / 9) ** 2).sum())
    correlation = ((p - 1 / 9) * (q - 1 / 9)).sum() / spread if spread > 0 else 0.0
    cdf_p, cdf_q = p.cumsum(), q.cumsum()
    upper = np.minimum(cdf_q[:, None], cdf_p)
    bound = upper if correlation >= 0 else np.maximum(cdf_q[:, None] + cdf_p - 1, 0)
    scale = deviation[0] * deviation[1]
    reach = (bound - cdf_q[:, None] * cdf_p).sum()
    share = correlation * scale / reach if correlation and scale and reach else 0.0
    joint = np.diff(np.diff(np.pad(bound, ((1, 0), (1, 0))), axis=0), axis=1)
    joint = share * joint + (1 - share) * q[:, None] * p
    own = entropy(p) + entropy(q)
    mutual = own - entropy(joint)
    return 2 * mutual / own if mutual else 0.0


def entropy(mass: np.ndarray) -> float:
    mass = mass[mass != 0]
    return float(-(mass * np.log2(np.abs(mass))).sum())
