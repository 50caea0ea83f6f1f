"""What data decided while a pass was recorded: its graph refuses data that decide otherwise.

A number that leaves torch, or a size that depends on values, may change which operators run. The
graph of one pass checks that each is as it was. Where a second pass on other data shows that a
size changes no operator, it may be any but 0.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from prunus._common.inputs import Inputs
from prunus._common.nested import map_tensors
from prunus._common.torch_internals import ASSERT_SCALAR, pytree

aten = torch.ops.aten

DECIDED = "decided by data: "
"""How the message of a check begins; what follows is for users."""

_NOT_ZERO = ("and is another now", "and is 0 now")
_CLOSE = 1e-5  # of a real number: the same up to rounding


def decided(graph: fx.Graph) -> bool:
    """Whether data decide if a graph holds."""
    asserts = (n for n in graph.nodes if n.target is ASSERT_SCALAR)
    return any(str(n.args[1]).startswith(DECIDED) for n in asserts)


@dataclass(frozen=True)
class Decision:
    """A check in a graph.

    Attributes:
        nodes: in order; the ones that assert are among them.
        value: what the recorded pass had.
        some: a size that is not 0; the nodes that compare it.
    """

    nodes: tuple[fx.Node, ...]
    value: Any
    some: bool = False


@dataclass
class Decisions:
    """Checks as they are written into a graph."""

    graph: fx.Graph
    found: list[Decision] = field(default_factory=list)

    def number(self, node: fx.Node, value: Any, what: str) -> None:
        """A number or a boolean stays what it is, real ones up to rounding.

        Args:
            node: the operator that gives it.
            value: what it gave.
            what: for the message: what it is.
        """
        call = self.graph.call_function
        if isinstance(value, float) and math.isnan(value):
            conditions = [[call(operator.ne, (node, node))]]
        elif isinstance(value, float) and math.isfinite(value):
            less = call(operator.sub, (node, value))
            less.meta["val"] = 0.0
            near = _CLOSE * max(abs(value), _CLOSE)
            conditions = [[less, call(operator.le, (less, near))]]
            conditions.append([call(operator.ge, (less, -near))])
        else:
            conditions = [[call(operator.eq, (node, value))]]
        text = f"{DECIDED}{what} was {value!r} when the model was traced, and is another now"
        made = [*conditions[0], *(n for more in conditions[1:] for n in more)]
        made += [call(ASSERT_SCALAR, (c[-1], text)) for c in conditions]
        self._note(made, value)

    def values(self, node: fx.Node, kept: fx.Node, value: Tensor, what: str) -> None:
        """All values of a tensor stay what they are; ``kept`` is the constant that holds them."""
        call = self.graph.call_function
        same = call(aten.equal.default, (node, kept))
        text = f"{DECIDED}{what} had other values when the model was traced"
        made = [same, call(operator.eq, (same, True))]
        self._note([*made, call(ASSERT_SCALAR, (made[-1], text))], value)

    def size(self, node: fx.Node, dim: int, size: int, what: str) -> None:
        """A size that depends on values stays what it is."""
        made = self.graph.call_function(aten.sym_size.int, (node, dim))
        made.meta["val"] = size
        self.number(made, size, what)
        self.found[-1] = replace(self.found[-1], some=size > 0)

    def open(self, decisions: Sequence[Decision]) -> None:
        """Let sizes be any but 0."""
        for one in decisions:
            compared, asserted = one.nodes
            compared.target, compared.args = operator.ge, (compared.args[0], 1)
            asserted.args = (compared, str(asserted.args[1]).replace(*_NOT_ZERO))
            self.found[self.found.index(one)] = replace(one, some=False)

    def _note(self, nodes: Iterable[fx.Node], value: Any) -> None:
        for node in nodes:
            compares = node.target not in (operator.sub, ASSERT_SCALAR)
            node.meta.setdefault("val", True if compares else None)
        self.found.append(Decision(tuple(nodes), value))


def counts_alone(first: Decisions, second: Decisions, constants: bool) -> list[Decision]:
    """The sizes that are others in a second pass, whose operators are the same all the same.

    No number that left torch is among them: ``if x.sum() > 0`` may fall alike twice by chance.

    Args:
        first: of the pass that is kept.
        second: of a pass on other data.
        constants: whether the constants of both are equal.
    """
    same = constants and len(first.found) == len(second.found) and _form(first) == _form(second)
    pairs = zip(first.found, second.found, strict=False)
    return [a for a, b in pairs if a.some and b.value and a.value != b.value] if same else []


def _form(decisions: Decisions) -> list[Any]:
    """The operators of a graph and their arguments, less the checks."""
    checks = {node for one in decisions.found for node in one.nodes}
    place = {n: i for i, n in enumerate(n for n in decisions.graph.nodes if n not in checks)}

    def one(argument: Any) -> Any:
        return place[argument] if isinstance(argument, fx.Node) else repr(argument)

    found = []
    for node in place:
        leaves, form = pytree.tree_flatten((node.args, node.kwargs))
        found.append((node.op, str(node.target), [one(leaf) for leaf in leaves], repr(form)))
    return found


def other_data(inputs: Inputs) -> Inputs:
    """Inputs of the same form with other values: real ones drawn anew, others from theirs."""

    def one(tensor: Tensor) -> Tensor:
        if tensor.is_meta or tensor.layout is not torch.strided:
            return tensor
        if tensor.is_floating_point() or tensor.is_complex():
            return torch.randn_like(tensor)
        n = tensor.numel()
        return tensor.reshape(-1)[torch.randint(n, (n,))].reshape(tensor.shape) if n else tensor

    made: Inputs = map_tensors(one, inputs)
    return made
