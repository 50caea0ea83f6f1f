"""The search that units of many weights need: how few of them keep to a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunus.types import Counts, Group, Limits


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
