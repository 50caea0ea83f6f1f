"""A graph with its tensors, and the modules that its operators were called in."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from prunus._common.former_module import FormerModule
from prunus._common.modules import Named, put_attribute
from prunus.errors import InputError

Stack = list[tuple[str, tuple[str, str]]]
"""The modules entered and not left: key and value of export's nn_module_stack."""


def assemble(graph: fx.Graph, tensors: Iterable[Named]) -> fx.GraphModule:
    """A graph module whose attributes are these tensors: parameters as such, others as buffers.

    Raises:
        InputError: for a name that a graph module cannot hold.

    >>> graph = fx.Graph()
    >>> _ = graph.output(graph.get_attr("a.b"))
    >>> assemble(graph, [("a.b", torch.ones(2), True)])()
    tensor([1., 1.])
    """
    module = fx.GraphModule(nn.Module(), fx.Graph())
    for name, tensor, persistent in tensors:
        try:
            put_attribute(module, name, tensor, persistent=persistent)
        except (KeyError, AttributeError) as error:
            raise InputError(f"a graph cannot hold a tensor '{name}': {error.args[0]}") from error
    module.graph = graph
    return module.eval()


@contextlib.contextmanager
def modules_entered(model: nn.Module) -> Iterator[Stack]:
    """The stack of modules whose forward runs, kept up to date by hooks."""
    stack: Stack = []
    calls: Counter[str] = Counter()

    def enter(name: str, module: nn.Module, _: Any) -> None:
        key = f"L__self__{name}" + (f"@{calls[name]}" if calls[name] else "")
        stack.append((key, (name, f"{type(module).__module__}.{type(module).__qualname__}")))
        calls[name] += 1

    def leave(*_: Any) -> None:
        stack.pop()

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if not isinstance(module, (torch.jit.ScriptModule, FormerModule)):  # takes no hooks
                first = module.register_forward_pre_hook(partial(enter, name), prepend=True)
                last = module.register_forward_hook(leave, always_call=True)
                hooks.callback(first.remove)
                hooks.callback(last.remove)
        yield stack
