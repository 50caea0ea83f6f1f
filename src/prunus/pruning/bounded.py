"""Any allocation, kept within limits that it may know nothing of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from prunus.types import Allocation, Counts, Group, Limits, Units


def bounded(allocation: Allocation, groups: Collection[Group]) -> Allocation:
    """The allocation, with the counts of some groups within their limits.

    Where it keeps more of a group than its most, or fewer than its least, that group gets its
    bound and the others share what is left, again and again: of both kinds those first that
    weigh more. An allocation that gives every group more when it has more to give thus ends at
    clip(own counts, least, most) with the total that was asked for.

    Args:
        allocation: whose counts.
        groups: that have limits of their own; the other counts are the allocation's.
    """
    if not groups:
        return allocation

    def within(
        units: Units,
        cost: Callable[[Counts], float],
        target: float,
        limits: Mapping[Group, Limits],
    ) -> Counts:
        fixed: Counts = {}
        while True:
            free = [g for g in units if g not in fixed]
            counts = _shared_out(allocation, _Some(units, free), fixed, cost, target, limits)
            wrong = {g: _outside(counts[g], limits[g]) for g in free if g in groups}
            more = sum(_weigh(g, n) for g, n in wrong.items() if n > 0)
            less = -sum(_weigh(g, n) for g, n in wrong.items() if n < 0)
            for group, by in wrong.items():
                if (by > 0 and more >= less) or (by < 0 and less >= more):
                    bound = limits[group].most if by > 0 else limits[group].least
                    fixed[group] = _alone(allocation, units, group, bound, limits)
            if not more and not less:
                found = {**fixed, **counts}
                return {g: found[g] for g in units}

    return within


def _shared_out(
    allocation: Allocation,
    units: Units,
    fixed: Counts,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
) -> Counts:
    """Counts of the groups that are left, where others have theirs."""
    if not fixed or not len(units):
        return allocation(units, cost, target, limits) if len(units) else {}
    own = {g: limits[g] for g in units}

    def whole(counts: Counts) -> float:
        return cost({**fixed, **counts})

    if all(g.sizes is None for g in (*units, *fixed)):  # then numbers of weights add up
        count = sum(g.units for g in units)
        every = count + sum(g.units for g in fixed)
        gone = round(target * every) - sum(g.units - kept_of(n) for g, n in fixed.items())
        gone = min(max(gone, 0), sum(g.units - own[g].least for g in units))
        target = gone / count
    return allocation(units, whole, target, own)


def _alone(
    allocation: Allocation, units: Units, group: Group, kept: int, limits: Mapping[Group, Limits]
) -> int | Tensor:
    """A group's own count, run by run where the allocation counts so."""
    if group.sizes is not None:
        return kept
    target = 1 - kept / group.units
    found = allocation(
        _Some(units, [group]), lambda counts: 1 - kept_of(counts[group]) / group.units, target,
        {group: limits[group]},
    )[group]  # fmt: skip
    return found if isinstance(found, Tensor) else kept


def kept_of(count: int | Tensor) -> int:
    """Units kept of a group."""
    return int(count.sum()) if isinstance(count, Tensor) else int(count)


def _outside(count: int | Tensor, limits: Limits) -> int:
    """Units above the most, or (negative) below the least."""
    kept = kept_of(count)
    return max(kept - limits.most, 0) + min(kept - limits.least, 0)


def _weigh(group: Group, units: int) -> float:
    return units * group.weights / group.units


class _Some(Mapping[Group, Tensor]):
    """The scores of some groups, read as they are asked for."""

    def __init__(self, units: Units, groups: Collection[Group]) -> None:
        self._units, self._groups = units, list(groups)

    def __getitem__(self, group: Group) -> Tensor:
        return self._units[group]

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def weights(self, group: Group) -> Tensor:
        """How many weights of each unit are left, ``[units]``."""
        known = getattr(self._units, "weights", None)
        if known is not None:
            left: Tensor = known(group)
            return left
        return torch.ones(group.units) if group.sizes is None else group.sizes
