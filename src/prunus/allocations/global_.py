"""All weights in scope compete with each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from prunus.allocations._fewest import fewest
from prunus.select import cutoff
from prunus.types import Counts, Group, Limits, Units


def global_(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
) -> Counts:
    """Global: the lowest scores of the whole network go, ties by position.

    Units of several weights compete by their mean score per weight.

    Source: Han et al. 2015, arXiv:1506.02626; Blalock et al. 2020, arXiv:2003.03033.
    """
    if all(g.sizes is None for g in units):
        total = sum(g.units for g in units)
        return _by_count(units, total - round(target * total), limits)
    return fewest(partial(_by_count, units, limits=limits), cost, target, limits)


def _by_count(units: Units, keep: int, limits: Mapping[Group, Limits]) -> Counts:
    """Counts of the ``keep`` highest scores; a group short of its least gets that first."""
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
