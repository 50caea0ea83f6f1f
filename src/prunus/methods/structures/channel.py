"""Coupled units that can be taken out of the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge

from prunus._common.layers import Layer
from prunus.errors import InputError
from prunus.graph.analysis import Analysis
from prunus.graph.labels import Fixed
from prunus.graph.units import Coupled, coupled_units
from prunus.methods.structures._index import along
from prunus.types import Group, Member

HEADS = "{heads}"
HIDDEN = "{hidden}"


def channel(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    analysis: Analysis,
    *,
    heads: Literal["whole", "dims", "stay"] = "whole",
    hidden: bool = False,
    multiple_of: Annotated[int, Ge(1)] = 1,
    least: Annotated[int, Ge(1)] = 1,
) -> list[Group]:
    """Channel: all slices that fall together with an output channel, neuron or head, removable.

    Args:
        layers: weights in scope; a unit must touch one of them and no excluded parameter.
        shapes: of all parameters.
        analysis: of the model, made from the example.
        heads: at attention, ``whole`` heads go, the same ``dims`` of every head, or they ``stay``.
        hidden: whether the widths that norms count can go as well (structure: hidden).
        multiple_of: the number of units that stays is a multiple of this, where it can be; whole
            heads count singly.
        least: units that stay in every group.

    Raises:
        InputError: if nothing in scope can be removed.

    Source: Li et al. 2016, arXiv:1608.08710; coupled units: Fang et al. 2023, arXiv:2301.12900.
    """
    kinds = [k for k in _in_scope(layers, shapes, analysis) if heads != "stay" or not k.head]
    return _groups(kinds, layers, shapes, analysis, multiple_of=multiple_of, least=least)


def _groups(
    kinds: Sequence[Coupled],
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    analysis: Analysis,
    *,
    multiple_of: int,
    least: int,
) -> list[Group]:
    if not kinds:
        raise InputError(
            "no unit in scope can be removed from this model: prunus units shows what pins each "
            "dimension; single weights can still be pruned with structure: weight"
        )
    scored = {analysis.names.get(la.name, la.name) for la in layers}
    groups = [
        _group(
            kind, scored, shapes, analysis, least=least, multiple_of=1 if kind.head else multiple_of
        )  # a head is many channels already
        for kind in kinds
    ]
    names = Counter(g.name for g in groups)
    return [
        g if names[g.name] == 1 else replace(g, name=f"{g.name}[{k.places[0][1]}]")
        for g, k in zip(groups, kinds, strict=True)
    ]


def _in_scope(
    layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]], analysis: Analysis
) -> list[Coupled]:
    """Kinds of units that touch a weight in scope, in the order in which the model runs them."""
    order = {analysis.names.get(la.name, la.name): i for i, la in enumerate(layers)}
    kinds = coupled_units(analysis, list(shapes))
    found = [k for k in kinds if any(n in order for n, _ in k.places) and len(k) > 1]
    return sorted(found, key=lambda k: min(order[n] for n, _ in k.places if n in order))


def _group(
    kind: Coupled,
    scored: set[str],
    shapes: Mapping[str, tuple[int, ...]],
    analysis: Analysis,
    *,
    multiple_of: int,
    least: int,
) -> Group:
    number = np.full(len(analysis.solved.reason), -1, dtype=np.int64)
    number[kind.classes] = np.arange(len(kind))
    places = [p for p in kind.places if p[0] in shapes and p not in analysis.spared]
    counts = {name for name, _ in places} & scored
    if not counts:  # its weights are spared (weight_norm): what is masked in their stead counts
        counts = {name for name, _ in places if len(shapes[name]) > 1} or {p[0] for p in places}
    members = []
    size = 0
    for name, d in places:  # no buffers, nor what a zero beside it makes zero: sliced all the same
        dim = analysis.tensors[name].dims[d]
        assert not isinstance(dim, Fixed)
        units = torch.from_numpy(number[analysis.solved.of(dim)])
        members.append(Member(name, (along(d, len(shapes[name]), units),), scored=name in counts))
        if name in counts:
            size += math.prod(shapes[name]) // shapes[name][d] * int((units >= 0).sum())
    first = next(m for m in members if m.scored)
    sizes = torch.full((len(kind),), max(1, size // len(kind)))
    return Group(
        name=first.name,
        units=len(kind),
        members=tuple(members),
        shape=shapes[first.name],
        run=0,
        sizes=sizes,
        classes=tuple(int(c) for c in kind.classes),
        multiple_of=multiple_of,
        least=least,
    )
