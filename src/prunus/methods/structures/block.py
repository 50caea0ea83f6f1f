"""Rectangles of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from annotated_types import Ge

from prunus._common.layers import Layer
from prunus.methods.structures._index import along
from prunus.types import Group, Member


def block(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rows: Annotated[int, Ge(1)] = 4,
    columns: Annotated[int, Ge(1)] = 1,
) -> list[Group]:
    """Block: rows (outputs) × columns (inputs) fall together, at a fixed kernel position.

    Blocks at the edge are smaller where the size does not divide.

    Source: Narang, Undersander, Diamos 2017, arXiv:1711.02782.
    """
    return [_group(layer, rows, columns) for layer in layers]


def _group(layer: Layer, rows: int, columns: int) -> Group:
    rank = len(layer.shape)
    edge = {layer.in_dim: columns, layer.out_dim: rows}
    kernel = [d for d in range(rank) if d not in edge and d not in layer.stack]
    vectors, step, run = [], 1, 1
    sizes = torch.ones((), dtype=torch.int64)
    for dim in [layer.in_dim, *reversed(kernel), layer.out_dim, *reversed(layer.stack)]:
        run = step if dim == layer.out_dim else run
        position = torch.arange(layer.shape[dim]) // edge.get(dim, 1)
        count = int(position[-1]) + 1
        vectors.append(along(dim, rank, position * step))
        sizes = (torch.bincount(position)[:, None] * sizes.view(1, -1)).flatten()
        step *= count
    return Group(
        layer.name, step, (Member(layer.name, tuple(vectors)),), layer.matrix, run, sizes=sizes
    )
