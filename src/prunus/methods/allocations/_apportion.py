"""Whole numbers that add up exactly, as near as possible to given proportions."""

from __future__ import annotations

import torch
from torch import Tensor


def apportion(shares: Tensor, total: int, least: Tensor, most: Tensor) -> Tensor:
    """Integers near λ·shares, within bounds, that add up to ``total``.

    λ solves Σ clip(λ·shareᵢ, leastᵢ, mostᵢ) = total; then every value is rounded down and the
    largest remainders are rounded up, ties by position (Hamilton's method).

    Args:
        shares: ``[k]``, positive.
        total: from Σ least to Σ most; the nearest possible is taken outside.
        least: ``[k]``, int64.
        most: ``[k]``, int64.

    >>> bounds = torch.tensor([1, 1, 1]), torch.tensor([10, 10, 3])
    >>> apportion(torch.tensor([1.0, 1.0, 1.0]), 12, *bounds)
    tensor([5, 4, 3])
    """
    shares = shares.double()
    low, high = least.double(), most.double()
    total = min(max(total, int(least.sum())), int(most.sum()))
    if total == int(least.sum()):
        return least.clone()
    small, large = 0.0, float((high / shares).max()) + 1.0
    while small < (middle := (small + large) / 2) < large:  # until no number lies between
        if (shares * middle).clamp_(low, high).sum().item() < total:
            small = middle
        else:
            large = middle
    exact = (shares * large).clamp(low, high)
    exact = torch.where((exact - exact.round()).abs() < 1e-6, exact.round(), exact)
    counts = exact.floor().long()
    order = torch.sort(exact - counts, descending=True, stable=True).indices
    missing = total - int(counts.sum())
    while missing > 0:
        free = order[counts[order] < most[order]][:missing]
        counts[free] += 1
        missing -= len(free)
    while missing < 0:
        free = order.flip(0)[counts[order.flip(0)] > least[order.flip(0)]][:-missing]
        counts[free] -= 1
        missing += len(free)
    return counts
