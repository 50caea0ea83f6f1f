"""Single weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from prunus._common.layers import Layer
from prunus.methods.structures._index import numbering
from prunus.types import Group, Member


def weight(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> list[Group]:
    """Weight: every weight is a unit of its own; a run is the inputs of one output neuron.

    Source: LeCun, Denker, Solla 1989 (Optimal Brain Damage).
    """
    return [single_weights(layer) for layer in layers]


def single_weights(layer: Layer) -> Group:
    """A layer's weights as units, numbered neuron by neuron."""
    count = math.prod(layer.shape)
    index, rank = None, len(layer.shape)
    rows = [*layer.stack, layer.out_dim]
    order = [*rows, *(d for d in range(rank) if d not in rows)]
    if order != list(range(rank)):
        index = tuple(numbering(layer.shape, reversed(order))[0])
    run = count // math.prod(layer.shape[d] for d in rows)
    return Group(layer.name, count, (Member(layer.name, index),), layer.matrix, run)
