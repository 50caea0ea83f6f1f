"""Weights of named neurons only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunus._common.layers import Layer
from prunus._common.names import bare, each_meant
from prunus.errors import InputError
from prunus.methods.structures._index import along, numbering
from prunus.types import Group, Member


def subset(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    neurons: dict[str, list[int]],
) -> list[Group]:
    """Subset: the weights of the neurons that ``neurons`` names, layer by layer.

    Args:
        layers: weights in scope.
        shapes: of all parameters.
        neurons: a layer's name or pattern to the numbers of its output neurons.

    Raises:
        InputError: if a name matches no layer or a number is no neuron of it.

    Source: local pruning in the method's source text (see docs/source_text.md).
    """
    groups = []
    plain = bare(la.name for la in layers)
    said = "structure subset: no layer in scope is named …"
    for pattern, meant in each_meant(neurons, plain, said).items():
        groups += [_group(la, neurons[pattern]) for la in layers if la.name in meant]
    names = [g.name for g in groups]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"structure subset: {', '.join(twice)} is named by two patterns")
    if not groups:
        raise InputError("structure subset: neurons names no layer; write {fc1: [0, 3]}")
    return groups


def _group(layer: Layer, numbers: Sequence[int]) -> Group:
    rank = len(layer.shape)
    rows = layer.shape[layer.out_dim]
    wrong = [i for i in numbers if not 0 <= i < rows]
    if wrong or not numbers or len(set(numbers)) != len(numbers):
        raise InputError(
            f"structure subset: {layer.name} has neurons 0 to {rows - 1}; got {list(numbers)}"
        )
    others = [d for d in range(rank) if d != layer.out_dim]
    vectors, step = numbering(layer.shape, reversed(others))
    row = torch.full((rows,), -1)
    row[torch.tensor(sorted(numbers))] = torch.arange(len(numbers)) * step
    vectors.append(along(layer.out_dim, rank, row))
    return Group(
        layer.name, len(numbers) * step, (Member(layer.name, tuple(vectors)),), layer.matrix, step
    )
