"""Operators that count every index, over fewer of them: what went was zero, and is counted on.

A mean over d of D indices is d/D of what it was. Any other statistic, and what a norm makes of it,
is that of the tensor with D − d zeros at its end; what a norm makes of those is cut off again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from prunus._common.torch_internals import origin, schema
from prunus.compaction.cut import IndexCut
from prunus.graph.call import base_name, named_arguments
from prunus.graph.flags import BATCH_NORM
from prunus.graph.labels import Value
from prunus.graph.rules.norms import LAST_DIMS, standardizes
from prunus.graph.rules.reductions import COUNTS, SUMS, dimensions

aten = torch.ops.aten

_SINGLE = {
    "native_layer_norm": aten.layer_norm.default,
    "_fused_rms_norm": aten.rms_norm.default,
}
"""Of operators that give their statistics, too, those that give the result alone."""


def counts_on(cut: IndexCut, node: fx.Node) -> dict[int, int]:
    """Dimensions that an operator counts and that lost indices, each with how many are gone."""
    name = base_name(node)
    first = node.args[0] if node.args else None
    x = cut.analysis.known.get(first) if isinstance(first, fx.Node) else None
    if not isinstance(x, Value):
        return {}
    over, rank, named = [], len(x.shape), named_arguments(node)
    if name in LAST_DIMS:
        over = [rank - 1]
    elif name in (*COUNTS, *SUMS):
        over = dimensions(named.get("dim"), rank)
        over = over if name in COUNTS else [d for d in over if not x.zero[d]]
    elif name == BATCH_NORM and standardizes(name, named):
        over = [d for d in range(rank) if d != 1]
    elif name == "group_norm" and named["num_groups"] == 1:
        over = [1]
    gone = {d: x.shape[d] - cut.size(x.dims[d], x.shape[d]) for d in over}
    return {d: number for d, number in gone.items() if number}


def counting(
    graph: fx.Graph, cut: IndexCut, node: fx.Node, new: Mapping[fx.Node, fx.Node]
) -> fx.Node:
    """The operator over what is left, as the masked model computes it.

    Args:
        graph: that is written.
        cut: what goes.
        node: of the old graph, one of which :func:`counts_on` says something.
        new: the nodes of the new graph by those of the old one.
    """
    gone, named = counts_on(cut, node), named_arguments(node)
    first = next(iter(named))
    source = named[first]
    x = cut.value(source)
    named = dict(fx.node.map_arg(named, lambda n: new[n]))
    write = _Writer(graph, node, cut, new)
    if base_name(node) == "mean" and all(x.zero[d] for d in gone):
        made = write(node.target, *arranged(node.target, named))
        made.meta["val"] = node.meta["val"]
        return write(
            aten.mul.Tensor, (made, math.prod(1 - n / x.shape[d] for d, n in gone.items()))
        )
    named[first] = write.whole(source, gone)
    if base_name(node) in (*COUNTS, *SUMS):
        return write(node.target, *arranged(node.target, named))
    ((d, number),) = gone.items()
    for key in ("weight", "bias"):
        if named.get(key) is not None and base_name(node) != BATCH_NORM:
            named[key] = write.padded(named[key], {0: number})
    target = _SINGLE.get(base_name(node), node.target)
    normed = write(target, *arranged(target, named))
    normed.meta["val"] = named[first].meta["val"]
    return write(aten.slice.Tensor, (normed, d, 0, x.shape[d] - number))


@dataclass(frozen=True)
class _Writer:
    """Writes operators in place of another one."""

    graph: fx.Graph
    node: fx.Node
    cut: IndexCut
    new: Mapping[fx.Node, fx.Node]

    def __call__(self, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
        made = self.graph.call_function(target, args, kwargs)
        made.meta = origin(self.node)
        return made

    def whole(self, source: fx.Node, more: Mapping[int, int]) -> fx.Node:
        """A value with what the masked model has at so many removed indices of each dimension.

        Zeros, or what the operators that made it make of zeros.
        """
        value = self.cut.value(source)
        if all(value.zero[d] for d in more):
            return self.padded(self.new[source], more)

        def operand(argument: fx.Node) -> fx.Node:
            known = self.cut.analysis.known.get(argument)
            if not isinstance(known, Value):
                return self.new[argument]
            behind = len(value.shape) - len(known.shape)
            own = {
                d - behind: number
                for d, number in more.items()
                if d >= behind and known.shape[d - behind] == value.shape[d] > 1
            }
            return self.whole(argument, own) if own else self.new[argument]

        made = self(source.target, *fx.node.map_arg((source.args, source.kwargs), operand))
        made.meta["val"] = source.meta["val"]
        return made

    def padded(self, source: fx.Node, more: Mapping[int, int]) -> fx.Node:
        """With so many zeros at the end of each dimension."""
        value = source.meta["val"]
        pad = [part for d in reversed(range(value.dim())) for part in (0, more.get(d, 0))]
        made = self(aten.constant_pad_nd.default, (source, pad, 0.0))
        made.meta["val"] = value.new_empty([n + more.get(d, 0) for d, n in enumerate(value.shape)])
        return made


def arranged(target: Any, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as the operator's schema wants them."""
    arguments = schema(target).arguments
    args = tuple(values.get(a.name, a.default_value) for a in arguments if not a.kwarg_only)
    kwargs = {a.name: values[a.name] for a in arguments if a.kwarg_only and a.name in values}
    return args, kwargs
