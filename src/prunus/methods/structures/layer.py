"""Whole modules, named by pattern."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from prunus._common.layers import Layer
from prunus._common.names import bare, each_meant, plain_name
from prunus.errors import InputError
from prunus.methods.structures._index import along
from prunus.types import Group, Member

UNITS = "modules"


def layer(
    layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]], *, modules: list[str]
) -> list[Group]:
    """Layer: a module with all its parameters, best one inside a residual branch.

    Args:
        layers: weights in scope.
        shapes: of all parameters.
        modules: patterns of module names, for example ``["blocks.*"]``.

    Raises:
        InputError: if a pattern matches no module with a weight in scope.

    Source: Veit, Wilber, Belongie 2016, arXiv:1605.06431; Fan et al. 2019, arXiv:1909.11556.
    """
    parents = _modules(layers)
    said = "structure layer: no module in scope is named …"
    chosen: list[str] = []
    for found in each_meant(modules, bare(parents), said, around=False).values():
        depth = min(p.count(".") for p in found)
        chosen += [p for p in found if p.count(".") == depth and p not in chosen]
    if not chosen:
        raise InputError("structure layer: modules is empty; write for example ['blocks.*']")
    inside = [(a, b) for a in chosen for b in chosen if b.startswith(f"{a}.")]
    if inside:
        raise InputError(f"structure layer: {inside[0][1]} lies inside {inside[0][0]}; name one")
    return [_group(chosen, layers, shapes)]


def _modules(layers: Sequence[Layer]) -> list[str]:
    """Every module around a weight; of a wrapper and what it wraps the wrapper."""
    found: dict[tuple[str, frozenset[str]], str] = {}
    for parent in dict.fromkeys(p for la in layers for p in _parents(la.module)):
        inside = frozenset(la.name for la in layers if f"{la.module}.".startswith(f"{parent}."))
        if plain_name(parent) or len(inside) < len(layers):  # else it wraps the whole model
            found.setdefault((plain_name(parent), inside), parent)
    return list(found.values())


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _group(
    chosen: Sequence[str], layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]
) -> Group:
    scored = {la.name for la in layers}
    members = []
    sizes = torch.zeros(len(chosen), dtype=torch.int64)
    for number, module in enumerate(chosen):
        for name, shape in shapes.items():
            if name.startswith(f"{module}."):
                rank = len(shape)
                index = (
                    (along(0, rank, torch.tensor([number])),) if rank else (torch.tensor(number),)
                )
                members.append(Member(name, index, scored=name in scored))
                sizes[number] += math.prod(shape) if name in scored else 0
    name = ", ".join(chosen) if len(chosen) < 4 else f"{chosen[0]} … {chosen[-1]}"
    shape = (len(chosen), int(sizes.sum()))
    return Group(name, len(chosen), tuple(members), shape, 0, sizes=sizes, may_empty=True)
