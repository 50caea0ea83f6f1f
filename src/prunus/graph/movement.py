"""Operators that only move elements: run on index numbers, and read where each index went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from prunus.graph.labels import Array, Dim, Dims, Fixed, Labels, Site

Move = Callable[[Tensor], Tensor]
"""The operator as a function of its one tensor; where it fills, it fills with −1."""


@dataclass(frozen=True)
class Flow:
    """How the indices of one input dimension reach one output dimension.

    Attributes:
        index: where the output index decides the input index: that one, −1 = filled. ``[out]``.
        inside: else the component of each input index, ``[in]``, −1 = does not arrive,
        outside: and of each output index, ``[out]``, −1 = sees no input.
    """

    index: Array | None = None
    inside: Array | None = None
    outside: Array | None = None


@dataclass(frozen=True)
class Relation:
    """What a movement does to some input dimensions.

    Attributes:
        flows: by (input dimension, output dimension), where they are related.
        seen: which indices of an input dimension arrive at all.
        constant: output dimensions along which the values repeat.
    """

    flows: dict[tuple[int, int], Flow] = field(default_factory=dict)
    seen: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    constant: frozenset[int] = frozenset()


def relate(move: Move, shape: Sequence[int], dims: Sequence[int]) -> tuple[Relation, list[int]]:
    """Run a movement on the index numbers of each given input dimension.

    Args:
        move: the operator.
        shape: of its input.
        dims: input dimensions of more than one index.

    Returns:
        The relation and the output's shape.

    >>> relation, shape = relate(lambda x: x.reshape(2, 3), [6], [0])
    >>> relation.flows[0, 0].inside.tolist(), relation.flows[0, 1].inside.tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    """
    relation = Relation()
    out_shape: list[int] = []
    for d in dims:
        view = [-1 if i == d else 1 for i in range(len(shape))]
        found = _run(move, torch.arange(shape[d]).reshape(view).expand(tuple(shape)))
        out_shape = list(found.shape)
        relation.seen[d] = np.zeros(shape[d], dtype=bool)
        relation.seen[d][found[found >= 0]] = True
        for e, size in enumerate(out_shape):
            flow = _flow(np.moveaxis(found, e, 0).reshape(size, -1), shape[d]) if size > 1 else None
            if flow is not None:
                relation.flows[d, e] = flow
    reached = {e for _, e in relation.flows}
    every = _run(move, torch.arange(int(np.prod(shape))).reshape(tuple(shape)))
    constant = frozenset(
        e
        for e, size in enumerate(every.shape)
        if size > 1 and e not in reached and bool((every == every.take([0], axis=e)).all())
    )
    return Relation(relation.flows, relation.seen, constant), list(every.shape)


def _run(move: Move, indices: Tensor) -> Array:
    try:
        out = move(indices)
    except (RuntimeError, NotImplementedError):  # some operators know no integers
        out = move(indices.double())
    return out.long().numpy()


def _flow(rows: Array, size: int) -> Flow | None:
    """``rows[e]``: the input indices that output index e sees."""
    low, high = rows.min(axis=1), rows.max(axis=1)
    if bool((low == high).all()):
        return Flow(index=low) if len(np.unique(low)) > 1 else None
    least = low if low.min() >= 0 else np.where(rows < 0, size, rows).min(axis=1)
    if bool((least == least[0]).all()) and least[0] < size:
        return None  # every output index sees one and the same input index: nothing to tell apart
    number = len(rows)
    pairs = np.unique((rows + 1) * number + np.arange(number)[:, None])
    inside, outside = pairs // number - 1, pairs % number
    real = inside >= 0
    graph = coo_matrix(
        (np.ones(int(real.sum())), (inside[real], outside[real] + size)),
        shape=(size + number, size + number),
    )
    found = connected_components(graph, directed=False)[1].astype(np.int64)
    arrives = np.zeros(size, dtype=bool)
    arrives[inside[real]] = True
    sees = np.zeros(number, dtype=bool)
    sees[outside[real]] = True
    if len(np.unique(found[:size][arrives])) < 2:
        return None
    return Flow(
        inside=np.where(arrives, found[:size], -1), outside=np.where(sees, found[size:], -1)
    )


def move_labels(
    labels: Labels, relation: Relation, dims: Dims, out_shape: Sequence[int], where: str
) -> Dims:
    """The labels of a movement's output.

    Args:
        labels: receives what falls together.
        relation: of the input dimensions that are not fixed.
        dims: of the input.
        out_shape: of the output.
        where: the operator, for reasons.
    """
    flows = relation.flows
    sinks = {d: [e for e in range(len(out_shape)) if (d, e) in flows] for d in relation.seen}
    sources = [[d for d in relation.seen if (d, e) in flows] for e in range(len(out_shape))]
    free = {
        d: dim for d, dim in enumerate(dims) if d in relation.seen and isinstance(dim, np.ndarray)
    }
    for d, dim in free.items():
        if not sinks[d]:
            labels.pin(dim[relation.seen[d]], f"{where}: one index is taken, or all are mixed")
    out: list[Dim] = []
    for e, size in enumerate(out_shape):
        if len(sources[e]) == 1 and len(sinks[sources[e][0]]) == 1:
            flow, dim = flows[sources[e][0], e], free[sources[e][0]]
            out.append(_moved(labels, dim, flow, size))
        elif sources[e] or e in relation.constant:
            out.append(labels.fresh(size))
        else:
            out.append(_fixed(dims, where))
    _sites(labels, flows, free, out, sinks, where)
    return tuple(out)


def _fixed(dims: Dims, where: str) -> Fixed:
    return next((d for d in dims if isinstance(d, Fixed)), Fixed(f"{where}: of size 1"))


def _moved(labels: Labels, dim: Array, flow: Flow, size: int) -> Array:
    """One to one: the labels go along; filled places get new ones."""
    if flow.index is None:
        fresh = labels.fresh(size)
        labels.tie(*_tied(dim, fresh, flow))
        return fresh
    filled = flow.index < 0
    if not filled.any():
        return dim[flow.index]
    out = dim[np.maximum(flow.index, 0)]
    out[filled] = labels.fresh(int(filled.sum()))
    return out


def _tied(dim: Array, out: Array, flow: Flow) -> tuple[Array, Array]:
    """Labels that fall together if these two dimensions are partners."""
    if flow.index is not None:
        real = flow.index >= 0
        return dim[flow.index[real]], out[real]
    assert flow.inside is not None
    assert flow.outside is not None
    component = np.concatenate([flow.inside, flow.outside])
    label = np.concatenate([dim, out])
    component, label = component[component >= 0], label[component >= 0]
    first = np.full(int(component.max()) + 1, -1, dtype=np.int64)
    first[component[::-1]] = label[::-1]
    return first[component], label


def _sites(
    labels: Labels,
    flows: dict[tuple[int, int], Flow],
    free: dict[int, Array],
    out: list[Dim],
    sinks: dict[int, list[int]],
    where: str,
) -> None:
    """A site for every set of dimensions that are related other than one to one."""
    left = {
        (d, e)
        for d, e in flows
        if not (len(sinks[d]) == 1 and sum((i, e) in flows for i in free) == 1)
    }
    while left:
        some = {min(left)}
        while True:
            more = {p for p in left if any(p[0] == q[0] or p[1] == q[1] for q in some)}
            if more == some:
                break
            some = more
        left -= some
        ins, outs = sorted({d for d, _ in some}), sorted({e for _, e in some})
        ends = [out[e] for e in outs]
        arrays = tuple(e for e in ends if isinstance(e, np.ndarray))
        assert len(arrays) == len(ends)
        pairs = tuple(
            (
                ins.index(d),
                outs.index(e),
                np.stack(_tied(free[d], arrays[outs.index(e)], flows[d, e])),
            )
            for d, e in sorted(some)
        )
        labels.sites.append(Site(where, tuple(free[d] for d in ins), arrays, pairs))
