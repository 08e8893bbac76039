"""What reviewers ask about averages: how certain they are, whether methods differ, and which leads overall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 20230601  # fixed: a report can be reproduced to the digit
LEAST_PAIRS = 5  # fewer say nothing: Wilcoxon's smallest p-value is 0.0625 for 5 pairs, 0.03 for 6


@dataclass(frozen=True)
class Standing:
    """A method's place over all metrics: Borda count (higher is better) and mean rank (1 is best)."""

    borda: float
    mean_rank: float


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return the bootstrap confidence interval of a mean over pairs, or None for fewer than two values.

    Percentiles of the means of 10 000 samples of the pairs, drawn with replacement (Efron, Annals of Statistics 1979).

    Args:
        values: one finite value per pair.
        level: the share of the means that lie inside.

    Example:
        >>> low, high = interval([1.0, 2.0, 3.0, 4.0])
        >>> 1 <= low < 2.5 < high <= 4, interval([2.0, 2.0, 2.0])
        (True, (2.0, 2.0))
    """
    if len(values) < 2:
        return None
    data = np.asarray(values, np.float64)
    generator = np.random.default_rng(SEED)
    means = np.concatenate(
        [data[generator.integers(0, len(data), (100, len(data)))].mean(1) for _ in range(RESAMPLES // 100)]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def wilcoxon(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Wilcoxon's signed-rank test of paired values, or None if it says nothing.

    Exact for few pairs without ties; pairs without a difference are left out (Wilcoxon, Biometrics Bulletin 1945).
    SciPy computes it. None for fewer than five pairs that differ.

    Example:
        >>> round(wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.5, 1.4, 2.3, 3.2, 4.1, 4.9]), 4)
        0.0312
    """
    from scipy import stats

    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    difference = difference[difference != 0]
    if len(difference) < LEAST_PAIRS:
        return None
    return float(stats.wilcoxon(difference).pvalue)


def ranks(values: Sequence[float | None], higher_is_better: bool) -> list[float | None]:
    """Return the rank of each value, 1 for the best; equal values share the mean rank; None for no value.

    Example:
        >>> ranks([0.5, None, 0.7, 0.5], True)
        [2.5, None, 1.0, 2.5]
    """
    known = [value for value in values if value is not None]

    def rank(value: float) -> float:
        better = sum(other > value if higher_is_better else other < value for other in known)
        return better + (known.count(value) + 1) / 2

    return [None if value is None else rank(value) for value in values]


def standings(
    averages: Mapping[str, Mapping[str, float | None]], higher_is_better: Mapping[str, bool]
) -> dict[str, Standing]:
    """Return the Borda count and the mean rank of each method over the metrics that all methods have.

    Among M methods, the one with rank r in a metric gets M - r points.

    Args:
        averages: by method and metric.
        higher_is_better: by metric.

    Example:
        >>> standings({"x": {"EN": 1.0, "CE": 2.0}, "y": {"EN": 3.0, "CE": 1.0}}, {"EN": True, "CE": False})["y"]
        Standing(borda=2.0, mean_rank=1.0)
    """
    methods = list(averages)
    shared = [
        metric
        for metric in higher_is_better
        if all(value is not None and math.isfinite(value) for value in (averages[m].get(metric) for m in methods))
    ]
    if not shared:
        return {}
    # A metric that all methods share has a rank for each of them.
    of_metric = [
        [rank for rank in ranks([averages[m][metric] for m in methods], higher_is_better[metric]) if rank is not None]
        for metric in shared
    ]
    return {
        method: Standing(
            float(sum(len(methods) - own[i] for own in of_metric)),
            float(sum(own[i] for own in of_metric) / len(shared)),
        )
        for i, method in enumerate(methods)
    }


def badness(
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]], metrics: Mapping[str, bool]
) -> dict[str, float]:
    """Return how badly each pair scored, 0 best to 1 worst: its mean rank among the pairs over methods and metrics.

    Args:
        scores: by method, pair and metric.
        metrics: whether higher is better, by metric.
    """
    shares: dict[str, list[float]] = {}
    for by_pair in scores.values():
        for metric, higher in metrics.items():
            values = [by_pair[pair].get(metric) for pair in by_pair]
            values = [value if value is not None and math.isfinite(value) else None for value in values]
            for pair, rank in zip(by_pair, ranks(values, higher), strict=True):
                if rank is not None and len(by_pair) > 1:
                    shares.setdefault(pair, []).append((rank - 1) / (len(by_pair) - 1))
    return {pair: sum(own) / len(own) for pair, own in shares.items()}
