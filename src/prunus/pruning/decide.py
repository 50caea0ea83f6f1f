"""The decision: scores to units, units to counts, counts to masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus._common.memory import both, close_holes
from prunus._common.topk import count, keep_largest, keep_largest_by_run
from prunus.errors import InputError, RunError
from prunus.pruning.cost_model import CostModel
from prunus.pruning.masks import all_finite
from prunus.pruning.units import Norm, Reduce, member_mask, normalized, unit_alive, unit_scores
from prunus.types import Allocation, Counts, Group, Limits, Masks

HELD = 1 << 28
"""Units whose scores are held between passes; of more they are made anew in each pass."""
HELD_SINGLE = 1 << 18
"""The same of units of one weight, whose scores would take as much memory as the model."""


class LazyUnits(Mapping[Group, Tensor]):
    """Unit scores made when they are read: for large models, one layer at a time.

    Args:
        groups: whose units.
        score_of: the scores of a parameter's weights by its name.
        alive: units that are not removed yet.
        density: the part of each unit that other groups left.
        reduce: how the scores of a unit's weights become one.
        normalize: what the scores of a group are divided by.

    Attributes:
        in_memory: whether all of them together are held.
        even: of the groups seen so far whose units differ in nothing, the score of all.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        score_of: Callable[[str], Tensor],
        alive: Alive,
        density: Mapping[Group, Tensor | None] | None = None,
        reduce: Reduce = "mean",
        normalize: Norm = "none",
    ) -> None:
        self._reduce, self._normalize = reduce, normalize
        self.even: dict[Group, float] = {}
        self._groups = list(groups)
        self._score_of = score_of
        self._alive = alive
        self._density = density or {}
        self._kept: dict[Group, Tensor] = {}
        self._finite: set[Group] = set()
        single = sum(g.units for g in self._groups if g.sizes is None)
        self._made, self._often = 0, max(HELD_SINGLE, single // 8)
        self.in_memory = single <= HELD_SINGLE and sum(g.units for g in self._groups) <= HELD

    def __getitem__(self, group: Group) -> Tensor:
        if group in self._kept:
            return self._kept[group]
        self._tidy(group)
        scores = self._ranked(group, unit_scores(group, self._score_of, self._reduce))
        if self.in_memory:
            self._kept[group] = scores
        return scores

    def _tidy(self, group: Group) -> None:
        """Now and then, close the holes of what scores took: their pages are dear to get anew."""
        self._made += 0 if self.in_memory else group.units
        if self._made > self._often:
            close_holes()
            self._made = 0

    def hold(self, group: Group, scores: Tensor) -> None:
        """Take a group's scores from whoever made them."""
        self._kept[group] = self._ranked(group, scores)

    @property
    def missing(self) -> list[Group]:
        """Whose scores should be held and are not yet."""
        return [g for g in self._groups if g not in self._kept] if self.in_memory else []

    def _ranked(self, group: Group, scores: Tensor) -> Tensor:
        """By what is left of each unit, those removed already last."""
        if group not in self._finite and not all_finite(scores):
            raise RunError(
                f"the criterion gave NaN or infinite scores for {group.name}: check its weights "
                "and gradients for NaN and infinity"
            )
        if group not in self._finite:
            self._compare(group, scores)
        self._finite.add(group)
        density = self._density.get(group)
        if density is not None:
            scores = scores / density.to(scores.device).clamp(min=1e-12)
        alive = self._alive[group]
        scores = normalized(scores, self._normalize, alive)
        if alive is not None:
            scores.masked_fill_(~alive.to(scores.device), -torch.inf)
        return scores

    def _compare(self, group: Group, scores: Tensor) -> None:
        """Note a group of which no unit that is left can be told from another."""
        for part in (slice(1000), slice(None)):  # as a rule the first few differ
            left = scores[part]
            if (alive := self._alive[group]) is not None:
                left = left[alive[part].to(left.device)]
            if bool((left != left[:1]).any()):
                return
        if len(left) > 1:
            self.even[group] = float(left[0])

    def most(self, group: Group) -> Tensor:
        """How many units of each run can stay, ``[runs]``: no score is needed for that."""
        alive, runs = self._alive[group], group.units // group.run
        if alive is None:
            return torch.full((runs,), group.run)
        return alive.view(runs, group.run).count_nonzero(dim=1).cpu()

    def weights(self, group: Group) -> Tensor:
        """How many weights of each unit are left, ``[units]``."""
        density = self._density.get(group)
        sizes = torch.ones(group.units) if group.sizes is None else group.sizes.double()
        return sizes if density is None else sizes * density.cpu()

    def alone(self, group: Group) -> LazyUnits:
        """The scores of one group."""
        made = copy.copy(self)
        made._groups, made._kept, made.in_memory = [group], {group: self[group]}, True
        return made

    def take(self, group: Group) -> Tensor:
        """The scores, for the last time."""
        scores = self[group]
        self._kept.pop(group, None)
        return scores

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


Alive = Mapping[Group, Tensor | None]


@dataclass(frozen=True)
class Cost:
    """Exact sparsity of a choice: removed weights ÷ weights in scope.

    Attributes:
        groups: everything in scope.
        ranked: of groups whose units differ in size, the sizes from the highest score down; where
            it is not given, the largest units are taken to stay.
    """

    groups: Sequence[Group]
    ranked: Mapping[Group, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(g.weights for g in self.groups)

    def __call__(self, counts: Counts) -> float:
        kept = 0
        for group, number in counts.items():
            units = int(number.sum()) if isinstance(number, Tensor) else number
            kept += units if group.sizes is None else self._weights(group, units)
        return (self.total - kept) / self.total

    def _weights(self, group: Group, units: int) -> int:
        assert group.sizes is not None
        sizes = self.ranked.get(group)
        if sizes is None:
            sizes = group.sizes.sort(descending=True).values
        return int(sizes[:units].sum())


def ranked_sizes(units: Mapping[Group, Tensor]) -> dict[Group, Tensor]:
    """Sizes from the highest score down, of the groups whose units differ in size.

    >>> group = Group("g", 3, (), (3, 4), 0, sizes=torch.tensor([4, 1, 2]))
    >>> list(ranked_sizes({group: torch.tensor([0.1, 0.3, 0.2])}).values())
    [tensor([1, 2, 4])]
    """
    return {
        g: g.sizes[torch.sort(units[g], descending=True, stable=True).indices.cpu()]
        for g in units
        if g.sizes is not None and bool((g.sizes != g.sizes[0]).any())
    }


def limits_of(groups: Sequence[Group], alive: Alive) -> dict[Group, Limits]:
    """At least one unit of every group stays, unless it may be emptied or is chosen by runs."""
    limits = {}
    for group in groups:
        mask = alive[group]
        most = group.units if mask is None else count(mask)
        least = 0 if group.may_empty or group.balanced else min(group.least, most)
        limits[group] = Limits(least, most)
    return limits


def kept_units(
    groups: Sequence[Group], masks: Masks, shapes: Mapping[str, tuple[int, ...]]
) -> dict[Group, Tensor | None]:
    """The units of each group that the masks leave."""
    return {g: unit_alive(g, masks, shapes) for g in groups}


def sparsity(groups: Sequence[Group], alive: Alive) -> float:
    """Removed weights ÷ weights in scope, counted in elements."""
    total = Cost(groups).total
    return (total - sum(kept_weights(g, alive[g]) for g in groups)) / total


def kept_weights(group: Group, alive: Tensor | None) -> int:
    """Weights of a group that are left."""
    if alive is None:
        return group.weights
    if group.sizes is None:
        return count(alive)
    return int(group.sizes[alive.cpu()].sum())


def allocate(
    units: LazyUnits,
    allocation: Allocation,
    target: float,
    limits: Mapping[Group, Limits],
    cost_model: CostModel | None = None,
) -> Counts:
    """Counts for a sparsity, or the limit that forbids it.

    Args:
        units: scores.
        allocation: how much each group gives.
        target: the part to be removed.
        limits: what must stay.
        cost_model: what the target counts, for coupled units.

    Raises:
        InputError: if more is asked than may be removed.
    """
    if cost_model is not None:
        return _allocate_coupled(units, allocation, target, limits, cost_model)
    cost = Cost(list(units), ranked_sizes(units))
    most = cost({g: limits[g].least for g in units})
    removed = round(target * cost.total) / cost.total
    if removed > most + 1e-12:
        raise InputError(
            f"a sparsity of {target:g} leaves less than one unit in some group: at most "
            f"{most:.6g} can be removed from {len(units)} groups of {cost.total} weights"
        )
    return allocation(units, cost, target, limits)


def _allocate_coupled(
    units: LazyUnits,
    allocation: Allocation,
    target: float,
    limits: Mapping[Group, Limits],
    cost_model: CostModel,
) -> Counts:
    """Counts in whole multiples; a bound on a cost is kept, a sparsity is not passed."""
    most = most_of(cost_model, limits)
    if target > most + 1e-9:
        raise InputError(
            f"target: at most {most:.4g} of the dense model's {cost_model.name} can be removed "
            f"while every group keeps its least (and multiple_of); {target:.4g} was requested"
        )

    hardest = cost_model({g: limits[g].least for g in units})

    def at(asked: float) -> Counts:
        counts = allocation(units, cost_model, min(asked, hardest), limits)
        return {g: _multiple(g, int(k), limits[g]) for g, k in counts.items()}

    found = at(target)
    if cost_model.name == "sparsity" or cost_model(found) >= target - 1e-12:
        return found if cost_model.name == "sparsity" else _fill(found, target, limits, cost_model)
    low, high = target, hardest
    best = at(high)
    for _ in range(SEARCH):
        middle = (low + high) / 2
        counts = at(middle)
        if cost_model(counts) >= target - 1e-12:
            high, best = middle, counts
        else:
            low = middle
    return _fill(best, target, limits, cost_model)


def _fill(
    counts: Counts, target: float, limits: Mapping[Group, Limits], cost_model: CostModel
) -> Counts:
    """Keep more units while the bound holds: those that use most of what is left of it."""
    filled = dict(counts)
    while True:
        best: tuple[float, Group] | None = None
        for group, kept in filled.items():
            more = int(kept) + group.multiple_of
            if more <= limits[group].most:
                gone = cost_model({**filled, group: more})
                if gone >= target - 1e-12 and (best is None or gone < best[0]):
                    best = (gone, group)
        if best is None:
            return filled
        filled[best[1]] = int(filled[best[1]]) + best[1].multiple_of


def most_of(cost_model: CostModel, limits: Mapping[Group, Limits]) -> float:
    """The largest part of a cost that can go."""
    return cost_model({g: _multiple(g, limit.least, limit) for g, limit in limits.items()})


SEARCH = 24
"""Halvings of the interval in which the asked fraction is looked for."""


def _multiple(group: Group, kept: int, limits: Limits) -> int:
    """The next multiple above, within the limits."""
    step = group.multiple_of
    return min(limits.most, max(limits.least, -(-kept // step) * step))


def bottom_up(
    final: Counts, progress: float, schedule: Callable[[float, float, float], float]
) -> Counts:
    """Counts on the way to ``final``, group after group in execution order.

    Group i of L goes from nothing to its final count while progress runs from i/L to (i+1)/L.
    """
    counts: Counts = {}
    for i, (group, kept) in enumerate(final.items()):
        dense = group.dense_units or group.units
        own = min(max(progress * len(final) - i, 0.0), 1.0)
        share = schedule(own, 0.0, 1.0) if own > 0 else 0.0
        whole = group.run if isinstance(kept, Tensor) else dense
        gone = (whole - kept) * share
        if isinstance(gone, Tensor):
            counts[group] = whole - gone.double().add(1e-9).floor().long()
        else:
            left = min(group.units, whole - int(gone + 1e-9))
            counts[group] = min(group.units, -(-left // group.multiple_of) * group.multiple_of)
    return counts


def masks_from(
    units: LazyUnits,
    counts: Counts,
    masks: Masks,
    shapes: Mapping[str, tuple[int, ...]],
) -> Masks:
    """The masks that keep ``counts`` of the highest units, and nothing that was removed.

    A parameter in several groups keeps what all of them keep.
    """
    chosen: Masks = {}
    guess: float | None = None
    for group in units:
        scores, kept = units.take(group), counts[group]
        if isinstance(kept, Tensor):
            keep = keep_largest_by_run(scores.view(len(kept), -1), kept).flatten()
        else:
            keep, guess = keep_largest(scores, kept, guess=guess)
        del scores  # before the next are made
        for member in group.members:
            mask = member_mask(member, keep, shapes[member.name])
            known = chosen.get(member.name)
            chosen[member.name] = mask if known is None else both(known, mask)
    for name, before in masks.items():
        chosen[name] = both(chosen[name], before) if name in chosen else before
    return chosen
