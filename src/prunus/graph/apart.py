"""Movements whose dimensions can be looked at one by one, or a few at a time.

What :func:`prunus.graph.movement.relate` reads off a tensor of the whole size, which for a picture
in windows has a million elements, shows in one of a single dimension where an operator exchanges,
turns or adds dimensions, and in one of a few where it splits and merges them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from prunus.graph.movement import Flow, Move, Relation, relate

EXCHANGES = frozenset(
    {"permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "numpy_T",
     "unsqueeze", "flip"}
)  # fmt: skip
"""Operators that treat a dimension as they do whatever the sizes of others are."""

Part = tuple[list[int], list[int]]
"""Dimensions before and behind a change of shape, of as many elements."""


def exchanged(move: Move, shape: Sequence[int], dims: Sequence[int]) -> Relation:
    """What an operator of :data:`EXCHANGES`, or a roll of given dimensions, does to them.

    Args:
        move: the operator.
        shape: of its input.
        dims: input dimensions of more than one index.

    >>> exchanged(lambda x: x.T, [2, 3], [1]).flows[1, 0].index.tolist()
    [0, 1, 2]
    """
    relation = Relation()
    for d in dims:
        alone = [shape[d] if i == d else 1 for i in range(len(shape))]
        found = move(torch.arange(shape[d]).view(alone))
        relation.seen[d] = np.ones(shape[d], dtype=bool)
        relation.flows[d, max(range(found.dim()), key=lambda e: int(found.shape[e]))] = Flow(
            index=found.flatten().numpy()
        )
    return relation


def reshaped(shape: Sequence[int], out: Sequence[int], dims: Sequence[int]) -> Relation:
    """What another shape for the same elements does to dimensions.

    Args:
        shape: before.
        out: behind.
        dims: input dimensions of more than one index.

    >>> sorted(reshaped([4, 6, 5], [4, 2, 3, 5], [0, 1, 2]).flows)
    [(0, 0), (1, 1), (1, 2), (2, 3)]
    """
    relation = Relation()
    for before, behind in parts(shape, out):
        own = [i for i, d in enumerate(before) if d in dims]
        target = partial(torch.reshape, shape=[out[e] for e in behind])
        found, _ = relate(target, [shape[d] for d in before], own)
        for (i, j), flow in found.flows.items():
            relation.flows[before[i], behind[j]] = flow
        for i, seen in found.seen.items():
            relation.seen[before[i]] = seen
    return relation


def parts(shape: Sequence[int], out: Sequence[int]) -> Iterator[Part]:
    """The fewest dimensions each that hold the same elements; those of size 1 are none.

    >>> list(parts([6, 1, 4, 5], [2, 3, 20]))
    [([0], [0, 1]), ([2, 3], [2])]
    """
    left = [d for d, n in enumerate(shape) if n > 1]
    right = [e for e, n in enumerate(out) if n > 1]
    while left:
        before, behind = [left.pop(0)], [right.pop(0)]
        sizes = [shape[before[0]], out[behind[0]]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                before.append(left.pop(0))
                sizes[0] *= shape[before[-1]]
            else:
                behind.append(right.pop(0))
                sizes[1] *= out[behind[-1]]
        yield before, behind
