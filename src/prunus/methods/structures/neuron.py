"""Whole output neurons, masked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from prunus._common.layers import Layer
from prunus.methods.structures._index import along, numbering
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
        index, _ = numbering(part.shape, (part.out_dim, *reversed(part.stack)))
        if part.gates > 1:
            index = [along(part.out_dim, rank, torch.arange(part.shape[part.out_dim]) % units)]
        if part.groups > 1:
            per_group = part.shape[part.in_dim] // part.groups
            inputs = torch.arange(part.shape[part.in_dim]) // per_group
            index.append(along(part.in_dim, rank, inputs * part.shape[part.out_dim]))
        members.append(Member(part.name, tuple(index)))
        size += math.prod(part.shape) // units
    for bias in dict.fromkeys(b for part in parts for b in part.bias):
        shape = shapes[bias]
        numbers, _ = numbering(shape, reversed(range(len(shape))))
        if len(shape) == 1:
            numbers = [numbers[0] % units]
        members.append(Member(bias, tuple(numbers), scored=False))
    sizes = torch.full((units,), size)
    return Group(name, units, tuple(members), parts[0].matrix, 0, sizes=sizes)
