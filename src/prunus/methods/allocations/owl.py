"""Layers with outliers among their scores are kept denser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from annotated_types import Gt, Interval
from torch import Tensor

from prunus.methods.allocations._shares import keep_by_share
from prunus.types import Counts, Group, Limits, Units


def owl(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
    *,
    outlier: Annotated[float, Gt(1)] = 5.0,
    spread: Annotated[float, Interval(ge=0, le=0.5)] = 0.08,
) -> Counts:
    """OWL: density 1 − target + a shift in [−2·spread, 2·spread] that grows with the outliers.

    D_l is the part of the scores of layer l above ``outlier`` times their mean; the shift of l is
    2·spread·(D_l − min D) / (max D − min D), less the mean shift. Made for ``wanda``.

    Args:
        units: scores of each group.
        cost: the part that a choice removes.
        target: the part to be removed.
        limits: of each group.
        outlier: how many times the mean.
        spread: of the densities, before shares are made to meet the target.

    Source: Yin et al. 2024, arXiv:2310.05175.

    >>> outliers(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 20.0, -torch.inf]), 5.0)
    0.14285714285714285
    """
    parts = {group: outliers(units[group], outlier) for group in units}
    low, high = min(parts.values()), max(parts.values())
    shifts = {g: 2 * spread * (d - low) / max(high - low, 1e-12) for g, d in parts.items()}
    weights = sum(g.units for g in units)
    mean = sum(shift * g.units for g, shift in shifts.items()) / weights
    shares = {
        g: (g.dense_units or g.units) * max(1 - target + shift - mean, 1e-6)
        for g, shift in shifts.items()
    }
    return keep_by_share(units, shares, cost, target, limits)


def outliers(scores: Tensor, times: float) -> float:
    """The part of the scores that are so many times their mean, of those that are left."""
    alive = scores[scores > -torch.inf].double()
    return float((alive > times * alive.mean()).double().mean()) if len(alive) else 0.0
