"""Learning rates as functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math


def rate_factor(step: int, *, total: float, schedule: str, warmup: int = 0, halve_every: int = 1) -> float:
    """Return the factor of the highest learning rate at a step.

    Args:
        step: from 0.
        total: steps of the run; may be an estimate.
        schedule: ``"constant"``; ``"cosine"``, from 1 to 1 % along half a cosine; ``"step"``, halved every
            ``halve_every`` steps.
        warmup: steps of linear rise from near 0, multiplied with the schedule.
        halve_every: steps.

    Example:
        >>> [rate_factor(step, total=100, schedule="step", halve_every=40) for step in (0, 39, 40, 99)]
        [1.0, 1.0, 0.5, 0.25]
    """
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "cosine":
        return factor * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))
    if schedule == "step":
        return factor * 0.5 ** (step // halve_every)
    return factor
