"""The search that units of many weights need: how few of them keep to a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from prunus._common.topk import cutoff
from prunus.types import Counts, Group, Limits, Units

RANKED = 2**22
"""Up to so many units are sorted once; more are passed over anew for every count."""


def fewest(
    counts: Callable[[int], Counts],
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
) -> Counts:
    """The fewest units in all whose cost does not pass the target.

    Args:
        counts: units of each group when so many are kept in all.
        cost: the part that a choice removes; it falls as more is kept.
        target: the part to be removed.
        limits: of each group; their sums bound the search.
    """
    few, many = sum(x.least for x in limits.values()), sum(x.most for x in limits.values())
    while few < many:
        middle = (few + many) // 2
        if cost(counts(middle)) > target + 1e-12:
            few = middle + 1
        else:
            many = middle
    return counts(few)


def highest(units: Units, limits: Mapping[Group, Limits]) -> Callable[[int], Counts]:
    """Counts of the highest scores, for any number kept in all."""
    if sum(g.units for g in units) <= RANKED:
        return Ranking(units, limits)
    return partial(by_count, units, limits=limits)


class Ranking:
    """Counts for any number kept, after one sort: what :func:`by_count` gives, ties too."""

    def __init__(self, units: Units, limits: Mapping[Group, Limits]) -> None:
        self.groups = list(units)
        self.least = np.array([limits[g].least for g in self.groups])
        scores = torch.cat([units[g].detach().cpu().double() for g in self.groups])
        owner = np.repeat(np.arange(len(self.groups)), [g.units for g in self.groups])
        best = torch.sort(scores, descending=True, stable=True).indices.numpy()
        self.owners = owner[best]

    def __call__(self, keep: int) -> Counts:
        """The ``keep`` highest scores; a group short of its least gets that first."""
        counts = np.zeros(len(self.groups), dtype=np.int64)
        free = np.ones(len(self.groups), dtype=bool)
        while True:
            left = self.owners[free[self.owners]]
            found = np.bincount(left[: max(keep, 0)], minlength=len(free))
            short = free & (found < self.least)
            counts[free] = found[free]
            if not short.any():
                return dict(zip(self.groups, counts.tolist(), strict=True))
            counts[short] = self.least[short]
            keep -= int(self.least[short].sum())
            free &= ~short


def by_count(units: Units, keep: int, *, limits: Mapping[Group, Limits]) -> Counts:
    """The same for any number of units, of which one group at a time is in memory."""
    fixed: Counts = {}
    while True:
        free = [g for g in units if g not in fixed]
        found = cutoff([partial(units.__getitem__, g) for g in free], [g.units for g in free], keep)
        counts = dict(zip(free, found.at_least, strict=True))
        excess = sum(found.at_least) - keep
        for group, equal in zip(reversed(free), reversed(found.equal), strict=True):
            counts[group] -= min(excess, equal)  # of equal scores the first stay
            excess -= min(excess, equal)
        short = [g for g in free if counts[g] < limits[g].least]
        if not short:
            return {g: fixed.get(g, counts.get(g, 0)) for g in units}
        for group in short:
            fixed[group] = limits[group].least
            keep -= limits[group].least
