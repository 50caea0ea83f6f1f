"""What an operator without a rule of its own is made of, by torch's own account."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from prunus._common.torch_internals import origin, pytree, schema


class Expansion(NamedTuple):
    """A composite operator as a graph of simpler ones, by the shapes of the example.

    Attributes:
        graph: of the simpler ones.
        operands: the nodes that its inputs stand for.
    """

    graph: fx.Graph
    operands: list[fx.Node]

    @property
    def results(self) -> Any:
        """The node of what the operator gives, or several."""
        return self.graph.output_node().args[0]


def expanded(node: fx.Node) -> Expansion | None:
    """What torch makes of an operator.

    Returns:
        ``None`` for an operator that torch does not take apart, for one that writes to what it is
        given, and for one that makes tensors of its own.

    >>> from prunus.graph.trace import trace
    >>> class Product(torch.nn.Module):
    ...     def forward(self, x, y):
    ...         return torch.linalg.vecdot(x, y)
    >>> graph = trace(Product(), (torch.ones(2, 3), torch.ones(2, 3))).module.graph
    >>> inside = expanded(next(n for n in graph.nodes if n.op == "call_function"))
    >>> [n.name for n in inside.graph.nodes if n.op == "call_function"]
    ['mul', 'sum_1']
    """
    target: Any = node.target
    known = schema(target)
    if known is None or known.is_mutable:
        return None
    operands: list[fx.Node] = []
    tensors: list[Tensor] = []

    def place(argument: Any) -> Any:
        value = argument.meta.get("val") if isinstance(argument, fx.Node) else argument
        if not isinstance(value, Tensor):
            return value
        operands.append(argument)
        tensors.append(torch.empty(tuple(value.shape), dtype=value.dtype, device="meta"))
        return _Place(len(tensors) - 1)

    args, kwargs = pytree.tree_map(place, (tuple(node.args), dict(node.kwargs)))

    def run(*given: Tensor) -> Any:
        args_, kwargs_ = pytree.tree_map_only(_Place, lambda p: given[p.number], (args, kwargs))
        return target(*args_, **kwargs_)

    own = _decompositions().get(target)
    try:
        with torch.no_grad():
            inside = make_fx(run, {} if own is None else {target: own})(*tensors)
    except Exception:  # of torch's code: what asks for numbers has none on the meta device
        return None
    if any(n.op == "get_attr" or n.target is target for n in inside.graph.nodes):
        return None
    devices = [v.device for n in operands if (v := n.meta.get("val")) is not None and not v.is_meta]
    for inner in inside.graph.nodes:
        inner.meta |= origin(node)
        if "device" in inner.kwargs and devices:
            inner.update_kwarg("device", devices[0])
    return Expansion(inside.graph, operands)


class _Place:
    """Where a tensor goes among an operator's arguments."""

    def __init__(self, number: int) -> None:
        self.number = number


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    return dict(torch.export.default_decompositions().items())
