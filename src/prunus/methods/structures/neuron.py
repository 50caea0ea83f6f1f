"""Whole output neurons, masked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunus._common.layers import Layer
from prunus.methods.structures._index import along
from prunus.types import Group, Member

UNITS = "neurons"
SPARES_OUTPUT = True


def neuron(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> list[Group]:
    """Neuron: one output row of a layer with its bias; a recurrent unit with all its gates.

    Source: Mozer & Smolensky 1988 (Skeletonization); Li et al. 2016, arXiv:1608.08710.
    """
    shared: dict[str, list[Layer]] = {}
    for layer in layers:
        shared.setdefault(layer.neuron, []).append(layer)
    return [_group(name, parts, shapes) for name, parts in shared.items()]


def _group(name: str, parts: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> Group:
    units = parts[0].outputs
    members, size = [], 0
    for part in parts:
        rank = len(part.shape)
        rows = torch.arange(part.shape[part.out_dim]) % units
        index = [along(part.out_dim, rank, rows)]
        if part.groups > 1:
            per_group = part.shape[part.in_dim] // part.groups
            inputs = torch.arange(part.shape[part.in_dim]) // per_group
            index.append(along(part.in_dim, rank, inputs * part.shape[part.out_dim]))
        members.append(Member(part.name, tuple(index)))
        size += math.prod(part.shape) // units
    for bias in dict.fromkeys(b for part in parts for b in part.bias):
        numbers: Tensor = torch.arange(shapes[bias][0]) % units
        members.append(Member(bias, (numbers,), scored=False))
    sizes = torch.full((units,), size)
    return Group(name, units, tuple(members), parts[0].shape, 0, sizes=sizes)
