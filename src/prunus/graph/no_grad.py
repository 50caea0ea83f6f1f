"""Where a model's code is under ``no_grad``, the graph of it stops gradients too.

Operators know nothing of ``with torch.no_grad():``. They are marked while a pass is traced, and
what they give to code that learns is detached.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

NO_GRAD = "no_grad"
"""Key of a node's ``meta``: whether its operator ran under ``no_grad``."""


def stop_gradients(module: fx.GraphModule) -> None:
    """Detach what operators under ``no_grad`` give to others, where a gradient would flow.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> x.meta["val"] = torch.ones(2)
    >>> twice = graph.call_function(torch.ops.aten.mul.Tensor, (x, 2))
    >>> twice.meta.update(val=torch.ones(2), no_grad=True)
    >>> _ = graph.output(graph.call_function(torch.ops.aten.add.Tensor, (twice, x)))
    >>> module = fx.GraphModule(nn.Module(), graph)
    >>> stop_gradients(module)
    >>> [str(n.target) for n in graph.nodes if n.op == "call_function"]
    ['aten.mul.Tensor', 'aten.detach.default', 'aten.add.Tensor']
    """
    learning: set[fx.Node] = set()
    changed = False
    for node in list(module.graph.nodes):
        if not _learns(module, node, learning):
            continue
        learning.add(node)  # for readers under no_grad too, whose own answers are detached
        readers = [user for user in node.users if not user.meta.get(NO_GRAD)]
        if node.meta.get(NO_GRAD) and readers and _is_real(node.meta.get("val")):
            changed = True
            with module.graph.inserting_after(node):
                stopped = module.graph.call_function(torch.ops.aten.detach.default, (node,))
            stopped.meta = {k: v for k, v in node.meta.items() if k != NO_GRAD}
            for reader in readers:
                reader.replace_input_with(node, stopped)
    if changed:
        module.recompile()


def _learns(module: nn.Module, node: fx.Node, learning: set[fx.Node]) -> bool:
    """Whether autograd would follow a node: what a caller gives may come from what learns."""
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(module)
        return isinstance(value, Tensor) and value.requires_grad
    if node.op == "placeholder":
        return _is_real(node.meta.get("val"))
    return not learning.isdisjoint(node.all_input_nodes)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
