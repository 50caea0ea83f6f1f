"""A traced model operator by operator: every value, and the first that differs from another's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from prunus._common.inputs import plain
from prunus._common.torch_internals import pytree
from prunus.compaction.cut import IndexCut, take
from prunus.compaction.rewriting.rewrite import Rewritten
from prunus.compaction.verifying.values import State
from prunus.compaction.verifying.verify import FLOAT64, Double, Gate, Still, difference, held
from prunus.graph.call import describe
from prunus.graph.labels import Value


def first_difference(
    cut: IndexCut,
    rewritten: Rewritten,
    states: tuple[State, State],
    inputs: tuple[Any, Any],
    gate: Gate = FLOAT64,
) -> str | None:
    """What :func:`first_differing` finds, for people."""
    found = first_differing(cut, rewritten, states, inputs, gate)
    return None if found is None else describe(found)


def first_differing(
    cut: IndexCut,
    rewritten: Rewritten,
    states: tuple[State, State],
    inputs: tuple[Any, Any],
    gate: Gate = FLOAT64,
) -> fx.Node | None:
    """The first operator whose value differs between the masked and the smaller graph.

    Both run side by side, and a value is let go behind the last operator that reads it.

    Args:
        cut: what was removed.
        rewritten: the smaller graph.
        states: values of the masked and of the compact model.
        inputs: positional and keyword arguments.
        gate: how values are compared.
    """
    before = _Steps(cut.analysis.traced.module, inputs, states[0]).steps()
    after = _Steps(rewritten.module, inputs, states[1]).steps()
    with torch.no_grad(), Still(), Double() if gate.wide else contextlib.nullcontext():
        for node, value in before:
            twin = rewritten.nodes[node]
            found = next((v for n, v in after if n is twin), None)
            known = cut.analysis.known.get(node)
            if not isinstance(value, Tensor) or not isinstance(known, Value):
                continue
            if not isinstance(found, Tensor):
                return node
            expected = take(held(value), cut.left(known))
            if difference([expected], [held(found)])[0] > gate.tolerance:
                return node
    return None


def every_value(
    module: fx.GraphModule, inputs: tuple[Any, Any], state: State | None = None
) -> dict[fx.Node, Any]:
    """What each operator of a traced model gives, up to the first one that fails.

    Args:
        module: traced.
        inputs: positional and keyword arguments.
        state: values in place of the module's own.
    """
    return dict(_Steps(module, inputs, state).steps())


class _Steps(fx.Interpreter):
    """A traced model, operator by operator."""

    def __init__(self, module: fx.GraphModule, inputs: tuple[Any, Any], state: State | None):
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
