"""Where a model's code is under ``no_grad``, the graph of it stops gradients too.

Operators know nothing of ``with torch.no_grad():``. They are marked while a pass is traced, and
what they give to code that learns is detached. Those that write to a tensor write to its memory
alone: gradients flow to that tensor as if nothing had been written.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus._common.put_back import written_arguments
from prunus._common.torch_internals import OpOverload

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

    In place, memory changes and no gradient does:

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> own = graph.call_function(torch.ops.aten.clone.default, (x,))
    >>> twice = graph.call_function(torch.ops.aten.mul_.Tensor, (own, 2))
    >>> x.meta["val"] = own.meta["val"] = torch.ones(2)
    >>> twice.meta.update(val=torch.ones(2), no_grad=True)
    >>> _ = graph.output(graph.call_function(torch.ops.aten.mul.Tensor, (twice, 3)))
    >>> module = fx.GraphModule(nn.Module(), graph)
    >>> stop_gradients(module)
    >>> x = torch.ones(1, requires_grad=True)
    >>> answer = module(x)
    >>> answer.item(), torch.autograd.grad(answer, x)[0].item()
    (6.0, 3.0)
    """
    learning: set[fx.Node] = set()
    changed = False
    for node in list(module.graph.nodes):
        if not _learns(module, node, learning):
            continue
        learning.add(node)  # for readers under no_grad too, whose own answers are detached
        if node.meta.get(NO_GRAD) and _writes_first(node):
            changed = True
            _memory_alone(node)
            continue
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


def _writes_first(node: fx.Node) -> bool:
    """Whether an operator changes its first argument and returns it."""
    target = node.target
    return (
        isinstance(target, OpOverload)
        and str(target.overloadpacket).endswith("_")
        and 0 in written_arguments(target)
    )


def _memory_alone(node: fx.Node) -> None:
    """Write where autograd does not see it; who reads afterwards reads the tensor itself."""
    tensor = node.args[0]
    assert isinstance(tensor, fx.Node)
    node.replace_all_uses_with(tensor)
    with node.graph.inserting_before(node):
        alias = node.graph.call_function(torch.ops.aten.detach.default, (tensor,))
    alias.meta = {k: v for k, v in tensor.meta.items() if k != NO_GRAD}
    node.args = (alias, *node.args[1:])


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
