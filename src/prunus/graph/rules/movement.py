"""Operators that only move elements: run on index numbers instead of rules of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from prunus._common.torch_internals import pytree
from prunus.graph.apart import EXCHANGES, exchanged, reshaped
from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Fixed, Value
from prunus.graph.movement import Move, Relation, move_labels, relate

SHAPED = ("view", "reshape", "_unsafe_view", "reshape_as", "view_as")
EXPANDED = ("expand", "expand_as", "broadcast_to")
MOVES = (
    *SHAPED, *EXPANDED, "permute", "transpose", "t", "unsqueeze", "squeeze", "flatten",
    "unflatten", "select", "slice", "narrow", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "repeat", "repeat_interleave", "roll", "pad", "constant_pad_nd", "movedim",
    "moveaxis", "unfold", "im2col", "swapaxes", "swapdims", "numpy_T", "mT", "mH", "matrix_H",
    "adjoint", "tile", "fft_fftshift", "fft_ifftshift", "rot90", "diagonal",
    "_reshape_alias", "squeeze_copy", "flip",
)  # fmt: skip
SPLITS = ("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "unsafe_split",
          "unsafe_chunk", "unsafe_split_with_sizes")  # fmt: skip

_CUTS = ("slice", "narrow", *SPLITS)


def move(call: Call) -> Found:
    """One tensor in, one out."""
    node = call.node.args[0]
    x = call.of(node)
    if x is None:
        return None
    return _moved(call, x, as_move(call), call.out)


def split(call: Call) -> Found:
    """One tensor in, several out."""
    x = call.of(call.node.args[0])
    if x is None:
        return None
    whole = as_move(call)

    def part(i: int) -> Move:
        return lambda t: whole(t)[i]

    return [_moved(call, x, part(i), t, i) for i, t in enumerate(call.out)]


def as_move(call: Call) -> Callable[[Tensor], Any]:
    """The operator as a function of its first operand; places that it fills become −1."""
    node = call.node
    target: Any = node.target
    shape = None if isinstance(call.out, (tuple, list)) else tuple(int(n) for n in call.out.shape)
    if call.name in SHAPED:
        assert shape is not None
        return lambda t: t.reshape(shape)
    if call.name in EXPANDED:
        assert shape is not None
        return lambda t: t.expand(shape)
    rest, kwargs = pytree.tree_map(_stand_in, (tuple(node.args[1:]), dict(node.kwargs)))
    if call.name == "constant_pad_nd":
        return lambda t: target(t.contiguous(), rest[0], -1)
    if call.name == "pad":
        if call["mode"] not in (None, "constant"):
            return lambda t: target(t.double(), *rest, **kwargs)
        return lambda t: target(t.contiguous(), rest[0], "constant", -1)
    if call.name == "im2col":
        return lambda t: target(t.double() + 1, *rest, **kwargs).long() - 1  # it fills with zeros
    return lambda t: target(t, *rest, **kwargs)


def _stand_in(argument: Any) -> Any:
    if not isinstance(argument, fx.Node):
        return argument
    value = argument.meta["val"]  # an open size is a number here
    return (
        torch.zeros(tuple(value.shape), dtype=value.dtype) if isinstance(value, Tensor) else value
    )


def _moved(call: Call, x: Value, function: Move, out: Tensor, part: int = 0) -> Value:
    shape = tuple(int(n) for n in out.shape)
    if x.all_fixed() or 0 in shape:
        why = next((d.why for d in x.dims if isinstance(d, Fixed)), "of size 1")
        dims: list[Dim] = [Fixed(why) for _ in shape]
        if call.name in EXPANDED:  # what repeats one value is free, whatever that value is
            for e, size in enumerate(shape):
                d = e - len(shape) + len(x.shape)
                if size > 1 and (d < 0 or x.shape[d] == 1):
                    dims[e] = call.labels.fresh(size)
        if call.name in _CUTS and len(shape) == len(x.shape):  # nothing is left, of all the others
            same = [n == m for n, m in zip(shape, x.shape, strict=True)]
            dims = [x.dims[e] if same[e] else dims[e] for e in range(len(shape))]
        return call.result(dims, [False] * len(shape), out)
    free = tuple(d for d, dim in enumerate(x.dims) if not isinstance(dim, Fixed))
    literals = () if call.name in (*SHAPED, *EXPANDED) else (call.node.args[1:], call.node.kwargs)
    key = (call.name, part, str(literals), x.shape, free, shape)
    found = call.memo.relations.get(key)
    if found is None:
        found = call.memo.relations[key] = _related(call, x, function, free, shape)
    relation = found
    moved = move_labels(call.labels, relation, x.dims, shape, call.where)
    return call.result(moved, _zero(call, x, relation.flows, len(shape)), out)


def _related(
    call: Call, x: Value, function: Move, free: tuple[int, ...], shape: tuple[int, ...]
) -> Relation:
    """What the operator does to dimensions, the cheapest way."""
    if call.name in (*SHAPED, "flatten", "unflatten", "_reshape_alias"):
        return reshaped(x.shape, shape, free)
    if call.name in EXCHANGES or (call.name == "roll" and call["dims"]):
        return exchanged(function, x.shape, free)
    return relate(function, x.shape, free)[0]


def _zero(call: Call, x: Value, flows: Any, rank: int) -> list[bool]:
    """A moved index is zero where every index that it comes from is; what is filled must be 0."""
    if call.name in ("pad", "constant_pad_nd") and (call["value"] or 0) != 0:
        return [False] * rank
    zero = []
    for e in range(rank):
        sources = [d for d, to in flows if to == e]
        zero.append(bool(sources) and all(x.zero[d] for d in sources))
    return zero


def diagonal(call: Call) -> Found:
    """Entry i stands in one row and one column, which go together; what is beside it stays."""
    x = call.value("self")
    if x is None:
        return None
    rank, offset = len(x.dims), int(call["offset"])
    places = [
        (int(call["dim1"]) % rank, max(-offset, 0)),
        (int(call["dim2"]) % rank, max(offset, 0)),
    ]
    size, why = int(call.out.shape[-1]), f"{call.where}: beside the diagonal"
    parts: list[Dim] = []
    for d, first in places:
        dim = x.dims[d]
        if not isinstance(dim, Fixed):
            call.labels.pin(dim[:first], why)
            call.labels.pin(dim[first + size :], why)
            dim = dim[first : first + size]
        parts.append(dim)
    rest = [d for d in range(rank) if d not in (places[0][0], places[1][0])]
    zero = any(x.zero[d] for d, _ in places)
    dims = [*(x.dims[d] for d in rest), call.labels.join(*parts)]
    return call.result(dims, [*(x.zero[d] for d in rest), zero])


def diag_embed(call: Call) -> Found:
    """Entry i becomes row i and column i."""
    x = call.value("self")
    if x is None or int(call["offset"]):
        return None
    rank = call.out.dim()
    both = {int(call["dim1"]) % rank, int(call["dim2"]) % rank}
    rest = iter(zip(x.dims[:-1], x.zero[:-1], strict=True))
    pairs = [(x.dims[-1], x.zero[-1]) if d in both else next(rest) for d in range(rank)]
    return call.result([dim for dim, _ in pairs], [zero for _, zero in pairs])


def triangle(call: Call) -> Found:
    """What lies above or below a diagonal: the rows and columns are counted."""
    x = call.value("self")
    if x is None:
        return None
    why = f"{call.where}: rows and columns are counted"
    for dim in x.dims[-2:]:
        call.labels.pin(dim, why)
    return call.result([*x.dims[:-2], Fixed(why), Fixed(why)], [*x.zero[:-2], False, False])


def cat(call: Call) -> Found:
    """End to end along one dimension."""
    values = [call.of(n) for n in call["tensors"]]
    if any(v is None for v in values):
        return None
    same = [v for v in values if v is not None and len(v.shape) == call.out.dim()]
    known = [v for v in same if 0 not in v.shape]
    at = int(call["dim"] or 0) % call.out.dim()
    dims: list[Dim] = []
    for e in range(call.out.dim()):
        if e != at:
            dims.append(call.labels.join(*(v.dims[e] for v in same)))
        elif all(isinstance(v.dims[e], Fixed) for v in known):
            dims.append(known[0].dims[e])
        else:
            dims.append(np.concatenate([call.labels.array(v.dims[e], v.shape[e]) for v in known]))
    return call.result(dims, [all(v.zero[e] for v in known) for e in range(len(dims))])


def stack(call: Call) -> Found:
    """Side by side along a new dimension."""
    values = [v for n in call["tensors"] if (v := call.of(n)) is not None]
    if len(values) != len(call["tensors"]):
        return None
    at = int(call["dim"] or 0) % call.out.dim()
    rank = call.out.dim() - 1
    dims: list[Dim] = [call.labels.join(*(v.dims[e] for v in values)) for e in range(rank)]
    zero = [all(v.zero[e] for v in values) for e in range(rank)]
    dims.insert(at, Fixed(f"{call.where}: which of the stacked tensors"))
    zero.insert(at, False)
    return call.result(dims, zero)


RULES = (
    dict.fromkeys(MOVES, move)
    | dict.fromkeys(SPLITS, split)
    | {"cat": cat, "concat": cat, "concatenate": cat, "stack": stack}
    | {"diagonal": diagonal, "diagonal_copy": diagonal, "diag_embed": diag_embed}
    | dict.fromkeys(("tril", "triu"), triangle)
)
