"""What is worth least for what it costs goes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from prunus.methods.allocations._fewest import by_count, fewest, highest
from prunus.types import Counts, Group, Limits, Units

PASSES = 4


def per_cost(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
) -> Counts:
    """Per cost: units compete by score ÷ what leaving them out saves of the target's figure.

    A unit's score is the sum over its weights; the saving of one unit of group g is measured at
    the counts found so far, cost(k − 1 in g) − cost(k), because savings do not add up: a channel
    is cheaper once its neighbors are thin. A few passes settle it. For single weights every
    saving is the same, and this is ``global``.

    Source: Shen et al. 2021 (HALP), arXiv:2110.10811; Yang, Chen, Sze 2017, arXiv:1611.05128.
    """
    if all(g.sizes is None for g in units):
        total = sum(g.units for g in units)
        return by_count(units, total - round(target * total), limits=limits)
    counts: Counts = {g: limits[g].most for g in units}
    for _ in range(PASSES):
        worth = _Worth(units, _savings(counts, cost, limits))
        counts = fewest(highest(worth, limits), cost, target, limits)
    return counts


def _savings(
    counts: Counts, cost: Callable[[Counts], float], limits: Mapping[Group, Limits]
) -> dict[Group, float]:
    """What one unit less of each group saves, at these counts."""
    whole = cost(counts)
    saved = {}
    for group, kept in counts.items():
        number = int(kept)
        fewer = cost({**counts, group: number - 1}) - whole if number > 1 else 0.0
        more = whole - cost({**counts, group: number + 1}) if number < limits[group].most else fewer
        saved[group] = max(fewer if number > 1 else more, 1e-12)
    return saved


class _Worth(dict[Group, torch.Tensor]):
    """Scores divided by savings."""

    def __init__(self, units: Units, savings: Mapping[Group, float]) -> None:
        super().__init__()
        left = getattr(units, "weights", None)  # fewer than its size where other cuts cross it
        for group, scores in units.items():
            size = group.sizes if left is None else left(group)
            worth = scores * torch.as_tensor(size).to(scores.device) / savings[group]
            self[group] = worth.where(scores > -torch.inf, -torch.inf)  # not NaN where size is 0
