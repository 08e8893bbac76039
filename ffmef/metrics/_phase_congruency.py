"""Phase congruency of one channel: Kovesi's method with the toolkit's changes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

SCALES, ORIENTATIONS = 4, 6
SHORTEST_WAVELENGTH, WAVELENGTH_RATIO = 3.0, 2.1
BANDWIDTH = 0.55  # of a log-Gabor filter, as the ratio of its deviation to its centre frequency
ANGULAR_DEVIATION = math.pi / ORIENTATIONS / 1.2
LOW_PASS_CUTOFF, LOW_PASS_ORDER = 0.45, 15
NOISE_DEVIATIONS, NOISE_DIVISOR = 2.0, 1.7
SPREAD_CUTOFF, SPREAD_SLOPE = 0.5, 10.0
EPSILON = 1e-4
TILE = 16  # columns of the tables' tiles in native code


class FilterBank(NamedTuple):
    """Factors of the filters of one size, in the layout of the Fourier transform or in native code's tiles.

    The tables are ``first``, ``ratio`` and ``direction``, the angle of each frequency. The radial factor of scale s is
    ``first * ratio**s * decay[s]``: a log-Gabor function of scaled radius is a Gaussian in the logarithm, which a shift
    multiplies by an exponential.
    """

    tables: np.ndarray
    decay: list[float]
    noise_gains: list[float]  # per orientation: squared noise energy for a unit median of the smallest scale

    def radial(self, scale: int) -> np.ndarray:
        first, ratio, _ = self.tables
        return first * ratio**scale * self.decay[scale]

    def angular(self, orientation: int) -> np.ndarray:
        distance = np.abs(self.tables[2] - orientation * math.pi / ORIENTATIONS)
        np.minimum(distance, 2 * math.pi - distance, out=distance)
        distance *= distance
        distance /= -2 * ANGULAR_DEVIATION**2
        return np.exp(distance, out=distance)


def _frequencies(length: int) -> np.ndarray:
    """Frequencies in cycles per pixel, zero first; an odd length spans -0.5 to 0.5 inclusive."""
    if length % 2:
        centred = np.arange(-(length - 1) / 2, (length - 1) / 2 + 1) / (length - 1)
    else:
        centred = np.arange(-length / 2, length / 2) / length
    return np.fft.ifftshift(centred)


def filter_bank(height: int, width: int) -> FilterBank:
    """Return the filters for pictures of one size."""
    x, y = _frequencies(width), _frequencies(height)[:, None]
    shape, step = 2 * math.log(BANDWIDTH) ** 2, math.log(WAVELENGTH_RATIO)
    decay = [math.exp(-((scale * step) ** 2) / shape) for scale in range(SCALES)]
    first, ratio, direction = tables = np.empty((3, height, width))
    np.arctan2(-y, x, out=direction)
    radius = np.sqrt(x * x + y * y, out=ratio)
    radius[0, 0] = 1
    radius *= SHORTEST_WAVELENGTH
    offset = np.log(radius, out=ratio)
    np.multiply(offset, offset, out=first)
    first /= -shape
    np.exp(first, out=first)
    offset *= -2 * step / shape
    np.exp(offset, out=ratio)
    # The low pass has its own grid, and for odd lengths the toolkit moves its centre to the last element.
    x, y = (np.fft.fftshift((np.arange(length) - length // 2) / length) for length in (width, height))
    low_pass = (x * x + (y * y)[:, None]) / LOW_PASS_CUTOFF**2
    low_pass **= LOW_PASS_ORDER
    low_pass += 1
    first /= low_pass
    first[0, 0] = 0
    bank = FilterBank(tables, decay, [])
    return bank._replace(noise_gains=_noise_gains(bank))


def tiled(bank: FilterBank) -> FilterBank:
    """Return the bank in the order in which native code reads it: tiles of columns.

    Frequencies up to the middle of a row come first, then those that mirror them, from W - 0 down.
    """
    _, height, width = bank.tables.shape
    count = width // 2 // TILE + 1
    columns = np.arange(count * TILE)
    columns = np.stack([np.minimum(columns, width - 1), (width - columns) % width])
    tables = np.empty((3, 2, count, height, TILE))
    for table, own in zip(bank.tables, tables, strict=True):
        for order, half in zip(columns, own, strict=True):
            half[:] = table[:, order].reshape(height, count, TILE).swapaxes(0, 1)
    return bank._replace(tables=tables)


def _noise_gains(bank: FilterBank) -> list[float]:
    """Squared noise energy over the median squared amplitude of the smallest scale, per orientation.

    The toolkit sums products of the real parts of the filters in space; by Parseval's theorem these are sums over the
    spectrum of the even parts.
    """
    first, ratio, _ = bank.tables
    total = np.full(first.shape, bank.decay[-1])
    for decay in bank.decay[-2::-1]:
        total *= ratio
        total += decay
    total *= first
    gains = []
    for orientation in range(ORIENTATIONS):
        angular = bank.angular(orientation)
        power = np.einsum("ij,ij,ij,ij->", first, first, angular, angular)
        angular *= total
        mirrored = np.roll(angular[::-1, ::-1], (1, 1), (0, 1))
        mirrored += angular
        even = np.einsum("ij,ij->", mirrored, mirrored) / 4
        gains.append(float(2 * even / power / math.log(2)))
    return gains


@functools.lru_cache(maxsize=1)
def _bank(height: int, width: int, native: bool) -> FilterBank:
    """Return the filters for a size; the last size's are kept."""
    bank = filter_bank(height, width)
    return tiled(bank) if native else bank


def maps(channels: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield phase congruency and its maximum and minimum moment of each uint8 channel of one size.

    Native code computes them where the library is built.
    """

    from ffmef.ops.statistics import is_native

    native = is_native("phase_congruency")
    bank = _bank(*channels[0].shape, native)
    if native:
        yield from map(tuple, _maps_native(channels, bank))
    else:
        yield from (_maps_numpy(channel, bank) for channel in channels)


def _maps_native(channels: Sequence[np.ndarray], bank: FilterBank, always_double: bool = False) -> np.ndarray:
    """Run native code, which transforms in float32 unless half the channel is flat, where rounding would show."""
    import torch

    return torch.ops.ffmef.phase_congruency(
        torch.from_numpy(np.stack(channels)),
        torch.from_numpy(bank.tables),
        torch.tensor(bank.decay, dtype=torch.float64),
        ANGULAR_DEVIATION,
        torch.tensor(bank.noise_gains, dtype=torch.float64),
        always_double,
    ).numpy()


def _maps_numpy(channel: np.ndarray, bank: FilterBank) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    spectrum = np.fft.fft2(channel.astype(np.float64))
    congruency, amplitudes = np.zeros(channel.shape), np.zeros(channel.shape)
    xx, yy, xy = np.zeros(channel.shape), np.zeros(channel.shape), np.zeros(channel.shape)
    for orientation in range(ORIENTATIONS):
        partial = spectrum * bank.angular(orientation)
        responses = [np.fft.ifft2(partial * bank.radial(scale)) for scale in range(SCALES)]
        moduli = [np.abs(response) for response in responses]
        amplitude, peak = sum(moduli), functools.reduce(np.maximum, moduli)
        even, odd = sum(r.real for r in responses), sum(r.imag for r in responses)
        norm = np.sqrt(even * even + odd * odd) + EPSILON
        even /= norm
        odd /= norm
        energy = np.zeros(channel.shape)
        for response in responses:
            real, imaginary = response.real, response.imag
            energy += real * even + imaginary * odd - np.abs(real * odd - imaginary * even)
        deviation = math.sqrt(bank.noise_gains[orientation] * float(np.median(moduli[0] ** 2)) / 2)
        threshold = deviation * (math.sqrt(math.pi / 2) + NOISE_DEVIATIONS * math.sqrt(2 - math.pi / 2))
        energy = np.maximum(energy - threshold / NOISE_DIVISOR, 0)
        spread = amplitude / (peak + EPSILON) / SCALES
        energy /= 1 + np.exp(SPREAD_SLOPE * (SPREAD_CUTOFF - spread))
        congruency += energy
        amplitudes += amplitude
        oriented = np.divide(energy, amplitude, out=energy, where=amplitude > 0)
        angle = orientation * math.pi / ORIENTATIONS
        x, y = oriented * math.cos(angle), oriented * math.sin(angle)
        xx += x * x
        yy += y * y
        xy += x * y
    congruency /= amplitudes + EPSILON
    xx, yy, xy = xx / (ORIENTATIONS / 2), yy / (ORIENTATIONS / 2), xy / ORIENTATIONS
    root = np.sqrt(xy * xy + (xx - yy) ** 2) + EPSILON
    return congruency, (xx + yy + root) / 2, (xx + yy - root) / 2
