"""Differentiable histograms: each value is shared between its two nearest bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def soft_histogram(values: Tensor, bins: int = 64) -> Tensor:
    """Return the share of each bin, differentiable in the values.

    Args:
        values: (B, P) in [0, 1]; bin i is centred at i / (bins - 1).
        bins: at least 2.

    Returns:
        (B, bins), each row sums to 1.

    Example:
        >>> import torch
        >>> soft_histogram(torch.tensor([[0.0, 0.25]]), 3)
        tensor([[0.7500, 0.2500, 0.0000]])
    """
    if values.device.type == "cuda":
        # A few rows at a time: the shares of a value take memory for every bin.
        return torch.cat([_shares(rows, bins).mean(1) for rows in values.split(4)])
    lower, share = _bin(values, bins)
    table = values.new_zeros(values.shape[0], bins)
    table = table.scatter_add(1, lower, 1 - share).scatter_add(1, lower + 1, share)
    return table / values.shape[1]


def soft_joint_histogram(x: Tensor, y: Tensor, bins: int = 32) -> Tensor:
    """Return the shares (B, bins, bins) of pairs of values, differentiable in both; x selects the row."""
    if x.device.type == "cuda":
        return _joint_by_products(x, y, bins)
    lower_x, share_x = _bin(x, bins)
    lower_y, share_y = _bin(y, bins)
    table = x.new_zeros(x.shape[0], bins * bins)
    for step_x, weight_x in ((0, 1 - share_x), (1, share_x)):
        for step_y, weight_y in ((0, 1 - share_y), (1, share_y)):
            table = table.scatter_add(1, (lower_x + step_x) * bins + lower_y + step_y, weight_x * weight_y)
    return table.view(-1, bins, bins) / x.shape[1]


def entropy(shares: Tensor) -> Tensor:
    """Return ``-sum p log2 p`` over the last axis."""
    return -torch.special.xlogy(shares, shares + 1e-12).sum(-1) / 0.6931471805599453


def _joint_by_products(x: Tensor, y: Tensor, bins: int) -> Tensor:
    """Return what :func:`soft_joint_histogram` does, as a product: on a GPU, additions to one bin would queue."""
    parts = math.gcd(x.shape[1], 64)  # one sum over all pixels would keep few processors busy
    rows, columns = (_shares(values, bins).unflatten(1, (parts, -1)) for values in (x, y))
    return (rows.mT @ columns).sum(1) / x.shape[1]


def _shares(values: Tensor, bins: int) -> Tensor:
    """Return how much of each value (B, P) each bin receives, (B, P, bins)."""
    position = values.clamp(0, 1).unsqueeze(-1) * (bins - 1)
    return (1 - (position - torch.arange(bins, device=values.device, dtype=values.dtype)).abs()).clamp_min(0)


def _bin(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    position = values.clamp(0, 1) * (bins - 1)
    lower = position.detach().floor().clamp(max=bins - 2)
    return lower.long(), position - lower
