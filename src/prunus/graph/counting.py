"""Multiply–accumulates of every operator as products of dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from prunus.graph.analysis import Analysis
from prunus.graph.call import base_name, named_arguments
from prunus.graph.labels import Dim, Fixed, Value
from prunus.graph.routed import shared_out
from prunus.graph.rules.contraction import GROUPED, spelled_out
from prunus.graph.rules.recurrent import GATES
from prunus.graph.steps import sizes_by_values


@dataclass(frozen=True)
class Term:
    """``factor · Π size of dims``.

    Attributes:
        factor: whatever does not change.
        dims: labels, or fixed dimensions, with their sizes.
    """

    factor: float
    dims: tuple[tuple[Dim, int], ...]


def macs_terms(analysis: Analysis) -> list[Term]:
    """A term for each product in the model; elementwise work counts nothing, as elsewhere.

    Those of experts that all items go through have a factor for how many of them are left.
    """
    analysis = replace(analysis, known={**analysis.known, **_by_values(analysis)})
    terms = {
        node: found
        for node in analysis.traced.module.graph.nodes
        if (found := list(_terms(analysis, node)))
    }
    sums = {
        node: sum(t.factor * math.prod(size for _, size in t.dims) for t in found)
        for node, found in terms.items()
    }
    for node, (dim, count) in shared_out(analysis, sums).items():
        terms[node] = [Term(t.factor / count, (*t.dims, (dim, count))) for t in terms[node]]
    return [term for found in terms.values() for term in found]


def _by_values(analysis: Analysis) -> dict[fx.Node, Value]:
    """Values whose sizes depend on values, with those that they have."""
    found = {}
    for node, shape in sizes_by_values(analysis.traced).items():
        value = analysis.known.get(node)
        if isinstance(value, Value) and len(value.shape) == len(shape):
            dims = tuple(
                dim if size == old else Fixed("depends on values")
                for dim, size, old in zip(value.dims, shape, value.shape, strict=True)
            )
            found[node] = replace(value, dims=dims, shape=shape)
    return found


def _terms(analysis: Analysis, node: fx.Node) -> Iterator[Term]:
    if node.op != "call_function":
        return
    if node in analysis.inside:
        for inner in analysis.inside[node].graph.nodes:
            yield from _terms(analysis, inner)
    name, args = base_name(node), named_arguments(node)

    def value(key: str) -> Value | None:
        found = analysis.known.get(args[key]) if isinstance(args.get(key), fx.Node) else None
        return found if isinstance(found, Value) else None

    out = analysis.known.get(node)
    if name == "linear":
        x, w = value("input"), value("weight")
        if x is not None and w is not None:
            yield _term(1, [*_pairs(x)[:-1], *_pairs(w)])
    elif name.startswith("conv") or name == "_convolution":
        x, w = value("input"), value("weight")
        if x is not None and w is not None and isinstance(out, Value):
            turned = "transpose" in name or bool(args.get("transposed"))
            space = (x if turned else out).shape
            yield _term(space[0] * math.prod(space[2:]), _pairs(w))
    elif name in ("matmul", "mm", "bmm", "mv", "addmm", "baddbmm") and isinstance(out, Value):
        own = ("mat1", "batch1") if name in ("addmm", "baddbmm") else ("self", "input")
        x = value(own[0]) or value(own[1])
        if x is not None:
            yield _term(1, [*_pairs(out), _pairs(x)[-1]])
    elif name in GROUPED and isinstance(out, Value):
        x, w = value("input") or value("self"), value("weight") or value("mat2")
        if x is not None and w is not None:  # each row meets the matrix of its group
            yield _term(1, [*_pairs(x)[:-1], *_pairs(w)[-2:]])
    elif name == "einsum":
        yield from _einsum(analysis, args)
    elif name.startswith(("scaled_dot_product", "_scaled_dot_product")):
        q, k, v = value("query"), value("key"), value("value")
        if q is not None and k is not None and v is not None:
            rows = [*_pairs(q)[:-1], _pairs(k)[-2]]
            yield _term(1, [*rows, _pairs(q)[-1]])
            yield _term(1, [*rows, _pairs(v)[-1]])
    elif name in GATES:
        yield from _recurrent(analysis, node, args)


def _recurrent(analysis: Analysis, node: fx.Node, args: Any) -> Iterator[Term]:
    data = args["data"] if "data" in args else args["input"]
    x = analysis.known.get(data)
    assert isinstance(x, Value)
    for weight in args["params"]:
        w = analysis.known.get(weight)
        if isinstance(w, Value) and len(w.shape) == 2:
            yield _term(math.prod(x.shape[:-1]), _pairs(w))


def _einsum(analysis: Analysis, args: Any) -> Iterator[Term]:
    values = [analysis.known.get(node) for node in args["tensors"]]
    if not all(isinstance(v, Value) for v in values):
        return
    left, _ = spelled_out(
        str(args["equation"]), [len(v.shape) for v in values if isinstance(v, Value)]
    )
    letters: dict[str, tuple[Dim, int]] = {}
    for names, value in zip(left.split(","), values, strict=True):
        if isinstance(value, Value):
            for letter, pair in zip(names, _pairs(value), strict=True):
                if letters.get(letter, (None, 1))[1] == 1:
                    letters[letter] = pair
    if len(args["tensors"]) > 1:
        yield _term(1, list(letters.values()))


def _pairs(value: Value) -> list[tuple[Dim, int]]:
    return list(zip(value.dims, value.shape, strict=True))


def _term(factor: float, dims: Sequence[tuple[Dim, int]]) -> Term:
    return Term(float(factor), tuple(dims))
