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
    index = None
    if layer.out_dim != 0:
        others = [d for d in range(len(layer.shape)) if d != layer.out_dim]
        index = tuple(numbering(layer.shape, [*reversed(others), layer.out_dim])[0])
    run = count // layer.shape[layer.out_dim]
    return Group(layer.name, count, (Member(layer.name, index),), layer.shape, run)
