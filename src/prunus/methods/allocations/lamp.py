"""Scores measured against what would be left of their layer, then compared over the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunus.methods.allocations.global_ import global_
from prunus.types import Counts, Group, Limits, Units


def lamp(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
) -> Counts:
    """LAMP: s_u² / Σ s_v² over the v of the same layer that rank no lower; the lowest go.

    Layer-adaptive without a setting: the last unit of a layer has the score 1, so that none is
    emptied before all are. Scores below zero count as zero.

    Source: Lee, Park, Mo, Ahn, Shin 2021, arXiv:2010.07611.

    >>> relative(torch.tensor([1.0, 2.0, 2.0]))
    tensor([0.1111, 1.0000, 0.5000], dtype=torch.float64)
    """
    return global_({group: relative(units[group]) for group in units}, cost, target, limits)


def relative(scores: Tensor) -> Tensor:
    """LAMP's scores of one layer, ``[units]``; those removed already stay last.

    Args:
        scores: higher = keep, −∞ = removed.
    """
    squares = scores.double().clamp(min=0).square()
    ranked = torch.sort(scores, descending=True, stable=True).indices
    above = squares[ranked].cumsum(0)  # with its own
    found = torch.empty_like(squares)
    found[ranked] = squares[ranked] / above.clamp(min=torch.finfo(above.dtype).tiny)
    return found.masked_fill(scores == -torch.inf, -torch.inf)
