"""Whether a stream can be turned by an orthogonal matrix, and what must be turned with it.

A stream can be turned, x → x·Q, where everything that touches it commutes with Q: additions,
multiplications by scalars, linear layers that write or read it, and the norm x / √(Σx² / D). A
scale behind that norm has to go first, into the layers that read what it scales.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from prunus._common.torch_internals import pytree
from prunus.graph.analysis import Analysis
from prunus.graph.call import base_name, describe, named_arguments
from prunus.graph.labels import Array, Fixed, Value
from prunus.graph.rotation_rules import RULES, StaysError, Turned
from prunus.graph.trace import Traced
from prunus.graph.units import Place


@dataclass(frozen=True)
class Stream:
    """A hidden width that can be turned.

    Attributes:
        classes: of its indices, in their order. ``[D]``.
        places: dimensions of parameters and buffers that turn with it.
        reads: those of them that read it, and do not add to it.
        folds: of those that read what a norm has scaled, the value that is the scale.
        units: parameters that are such scales, each with the number that makes the scale one.
        constants: gives the value of a scale.
    """

    classes: Array
    places: tuple[Place, ...]
    reads: frozenset[Place]
    folds: Mapping[Place, fx.Node]
    units: Mapping[str, float]
    constants: Constants


def stream_of(
    analysis: Analysis,
    classes: Array,
    *,
    alive: NDArray[np.bool_] | None = None,
    scalars: bool = True,
) -> Stream | str:
    """A hidden width as a stream that can be turned, or the reason why it cannot.

    Args:
        analysis: of the model.
        classes: of its indices, in their order: units that a norm counts.
        alive: which of them are not removed.
        scalars: whether a scale that cannot be folded may stay where it is, if it is the same
            for every index; one that will be trained is no scalar for long.
    """
    whole = np.ones(len(classes), dtype=bool) if alive is None else alive
    stay: set[str] = set()
    while True:
        walk = _Walk(analysis, classes, stay)
        try:
            for traced in analysis.passes:
                walk.follow(traced)
            return walk.stream()
        except _TiedError as tied:
            key = walk.constants.key(tied.scale)
            if not scalars or key in stay or not walk.is_scalar(tied.scale, whole):
                return str(tied)
            stay.add(key)
        except StaysError as reason:
            return str(reason)


class _TiedError(StaysError):
    """A scale belongs into a parameter for one of its uses alone."""

    def __init__(self, scale: fx.Node, why: str) -> None:
        super().__init__(why)
        self.scale = scale


class Constants:
    """Values that parameters and buffers alone decide."""

    def __init__(self, analysis: Analysis) -> None:
        self._read = analysis.read
        self.passes: dict[fx.Node, Traced] = {}
        self.outer: dict[fx.Node, fx.Node] = {}
        self.known: set[fx.Node] = set()

    def value(self, node: fx.Node, values: Mapping[str, Tensor]) -> Tensor:
        """A constant's value, with these tensors in place of some of the model's."""
        node = self.outer.get(node, node)
        if node.op == "get_attr":
            name = self._read[node]
            found = values[name] if name in values else self.passes[node].tensor(node)
            assert found is not None
            return found
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.value(n, values))
        result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return result

    def parameters(self, node: fx.Node) -> list[str]:
        """The tensors that decide a constant."""
        node = self.outer.get(node, node)
        if node.op == "get_attr":
            return [self._read[node]]
        return [name for n in node.all_input_nodes for name in self.parameters(n)]

    def key(self, node: fx.Node) -> str:
        """Equal for equal constants, of one pass and another."""
        node = self.outer.get(node, node)
        if node.op == "get_attr":
            return self._read[node]
        parts = pytree.tree_leaves((node.args, node.kwargs))
        inner = [self.key(p) if isinstance(p, fx.Node) else repr(p) for p in parts]
        return f"{node.target}({', '.join(inner)})"


class _Walk:
    """How each value turns with the stream, operator by operator."""

    def __init__(self, analysis: Analysis, classes: Array, stay: set[str]) -> None:
        self.analysis, self._classes, self._stay = analysis, classes, stay
        self._inside = np.zeros(len(analysis.solved.reason), dtype=bool)
        self._inside[classes] = True
        self.constants = Constants(analysis)
        self.found: dict[fx.Node, Any] = {}
        self.uses: dict[Place, fx.Node | None] = {}
        self.pending: dict[fx.Node, dict[Place, fx.Node | None]] = {}
        self.reads: set[Place] = set()
        self.scales: dict[str, fx.Node] = {}
        self._scalars: set[str] = set()

    def stream(self) -> Stream:
        """What was found, once every pass was followed."""
        folds = {place: node for place, node in self.uses.items() if node is not None}
        scales: dict[str, fx.Node] = {}
        for node in folds.values():
            scales |= dict.fromkeys(self._vectors(node), node)
        both = next((n for n, _ in self.uses if n in scales or n in self._scalars), None)
        if both is not None:
            raise StaysError(f"{both} is the scale of a norm, and something else")
        stay = {*self._scalars, *(n for s in self.scales.values() for n in self._vectors(s))}
        for name, value in self.analysis.tensors.items():
            for d in self.dims(value):
                if (name, d) not in self.uses and name not in stay:  # a scale that nobody reads
                    raise StaysError(f"no example shows how {name} meets the stream")
                if name not in self.analysis.names:
                    raise StaysError(f"{name} is a constant in the model's code")
        reads = frozenset(self.reads)
        return Stream(
            self._classes, tuple(self.uses), reads, folds, self._units(folds), self.constants
        )

    def _units(self, folds: Mapping[Place, fx.Node]) -> dict[str, float]:
        """The number with which each scale is one: 1, or 0 where the class adds 1."""
        found: dict[str, float] = {}
        for node in folds.values():
            names = self._vectors(node)
            for number in (1.0, 0.0):
                shapes = ((n, self.analysis.tensors[n].shape) for n in names)
                value = self.constants.value(node, {n: torch.full(s, number) for n, s in shapes})
                value = value.flatten()[: len(self._classes)]  # behind them a padded norm has zeros
                if bool((value == 1).all()) and all(found.get(n, number) == number for n in names):
                    found |= dict.fromkeys(names, number)
                    break
            else:
                raise StaysError(f"the scale {describe(node)} is one for neither 1 nor 0")
        return found

    # --- values

    def dims(self, value: Value) -> list[int]:
        """Dimensions of a value along which the stream runs."""
        return [
            d
            for d, dim in enumerate(value.dims)
            if not isinstance(dim, Fixed) and self._inside[self.analysis.solved.of(dim)].any()
        ]

    def _whole(self, value: Value, *, padded: bool) -> bool:
        """Whether every index of the stream is there, in order."""
        size = len(self._classes)
        for d in self.dims(value):
            dim = value.dims[d]
            assert not isinstance(dim, Fixed)
            classes = self.analysis.solved.of(dim)
            if not np.array_equal(classes[:size] if padded else classes, self._classes):
                return False
        return True

    def scalar(self, node: fx.Node) -> bool:
        """Whether a scale is one of those that stay where they are."""
        if node not in self.constants.known or self.constants.key(node) not in self._stay:
            return False
        self._scalars.update(self._vectors(node))
        return True

    def is_scalar(self, node: fx.Node, alive: NDArray[np.bool_]) -> bool:
        """Whether a scale has one value for all indices that are left."""
        value = self.constants.value(node, {})
        if value.is_meta or value.numel() != len(alive):
            return False
        left = value.detach().flatten()[torch.from_numpy(alive).to(value.device)]
        return bool((left == left[0]).all())

    def _vectors(self, node: fx.Node) -> list[str]:
        """The tensors that give a scale its numbers for each index."""
        names = self.constants.parameters(node)
        return [name for name in names if self.dims(self.analysis.tensors[name])]

    # --- operators

    def follow(self, traced: Traced) -> None:
        """One pass."""
        for node in traced.module.graph.nodes:
            if node.op == "get_attr" and isinstance(self.analysis.known.get(node), Value):
                self.constants.passes[node] = traced
                self.constants.known.add(node)
                value = self.analysis.known[node]
                assert isinstance(value, Value)
                if along := self.dims(value):
                    name = self.analysis.read[node]
                    self._put(node, Turned(source=(name, tuple(along))))
            elif node.op == "call_function":
                self._operator(node)

    def _operator(self, node: fx.Node) -> None:
        inputs = node.all_input_nodes
        constant = bool(inputs) and all(n in self.constants.known for n in inputs)
        if constant:
            self.constants.known.add(node)
        if node.target is operator.getitem:
            self.found[node] = self.found.get(node.args[0])  # type: ignore[arg-type]
            return
        carrying = any(self.dims(v) for n in (*inputs, node) for v in self._values(n))
        if not carrying:
            return
        if node in self.analysis.inside:
            self._put(node, self._composite(node))
            return
        if not constant:
            self._put(node, self._by_rule(node))
            return
        before, self.uses = self.uses, {}  # of what may be a scale in the end
        try:
            self._put(node, self._by_rule(node))
        except StaysError:
            self.found[node] = Turned("own")
        self.pending[node], self.uses = self.uses, before

    def _by_rule(self, node: fx.Node) -> Turned | None:
        rule = RULES.get(base_name(node))
        if rule is None:
            raise StaysError(f"{describe(node)} acts on each index by itself")
        return rule(_Operator(self, node))

    def _composite(self, node: fx.Node) -> Turned | None:
        """An operator by those that it is made of."""
        made = self.analysis.inside[node]
        outer = iter(made.operands)
        for inner in made.graph.nodes:
            if inner.op == "placeholder":
                source = next(outer)
                self.found[inner] = self.found.get(source)
                if source in self.constants.known:
                    self.constants.outer[inner] = source
                    self.constants.known.add(inner)
            elif inner.op == "call_function":
                self._operator(inner)
        results = [n for n in pytree.tree_leaves(made.results) if isinstance(n, fx.Node)]
        states = [self.found.get(n) for n in results]
        return next((s for s in states if s is not None), None)

    def _values(self, node: fx.Node) -> list[Value]:
        known = self.analysis.known.get(node)
        several = [known] if isinstance(known, Value) or known is None else list(known)
        return [v for v in several if v is not None]

    def _put(self, node: fx.Node, state: Turned | None) -> None:
        """What an operator gives, if the stream is still whole in it."""
        values = [v for v in self._values(node) if self.dims(v)]
        padded = state is not None and state.padded
        if bool(values) != (state is not None) or not all(
            self._whole(v, padded=padded) for v in values
        ):
            raise StaysError(f"{describe(node)} takes the stream apart, or changes its order")
        if state is not None and padded:
            whole = all(self._whole(v, padded=False) for v in values)
            state = Turned(state.form, state.scale, state.source, padded=not whole)
        self.found[node] = state


class _Operator:
    """An operator that meets the stream, as the rules see it."""

    def __init__(self, walk: _Walk, node: fx.Node) -> None:
        self._walk, self.node = walk, node

    @property
    def name(self) -> str:
        return base_name(self.node)

    @cached_property
    def args(self) -> dict[str, Any]:
        return named_arguments(self.node)

    def dims(self, argument: Any) -> list[int]:
        value = self._walk.analysis.known.get(argument) if isinstance(argument, fx.Node) else None
        return self._walk.dims(value) if isinstance(value, Value) else []

    def state(self, argument: Any) -> Turned:
        found = self._walk.found.get(argument)
        if found is None:
            raise StaysError(f"{describe(self.node)} takes the stream from an unknown place")
        assert isinstance(found, Turned)
        return found

    def constant(self, argument: Any) -> bool:
        return argument in self._walk.constants.known

    def scalar(self, argument: Any) -> bool:
        return self._walk.scalar(argument)

    def settle(self, argument: Any) -> None:
        for place, scale in self._walk.pending.get(argument, {}).items():
            self._met(place, scale)

    def scale(self, argument: fx.Node) -> fx.Node:
        return self._walk.scales.setdefault(self._walk.constants.key(argument), argument)

    def use(
        self, argument: Any, dim: int, scale: fx.Node | None = None, *, reads: bool = False
    ) -> None:
        source = self.state(argument).source
        assert source is not None
        name, axes = source
        place = (name, axes[self.dims(argument).index(dim)])
        if reads:
            self._walk.reads.add(place)
        self._met(place, scale)

    def _met(self, place: Place, scale: fx.Node | None) -> None:
        known = self._walk.uses.setdefault(place, scale)
        if known is scale:
            return
        node = scale or known
        assert node is not None
        name = place[0]
        tied = [n for n, first in self._walk.analysis.names.items() if first == name]
        also = f" ({' and '.join(tied)} are one tensor)" if len(tied) > 1 else ""
        raise _TiedError(
            node,
            f"the scale {describe(node)} belongs into {name} for one of its uses alone{also}: "
            "untie them first, each with a parameter of its own",
        )
