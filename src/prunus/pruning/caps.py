"""Sparsities of single layers, by pattern: what a recipe says of them, as limits of its groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from prunus._common.layers import Layer
from prunus._common.names import each_meant, meant, plain_name, plain_names
from prunus.errors import InputError
from prunus.pruning.decide import ranked_sizes
from prunus.pruning.scope import tied_names
from prunus.recipe.fields import Target
from prunus.recipe.schema import Recipe
from prunus.types import Group, Limits, Member

EPS = 1e-9
Scored: TypeAlias = Mapping[Group, Tensor]


@dataclass(frozen=True)
class Cap:
    """Between which sparsities a group ends.

    Attributes:
        least: the smallest; at the end of a run, and on the way its share.
        most: the largest, at any time.
    """

    least: float = 0.0
    most: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether one sparsity is asked for."""
        return self.least == self.most


@dataclass(frozen=True)
class Caps:
    """What a recipe says of single layers.

    Attributes:
        of: caps of groups; the others have none.
        guarded: whether a guard says when pruning ends, so that no end is known.
    """

    of: Mapping[Group, Cap] = field(default_factory=dict)
    guarded: bool = False

    def __bool__(self) -> bool:
        return bool(self.of)

    def within(
        self, limits: Mapping[Group, Limits], requested: float = 1.0, target: float = 1.0
    ) -> dict[Group, Limits]:
        """Limits that keep to the caps as well.

        Args:
            limits: of what must stay, and of what can.
            requested: the part that is to go now. A smallest sparsity holds in proportion to it;
                where a guard ends the run, as soon as the whole is as sparse.
            target: the part that is to go at the end.
        """
        found = dict(limits)
        for group, cap in self.of.items():
            if group in found:
                whole = cap.least if self.guarded else target
                share = min(1.0, requested / whole) if whole > 0 else 1.0
                found[group] = _within(group, cap, share, limits[group])
        return found

    def nearest(
        self, limits: Mapping[Group, Limits], free: Mapping[Group, Limits], units: Scored
    ) -> dict[Group, Limits]:
        """Limits whose exact sparsities count weights: units of a group may differ in size.

        Before scores are known that can only be said of units: a block at an edge weighs less.

        Args:
            limits: within the caps.
            free: of what must stay and what can, without them.
            units: scores by group, those that are gone lowest.
        """
        found = dict(limits)
        for group, cap in self.of.items():
            if not cap.exact or group not in found or _unequal(group) is None:
                continue
            sizes = ranked_sizes({group: units[group]})[group].flip(0).cumsum(0)
            gone = torch.cat([sizes.new_zeros(1), sizes]).double()
            kept = group.units - int((gone - cap.most * group.weights).abs().argmin())
            kept = min(max(kept, free[group].least), free[group].most)
            found[group] = Limits(kept, kept)
        return found


def _within(group: Group, cap: Cap, share: float, limits: Limits) -> Limits:
    """Units kept: at least those above the largest sparsity, at most those above the smallest."""
    units, step = group.dense_units or group.units, group.multiple_of
    low = _steps(units - _largest(group, cap), step, up=not cap.exact)
    high = low
    if not cap.exact or share < 1:
        high = max(low, _steps(units - _smallest(group, cap.least * share), step, up=False))
    # What is gone already stays gone; what the structure keeps stays.
    least = min(max(low, limits.least), limits.most)
    return Limits(least, max(least, min(high, limits.most)))


def _steps(kept: int, step: int, *, up: bool) -> int:
    """A number of units in whole multiples: the next one above, or the nearest."""
    return -(-kept // step) * step if up else int(kept / step + 0.5) * step


def _largest(group: Group, cap: Cap) -> int:
    """Units that may go."""
    units = group.dense_units or group.units
    if cap.exact:  # the nearest
        return round(cap.most * units)
    sizes = _unequal(group)
    if sizes is None:
        return math.floor(cap.most * units + EPS)
    heaviest = sizes.flip(0).cumsum(0)
    return int((heaviest <= cap.most * group.weights + EPS).sum())


def _smallest(group: Group, sparsity: float) -> int:
    """Units that must go."""
    sizes = _unequal(group)
    if sizes is None:
        return math.ceil(sparsity * (group.dense_units or group.units) - EPS)
    return int((sizes.cumsum(0) < sparsity * group.weights - EPS).sum()) + (sparsity > EPS)


def _unequal(group: Group) -> Tensor | None:
    """The sizes of units in ascending order, where they differ (blocks at an edge)."""
    sizes = group.sizes
    if sizes is None or group.dense_units or bool((sizes == sizes[0]).all()):
        return None
    return torch.sort(sizes).values


def find_caps(
    recipe: Recipe,
    layers: Sequence[Layer],
    groups: Sequence[Group],
    model: nn.Module,
    *,
    first: bool = True,
) -> Caps:
    """The caps of a recipe's ``limits`` and ``target.layers``.

    A pattern is one of ``scope.include``. Coupled units belong to the layers whose outputs they
    are. Of several patterns of ``target.layers`` that match a parameter the most exact counts: one
    without ``*`` before others, then the longer; of ``limits`` all hold.

    Args:
        recipe: whose.
        layers: in scope.
        groups: of the model as it stands.
        model: whose they are.
        first: whether the model is as it was given; a smaller one may have lost what is named.

    Raises:
        InputError: if a pattern matches nothing in scope, nothing of a layer can go that should,
            or caps contradict each other.
    """
    target = recipe.target or Target()
    if not recipe.limits and not target.layers:
        return Caps()
    hits = _hits(recipe, target, layers, model, first=first)
    together = recipe.trait("structure", "UNITS") == "modules"
    given = [("limits", p) for p in recipe.limits] + [("target.layers", p) for p in target.layers]
    rest = Cap(0.0, 0.0) if target.layers_alone else None
    caps: dict[Group, Cap] = {}
    used: set[tuple[str, str]] = set()
    for group in groups:
        asked: dict[tuple[str, str], Cap] = {}
        own = belongs_to(group, layers)
        for name in own:
            exact = _most_exact(name, {p: t for p, t in target.layers.items() if name in hits[p]})
            asked |= {} if exact is None else {("target.layers", exact): _exactly(target, exact)}
            bounds = {("limits", p): b for p, b in recipe.limits.items() if name in hits[p]}
            asked |= {key: Cap(b.least, b.most) for key, b in bounds.items()}
            used |= {(key, p) for key, p in given if name in hits[p]}
        for key, pattern in asked if together else ():
            if not hits[pattern].issuperset(own):
                raise InputError(
                    f"{key}: structure {recipe.structure.name} chooses among all the modules that "
                    f"it names, and '{pattern}' is only a part of them: name in its modules those "
                    "that may go"
                )
        cap = _combined(group, asked, rest)
        if cap is not None:
            caps[group] = cap
    if first:
        _refuse_unreachable(caps, [c for c in given if c not in used], recipe)
    return Caps(caps, recipe.until_guard)


def belongs_to(group: Group, layers: Sequence[Layer]) -> list[str]:
    """The weights in scope whose units a group has; of coupled ones those whose outputs they are.

    >>> rows = Member("a.weight", (torch.arange(2)[:, None],))
    >>> columns = Member("b.weight", (torch.arange(2)[None],))
    >>> both = [Layer("a.weight", "a", "linear", (2, 3)), Layer("b.weight", "b", "linear", (4, 2))]
    >>> belongs_to(Group("a.weight", 2, (rows, columns), (2, 3), 0, classes=(0, 1)), both)
    ['a.weight']
    """
    known = {la.name: la for la in layers}
    members = [m for m in group.members if m.name in known] or list(group.members)
    if group.classes is not None:
        own = [m for m in members if m.name not in known or not _is_input(m, known[m.name])]
        members = own or members
    return list(dict.fromkeys(m.name for m in members))


def _is_input(member: Member, layer: Layer) -> bool:
    """Whether units are what a weight reads."""
    (vector,) = member.index or (torch.zeros(()),)
    dims = [d for d, n in enumerate(vector.shape) if n > 1]
    return dims == [layer.in_dim]


def _hits(
    recipe: Recipe, target: Target, layers: Sequence[Layer], model: nn.Module, *, first: bool
) -> dict[str, set[str]]:
    """The parameters that each pattern names, by the first of their names."""
    spelt, tied = plain_names(model), tied_names(model)
    inside = [n for la in layers for n in tied.get(la.name, ())]
    found: dict[str, list[str]] = {}
    for key, patterns in (("limits", recipe.limits), ("target.layers", target.layers)):
        if first:
            said = f"{key}: … matches no parameter in scope"
            found |= each_meant(patterns, spelt, said, within=inside)
        else:
            found |= {pattern: meant(pattern, spelt) for pattern in patterns}
    own = {alias: name for name, every in tied.items() for alias in every}
    return {p: {own[n] for n in every if n in own} for p, every in found.items()}


def _exactly(target: Target, pattern: str) -> Cap:
    return Cap(target.layers[pattern], target.layers[pattern])


def _most_exact(name: str, patterns: Mapping[str, float]) -> str | None:
    """Of the patterns that name a parameter, the one that says most of it.

    Raises:
        InputError: if two say as much, and not the same.
    """
    if not patterns:
        return None

    def rank(pattern: str) -> tuple[bool, int]:
        return (not any(sign in pattern for sign in "*?["), len(plain_name(pattern)))

    best = max(patterns, key=rank)
    other = [p for p in patterns if rank(p) == rank(best) and patterns[p] != patterns[best]]
    if other:
        raise InputError(
            f"target.layers: '{best}' and '{other[0]}' both match {plain_name(name)}: write "
            "one that is more exact"
        )
    return best


def _combined(group: Group, asked: Mapping[tuple[str, str], Cap], rest: Cap | None) -> Cap | None:
    """What all that is asked of a group leaves."""
    if not asked:
        return rest
    least, most = max(c.least for c in asked.values()), min(c.most for c in asked.values())
    if least > most:
        said = ", ".join(f"{key}.{p}" for key, p in asked)
        raise InputError(
            f"{said} contradict each other at {group.name}: at least {least:g} of it should go "
            f"and at most {most:g}"
        )
    return Cap(least, most)


def _refuse_unreachable(
    caps: Mapping[Group, Cap], unused: Sequence[tuple[str, str]], recipe: Recipe
) -> None:
    """Whatever is asked of layers that have no units, or more than they have."""
    target = recipe.target or Target()
    for key, pattern in unused:
        own = target.layers.get(pattern) if key == "target.layers" else recipe.limits[pattern].least
        if own:
            raise InputError(
                f"{key}: nothing of '{pattern}' can go: structure {recipe.structure.name} has no "
                "units there (prunus units says what pins them)"
            )
    for group, cap in caps.items():
        most = group.units if group.may_empty else group.units - min(group.least, group.units)
        gone = _largest(group, cap) if cap.exact else _smallest(group, cap.least)
        if gone > most:
            raise InputError(
                f"a sparsity of {cap.least:g} leaves too little of {group.name}: at most "
                f"{most / group.units:.6g} of it can go"
            )
