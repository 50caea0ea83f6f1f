"""One operator of a traced model, with what is known of its operands."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, fx

from prunus._common.torch_internals import module_paths, schema
from prunus.graph.labels import Dim, Dims, Fixed, Labels, Value
from prunus.graph.movement import Relation

Known: TypeAlias = "Value | Sequence[Value | None] | None"
"""A tensor, several of them, or something without labels."""

Found: TypeAlias = "Value | list[Value | None] | None"
"""What a rule gives; ``None``: it does not know this form of the operator."""


@dataclass
class Memo:
    """What movements of the same form were found to do; a model repeats them block by block.

    Attributes:
        relations: of movements.
        constants: tensors that the model's code wrote out.
    """

    relations: dict[Any, Relation] = field(default_factory=dict)
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """An operator and its arguments by their names in the operator's schema.

    Attributes:
        node: in the graph.
        args: by name, defaults filled in; nodes stand for tensors.
        known: labels of nodes.
        labels: where relations go.
        memo: shared by all calls of one analysis.
    """

    node: fx.Node
    args: Mapping[str, Any]
    known: Mapping[fx.Node, Known]
    labels: Labels
    memo: Memo

    @property
    def name(self) -> str:
        """The operator's name, without overload and in-place underscore."""
        return base_name(self.node)

    @property
    def where(self) -> str:
        """For reasons: the operator and the module that it belongs to."""
        return describe(self.node)

    @property
    def out(self) -> Any:
        """The result's tensor (or several), of which only shape and type matter."""
        return self.node.meta["val"]

    def __getitem__(self, key: str) -> Any:
        return self.args.get(key)

    def first(self, *keys: str) -> Any:
        """The first argument that is there under one of these names."""
        return next((self.args[k] for k in keys if self.args.get(k) is not None), None)

    def value(self, *keys: str) -> Value | None:
        """Labels of a tensor argument, under one of several names."""
        return self.of(self.first(*keys))

    def of(self, argument: Any) -> Value | None:
        """Labels of a node."""
        found = self.known.get(argument) if isinstance(argument, fx.Node) else None
        return found if isinstance(found, Value) else None

    def constant(self, argument: Any) -> Tensor | None:
        """The values of a tensor that the model's code wrote out."""
        node = written_out(argument)
        return None if node is None else self.memo.constants.get(node)

    def operands(self) -> list[Value]:
        """Every tensor that goes in."""
        return [v for n in self.node.all_input_nodes if (v := self.of(n)) is not None]

    def result(self, dims: Sequence[Dim], zero: Sequence[bool], out: Tensor | None = None) -> Value:
        """A value of the operator's result shape."""
        shape = tuple(int(n) for n in (self.out if out is None else out).shape)
        fixed = tuple(
            Fixed("of size 1") if n == 1 and not isinstance(d, Fixed) else d
            for d, n in zip(dims, shape, strict=True)
        )
        return Value(fixed, tuple(zero), shape)

    def fixed(self, why: str, out: Tensor | None = None) -> Value:
        """A result none of whose indices can go."""
        tensor = self.out if out is None else out
        dims: Dims = tuple(Fixed(why) for _ in tensor.shape)
        return self.result(dims, [False] * len(dims), tensor)

    def summed(self, *operands: tuple[Value, int], what: str) -> None:
        """Indices that are summed over fall together, and need a factor that is zero.

        Args:
            operands: values and the dimension of each, multiplied index by index.
            what: for the reason.
        """
        joined = self.labels.join(*(v.dims[d] for v, d in operands))
        if not any(v.zero[d] for v, d in operands):
            self.labels.pin(joined, f"{self.where}: {what} of values that a cut does not make zero")

    def counted(self, value: Value, d: int, why: str, *, made: bool = False) -> bool:
        """Whether indices may go although the operator counts every one: as zeros, counted on.

        Args:
            value: whose indices are counted.
            d: its dimension.
            why: for the reason.
            made: whether what other operators make of zeros can be counted as well.
        """
        dim = value.dims[d]
        known = value.known(d) if made else value.zero[d]
        if isinstance(dim, Fixed):
            return False
        if not self.labels.hidden:
            self.labels.pin(dim, why)
        elif not known:
            self.labels.pin(dim, f"{why}, and a cut does not make it zero")
        else:
            self.labels.counted.append(dim)
        return self.labels.hidden and known


_COPIES = frozenset({"lift_fresh_copy", "lift_fresh", "detach", "clone", "alias", "to", "_to_copy"})


def written_out(argument: Any) -> fx.Node | None:
    """The node that reads a tensor of which an argument is a copy."""
    while isinstance(argument, fx.Node) and argument.op == "call_function":
        if base_name(argument) not in _COPIES:
            return None
        argument = argument.args[0]
    found = isinstance(argument, fx.Node) and argument.op == "get_attr"
    return argument if found else None


def base_name(node: fx.Node) -> str:
    """The name of a node's operator, without overload and in-place underscore."""
    return operator_name(node.target)


@functools.cache
def operator_name(operator: Any) -> str:
    """The name of an operator, without overload and in-place underscore.

    >>> operator_name(__import__("torch").ops.aten.add_.Tensor)
    'add'
    """
    found = schema(operator)
    name = str(operator) if found is None else str(found.name).split("::")[1]
    return name if name.startswith("__") else name.rstrip("_")


def some(names: Sequence[str]) -> str:
    """The first names of a list, for the user.

    >>> some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:3]) + ("" if len(names) <= 3 else f" and {len(names) - 3} more")


def describe(node: fx.Node) -> str:
    """An operator for the user: ``softmax in encoder.0.attention``.

    >>> graph = fx.Graph()
    >>> describe(graph.placeholder("x"))
    'x'
    """
    name = base_name(node) if node.op == "call_function" else str(node.target)
    path = module_path(node)
    return f"{name} in {path}" if path else name


def module_path(node: fx.Node) -> str:
    """The innermost of them; ``""`` for the model itself, or where none is known."""
    return (module_paths(node) or [""])[-1]


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments by their names in the schema, defaults filled in."""
    found = schema(node.target)
    if found is None:
        return {str(i): a for i, a in enumerate(node.args)} | dict(node.kwargs)
    named = {}
    for i, argument in enumerate(found.arguments):
        if i < len(node.args):
            named[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            named[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
    return named
