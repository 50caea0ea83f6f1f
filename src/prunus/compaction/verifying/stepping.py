"""The first operator of a traced model whose value differs from a smaller one's."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, fx

from prunus.compaction.cut import IndexCut, take
from prunus.compaction.rewriting.rewrite import Rewritten
from prunus.compaction.verifying.values import State
from prunus.compaction.verifying.verify import FLOAT64, Double, Gate, Still, difference, held
from prunus.graph.call import describe
from prunus.graph.labels import Value
from prunus.graph.steps import Steps


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
    before = Steps(cut.analysis.traced.module, inputs, states[0]).steps()
    after = Steps(rewritten.module, inputs, states[1]).steps()
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
