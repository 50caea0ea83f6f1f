"""Parameters that a model's code changes while it runs.

Work of the first pass alone, such as weights that are rescaled once for inference, is done anew
in each pass of a graph, on values of its own: the parameters stay. What every pass changes, such
as a teacher that follows by a moving average, a graph changes too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus._common.inputs import Inputs, map_tensors
from prunus._common.modules import detached_copy
from prunus._common.rng import preserve_rng
from prunus._common.torch_internals import OpOverload, TorchDispatchMode
from prunus.graph.call import some, written_arguments


class PutBack(TorchDispatchMode):
    """A model runs, and what it wrote to its parameters is undone behind that.

    Args:
        values: the parameters.

    >>> weight = torch.zeros(2)
    >>> with PutBack([weight]):
    ...     weight.add_(1)
    tensor([1., 1.])
    >>> weight
    tensor([0., 0.])
    """

    def __init__(self, values: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._values = {place: t for t in values if (place := _memory(t))}
        self._before: dict[int, Tensor] = {}

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for place, before in self._before.items():
            self._values[place].data.copy_(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func, args)
        return func(*args, **(kwargs or {}))

    def note(self, operator: Any, args: Sequence[Any]) -> None:
        """Keep the values that an operator is about to overwrite."""
        for i in written_arguments(operator):
            place = _memory(args[i]) if i < len(args) else 0
            if place in self._values and place not in self._before:
                self._before[place] = self._values[place].detach().clone()


def _memory(value: Any) -> int:
    """Where a tensor's values lie; 0 for none."""
    held = isinstance(value, Tensor) and not value.is_meta and value.layout is torch.strided
    try:
        return int(value.untyped_storage().data_ptr()) if held else 0
    except (RuntimeError, NotImplementedError):  # a tensor that makes its values when read
        return 0


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
    for node, parameter in found:
        (_in_place if str(parameter.target) in again else _apart)(node, parameter)
    module.recompile()
    once = dict.fromkeys(str(p.target) for _, p in found if str(p.target) not in again)
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
            args, kwargs = map_tensors(Tensor.clone, inputs)
            twin(*args, **kwargs)
    return {name for name, p in named.items() if p._version != before[name]}


def _in_place(node: fx.Node, parameter: fx.Node) -> None:
    """The same memory, without autograd, which lets no leaf be written to."""
    with node.graph.inserting_before(node):
        alias = node.graph.call_function(torch.ops.aten.detach.default, (parameter,))
    alias.meta = dict(parameter.meta)
    node.args = (alias, *node.args[1:])


def _apart(node: fx.Node, parameter: fx.Node) -> None:
    """A value of its own, which is read from there on."""
    with node.graph.inserting_before(node):
        own = node.graph.call_function(torch.ops.aten.clone.default, (parameter,))
    own.meta = dict(parameter.meta)
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    for same in [n for n in node.graph.nodes if (n.op, n.target) == ("get_attr", parameter.target)]:
        same.replace_all_uses_with(own, lambda user: order[user] >= order[node])
