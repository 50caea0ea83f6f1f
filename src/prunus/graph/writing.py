"""Parameters that a model's code changes while it runs.

Work of the first pass alone, such as weights that are rescaled once for inference, is done anew
in each pass of a graph, on values of its own: the parameters stay. What every pass changes, such
as a teacher that follows by a moving average, a graph changes too.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from prunus._common.inputs import Inputs
from prunus._common.modules import detached_copy
from prunus._common.nested import map_tensors, own_containers
from prunus._common.put_back import written_arguments
from prunus._common.rng import preserve_rng
from prunus._common.torch_internals import OpOverload
from prunus.graph.call import some

Written = list[tuple[fx.Node, fx.Node]]
"""Operators that write to a parameter, and the parameter."""


def without_writes(module: fx.GraphModule, model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Let a graph change only those of its parameters that each pass of the model changes.

    Args:
        module: the graph.
        model: which it was traced from; a copy of it runs.
        inputs: of the pass.

    Returns:
        What a user should know of it.
    """
    found = _written(module)
    if not found:
        return ()
    again = _written_again(model, inputs)
    once: dict[str, None] = {}
    while found:  # what wrote to the answer of another write, now writes to the parameter
        node, parameter = found[0]
        if str(parameter.target) in again:
            _in_place(node, parameter)
        else:
            _apart(node, parameter)
            once[str(parameter.target)] = None
        found = _written(module)
    module.recompile()
    if not once:
        return ()
    return (
        f"the first pass of the model changes {some(list(once))} for good; a graph of it does so "
        "for each call alone",
    )


def _written(module: fx.GraphModule) -> Written:
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return [
        (node, node.args[0])
        for node in module.graph.nodes
        if node.op == "call_function"
        and isinstance(node.target, OpOverload)
        and 0 in written_arguments(node.target)
        and isinstance(node.args[0], fx.Node)
        and node.args[0].op == "get_attr"
        and str(node.args[0].target) in parameters
    ]


def _written_again(model: nn.Module, inputs: Inputs) -> set[str]:
    """The parameters that a second pass changes too."""
    twin = detached_copy(model)
    named = dict(twin.named_parameters(remove_duplicate=False))
    before: dict[str, int] = {}
    with torch.no_grad(), preserve_rng():
        for _ in range(2):
            before = {name: p._version for name, p in named.items()}
            args, kwargs = own_containers(map_tensors(Tensor.clone, inputs))
            twin(*args, **kwargs)
    return {name for name, p in named.items() if p._version != before[name]}


def _in_place(node: fx.Node, parameter: fx.Node) -> None:
    """The same memory, without autograd, which lets no leaf be written to."""
    with node.graph.inserting_before(node):
        alias = node.graph.call_function(torch.ops.aten.detach.default, (parameter,))
    alias.meta = dict(parameter.meta)
    node.replace_all_uses_with(parameter)
    node.args = (alias, *node.args[1:])


def _apart(node: fx.Node, parameter: fx.Node) -> None:
    """A value of its own, which is read from there on."""
    with node.graph.inserting_before(node):
        own = node.graph.call_function(torch.ops.aten.clone.default, (parameter,))
    own.meta = dict(parameter.meta)
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    for same in [n for n in node.graph.nodes if (n.op, n.target) == ("get_attr", parameter.target)]:
        same.replace_all_uses_with(own, lambda user: order[user] >= order[node])
