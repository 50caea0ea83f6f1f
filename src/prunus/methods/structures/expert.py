"""Whole experts that can be taken out of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from annotated_types import Ge

from prunus._common.layers import Layer
from prunus.errors import InputError
from prunus.graph.analysis import Analysis
from prunus.graph.experts import Experts, with_experts
from prunus.graph.labels import Fixed
from prunus.methods.structures._index import along
from prunus.types import Group, Member

UNITS = "experts"


def expert(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    analysis: Analysis,
    *,
    least: Annotated[int, Ge(1)] = 1,
) -> list[Group]:
    """Expert: its slices of fused tensors or its entry of a list, with the router's row.

    It is never chosen again. At least as many stay as each item goes to. Where the router looks at
    experts in groups of one size, one of each group goes at a time.

    Args:
        layers: weights in scope.
        shapes: of all parameters.
        analysis: of the model, made from the example.
        least: experts that stay in every layer.

    Raises:
        InputError: if the model has no experts with a router, in fused tensors or in lists.

    Source: Lu et al. 2024, arXiv:2402.14800; Muzio, Sun, He 2024, arXiv:2404.05089.
    """
    found = (analysis if analysis.experts else with_experts(analysis, layers)).experts
    groups = [_group(e, layers, shapes, analysis, least) for e in found]
    groups = [g for g in groups if g.units > g.least]
    if not groups:
        raise InputError(
            "no expert can be removed from this model: looked for weights [experts, out, in], or "
            "an nn.ModuleList of alike modules that share no tensor, with a matrix beside them "
            "that has a row for each expert (the router) and without whose row the expert does "
            "not matter, of which more are there than each item goes to. Of others, structure: "
            "layer with modules: ['*.experts.*'] takes entries that answer zero where they are "
            "chosen still; all become narrower by structure: channel, those of one matrix "
            "[experts · out, in] too"
        )
    return groups


def _group(
    experts: Experts,
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    analysis: Analysis,
    least: int,
) -> Group:
    scope = {la.name for la in layers}
    members, size = [], 0
    for name, d in experts.places:
        if name in shapes:
            scored = name in scope and (name, d) not in experts.rows
            units = torch.arange(experts.count) % experts.units
            members.append(Member(name, (along(d, len(shapes[name]), units),), scored))
            size += math.prod(shapes[name]) // experts.units if scored else 0
    for number, own in enumerate(experts.entries):
        for name in own:
            if shapes.get(name):
                unit = torch.full((1,) * len(shapes[name]), number % experts.units)
                members.append(Member(name, (unit,), name in scope))
                counted = name in scope and number < experts.units
                size += math.prod(shapes[name]) * experts.groups if counted else 0
    name, d = experts.places[0] if not experts.lists else experts.places[-1]
    dim = analysis.tensors[name].dims[d]
    every = () if isinstance(dim, Fixed) else analysis.solved.of(dim)
    classes = tuple(int(c) for c in every[: experts.units])
    return Group(
        name=name,
        units=experts.units,
        members=tuple(members),
        shape=shapes[name],
        run=0,
        sizes=torch.full((experts.units,), size),
        classes=classes,
        least=max(least, experts.least),
    )
