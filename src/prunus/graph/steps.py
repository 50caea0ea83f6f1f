"""A traced model run operator by operator, and the sizes that depend on values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from prunus._common.inputs import Inputs
from prunus._common.nested import map_tensors, plain
from prunus._common.put_back import PutBack
from prunus._common.rng import preserve_rng, seed
from prunus._common.torch_internals import pytree
from prunus.graph.trace import BY_VALUES, Traced


def every_value(
    module: fx.GraphModule, inputs: Inputs, state: Mapping[str, Tensor] | None = None
) -> dict[fx.Node, Any]:
    """What each operator of a traced model gives, up to the first one that fails.

    Args:
        module: traced.
        inputs: positional and keyword arguments.
        state: values in place of the module's own.
    """
    return dict(Steps(module, inputs, state).steps())


def sizes_by_values(traced: Traced) -> dict[fx.Node, tuple[int, ...]]:
    """Shapes with sizes that depend on values (items that a router sends to an expert), as they
    are for the inputs of the trace; empty where it has none, or no values.

    >>> from prunus.graph.trace import trace
    >>> class Positive(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x[x > 0].relu()
    >>> found = sizes_by_values(trace(Positive(), torch.tensor([1.0, -1.0, 2.0, 4.0, 5.0])))
    >>> set(found.values())
    {(4,)}
    """
    graph = traced.module.graph
    depends = {node for node in graph.nodes if node.meta.get(BY_VALUES)}
    tensors = (*traced.module.parameters(), *traced.module.buffers())
    if not depends or any(t.is_meta for t in tensors):
        return {}
    found: dict[fx.Node, tuple[int, ...]] = {}
    with preserve_rng(), torch.no_grad(), PutBack(tensors):
        seed(0)
        for node, value in Steps(traced.module, map_tensors(Tensor.clone, traced.inputs)).steps():
            if node in depends and isinstance(value, Tensor):
                found[node] = tuple(value.shape)
    return found


class Steps(fx.Interpreter):
    """A traced model, operator by operator."""

    def __init__(
        self, module: fx.GraphModule, inputs: Inputs, state: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(module)
        self._state = {} if state is None else state
        flat = pytree.tree_leaves(plain(inputs))
        if len(flat) != sum(n.op == "placeholder" for n in module.graph.nodes):
            flat = [v for v in flat if v is not None]
        self.args_iter = iter(flat)

    def steps(self) -> Iterator[tuple[fx.Node, Any]]:
        """Each operator and its value, up to the first one that fails."""
        for node in self.graph.nodes:
            try:
                value = self.run_node(node)
            except Exception:  # of an operator on wrong shapes; the caller looks at what there is
                return
            given = node.op == "placeholder" and isinstance(value, Tensor)
            self.env[node] = value.clone() if given else value  # operators may write to it
            yield node, value
            for last in self.user_to_last_uses.get(node, []):
                del self.env[last]

    def fetch_attr(self, target: str) -> Any:
        return self._state[target] if target in self._state else super().fetch_attr(target)
