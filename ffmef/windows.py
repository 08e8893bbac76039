"""The Gaussian window that losses and metrics share."""

from __future__ import annotations

import math


def gaussian(size: int, sigma: float) -> tuple[float, ...]:
    """Return the ``size`` samples of a Gaussian of ``sigma`` pixels, normalised to sum to 1.

    >>> gaussian(1, 1.5)
    (1.0,)
    """
    samples = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    total = sum(samples)
    return tuple(sample / total for sample in samples)
