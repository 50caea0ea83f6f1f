"""All weights in scope compete with each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunus.methods.allocations._fewest import by_count, fewest, highest
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
        return by_count(units, total - round(target * total), limits=limits)
    return fewest(highest(units, limits), cost, target, limits)
