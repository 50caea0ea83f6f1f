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
    """Expert: a slice of each fused tensor of experts, with the router's row; never chosen again.

    At least as many experts stay as each item goes to. Where the router looks at experts in groups
    of one size, one of each group goes at a time.

    Args:
        layers: weights in scope.
        shapes: of all parameters.
        analysis: of the model, made from the example.
        least: experts that stay in every layer.

    Raises:
        InputError: if the model has no fused tensors of experts with a router.

    Source: Lu et al. 2024, arXiv:2402.14800; Muzio, Sun, He 2024, arXiv:2404.05089.
    """
    found = (analysis if analysis.experts else with_experts(analysis, layers)).experts
    groups = [_group(e, layers, shapes, analysis, least) for e in found]
    groups = [g for g in groups if g.units > g.least]
    if not groups:
        raise InputError(
            "no expert can be removed from this model: looked for weights [experts, out, in] with "
            "one matrix beside them that has a row for each expert (the router), of which more "
            "are there than each item goes to. Experts in a ModuleList go by structure: layer with "
            "modules: ['*.experts.*'], and answer zero where they are chosen still; all become "
            "narrower by structure: channel, those of one matrix [experts · out, in] too"
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
            scored = name in scope and name != experts.router
            units = torch.arange(experts.count) % experts.units
            members.append(Member(name, (along(d, len(shapes[name]), units),), scored))
            size += math.prod(shapes[name]) // experts.units if scored else 0
    name, d = experts.places[0]
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
