"""Operators that only move elements, run on index numbers while a graph is rewritten."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from prunus._common.torch_internals import pytree
from prunus.graph.call import base_name
from prunus.graph.labels import Value
from prunus.graph.rules.movement import MOVES, SPLITS

aten = torch.ops.aten


def one_dim_move(node: fx.Node, x: Value, out: Value) -> tuple[int, np.ndarray[Any, Any]] | None:
    """The one dimension that a movement reorders, and the input index of each output index."""
    if len(x.shape) != len(out.shape):
        return None
    differs = None
    for d in range(len(x.shape)):
        view = [-1 if i == d else 1 for i in range(len(x.shape))]
        numbers = torch.arange(x.shape[d]).view(view).expand(x.shape)
        rest, kwargs = pytree.tree_map_only(
            fx.Node, stand_in, (tuple(node.args[1:]), dict(node.kwargs))
        )
        moved = run(node.target, numbers, rest, kwargs)
        rows = moved.movedim(d, 0).reshape(moved.shape[d], -1)
        if not bool((rows == rows[:, :1]).all()):
            return None
        index = rows[:, 0].numpy()
        if len(index) != x.shape[d] or not np.array_equal(index, np.arange(x.shape[d])):
            if differs is not None:
                return None
            differs = (d, index)
    return differs


def moves(node: fx.Node) -> bool:
    """Whether an operator moves elements, and adds none."""
    name = base_name(node)
    return name in (*MOVES, *SPLITS) and name not in ("pad", "constant_pad_nd", "tril", "triu")


def stand_in(node: fx.Node) -> Any:
    """For an operand of which only the shape matters."""
    value = node.meta["val"]
    return torch.zeros(tuple(value.shape)) if isinstance(value, Tensor) else value


def run(target: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
    """An operator on index numbers; a view of them may need a copy, which changes nothing."""
    x = x.contiguous()
    if target is aten.im2col.default:  # which knows no integers
        x = x.double()
    return target(x, *args, **kwargs)


def many(result: Any) -> list[Tensor]:
    """One result or several, as a list."""
    return list(result) if isinstance(result, (list, tuple)) else [result]
