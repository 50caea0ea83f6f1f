"""The walk over a traced model: labels for every value, then the classes that fall together."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunus._common.modules import canonical_names
from prunus._common.torch_internals import pytree, schema
from prunus.graph.call import (
    Call,
    Found,
    Known,
    Memo,
    base_name,
    describe,
    named_arguments,
    written_out,
)
from prunus.graph.expansion import Expansion, expanded
from prunus.graph.labels import Dim, Fixed, Labels, Value
from prunus.graph.passes import trace_all
from prunus.graph.reading import read_classes, values_of
from prunus.graph.rules import Rule, all_rules
from prunus.graph.rules.fourier import PAIRS
from prunus.graph.rules.lookup import BY_POSITION, places_read
from prunus.graph.rules.movement import MOVES, SPLITS
from prunus.graph.rules.pointwise import COPIES, pointwise
from prunus.graph.solve import Heads, Solved, solve
from prunus.graph.trace import Traced
from prunus.graph.unvisited import infer
from prunus.types import Kept

_IGNORED = frozenset(
    {"_assert_tensor_metadata", "sym_size", "_assert_scalar", "sym_constrain_range",
     "sym_constrain_range_for_size", "sym_numel", "sym_stride"}
)  # fmt: skip
Ends = Sequence[Sequence[Tensor | None] | None]
"""Of each tensor that enters a module, by dimension, the indices that stay; ``None``: unknown."""

_MOVING = frozenset({*MOVES, *SPLITS, *COPIES, *PAIRS} - {"copy"})
"""Operators that pass on what they are given, or a part of it as long as another input."""


@dataclass(frozen=True)
class Analysis:
    """What falls together in a model.

    Attributes:
        passes: its operators, pass by pass: eval mode with the first example comes first.
        known: the labels of every node.
        tensors: the labels of every parameter and buffer, by its first name in the model.
        names: every name of a tensor to that first one.
        read: that first name, of every node that reads a tensor.
        solved: the classes of labels.
        inside: composite operators without a rule of their own, and what they are made of.
        unknown: operators without a rule, and how often.
        heads: the policy at attention sites.
        hidden: whether what a norm counts can go.
        spared: dimensions of parameters that are sliced, but not masked.
        like: entries of containers that no pass visits, and those that they are cut like.
        inferred: what was inferred of these, for the user.
        experts: that can go as a whole, where that was asked for (``graph/experts.py``).
        whole: tensors that can go as a whole, as those of an expert in a list.
    """

    passes: tuple[Traced, ...]
    known: dict[fx.Node, Known]
    tensors: dict[str, Value]
    names: dict[str, str]
    read: dict[fx.Node, str]
    solved: Solved
    inside: dict[fx.Node, Expansion]
    unknown: Counter[str]
    heads: Heads
    hidden: bool = False
    spared: frozenset[tuple[str, int]] = frozenset()
    like: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inferred: tuple[str, ...] = ()
    experts: tuple[Any, ...] = ()
    whole: frozenset[str] = frozenset()

    @property
    def traced(self) -> Traced:
        """The first pass."""
        return self.passes[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the passes take as given."""
        traced = (note for traced in self.passes for note in traced.notes)
        return tuple(dict.fromkeys((*traced, *self.inferred)))


def analyze(
    model: nn.Module,
    example: Any,
    *,
    heads: Heads = "whole",
    hidden: bool = False,
    open_ends: Sequence[Ends] | None = None,
    traced: Sequence[Traced] = (),
    kept: Kept | None = None,
) -> Analysis:
    """Find what falls together in a model.

    Args:
        model: on any device, meta too.
        example: an input, a tuple of inputs, a mapping of keyword arguments, or a list of these.
        heads: at attention sites, whole heads go or the same dimensions of every head.
        hidden: whether indices that a norm or a mean counts can go: as zeros, counted on.
        open_ends: for a module inside a model, whose inputs and outputs may lose indices: pass by
            pass, of each tensor that enters, by dimension, the indices that stay.
        traced: the model's passes, if they were traced before.
        kept: a cut that is known: by tensor and dimension the indices that stay (``None``: all).
            What can be removed is then no more than that, and sites are decided by it.

    Raises:
        InputError: if the model cannot be traced.

    >>> found = analyze(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2))
    >>> bool(found.solved.free(found.tensors["0.weight"].dims[0]).all())
    True
    """
    passes = tuple(traced) or trace_all(model, example)
    walk = _Walk(model, kept, hidden=hidden)
    for number, one in enumerate(passes):
        walk.follow(one, None if open_ends is None else open_ends[number])
    solved = solve(walk.labels, heads)
    if kept is None and walk.pin_unread(solved):
        solved = solve(walk.labels, heads)
    found = infer(model, walk.names, walk.tensors, solved, kept)
    spared = {
        (name, d)
        for name, value in walk.tensors.items()
        for d, dim in enumerate(value.dims)
        if any(dim is s for s in walk.labels.spared)
    }
    return Analysis(
        passes=passes,
        known=walk.known,
        tensors=found.tensors,
        names=walk.names,
        read=walk.read,
        solved=found.solved,
        inside=walk.inside,
        unknown=walk.unknown,
        heads=heads,
        hidden=hidden,
        spared=frozenset(
            spared | {(n, d) for n, of in found.copies.items() for o, d in spared if o == of}
        ),
        like=found.like,
        inferred=found.notes,
    )


class _Walk:
    """Labels as they travel, operator by operator."""

    def __init__(
        self,
        model: nn.Module,
        kept: Kept | None,
        *,
        hidden: bool,
    ) -> None:
        self.kept = kept
        self.labels, self.memo = Labels(hidden=hidden), Memo()
        self.known: dict[fx.Node, Known] = {}
        self.tensors: dict[str, Value] = {}
        self.unknown: Counter[str] = Counter()
        self.names = canonical_names(model)
        self.read: dict[fx.Node, str] = {}
        self._parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
        self._by_identity: dict[int, str] = {}
        self._rules = rules()
        self._views: dict[fx.Node, list[fx.Node]] = {}
        self.inside: dict[fx.Node, Expansion] = {}
        self._readers: list[fx.Node] = []

    def follow(self, traced: Traced, ends: Ends | None) -> None:
        """One pass; all share the labels of parameters and buffers."""
        self.traced, self.open = traced, ends is not None
        self._ends = iter(ends or ())
        for node in traced.module.graph.nodes:
            self.step(node)

    def step(self, node: fx.Node) -> None:
        """One node."""
        if node.op == "placeholder":
            self.known[node] = self._input(node)
        elif node.op == "get_attr":
            self.known[node] = self._tensor(node)
        elif node.op == "output":
            self._output(node)
        elif node.op == "call_function":
            self._operator(node)

    def _input(self, node: fx.Node) -> Value | None:
        tensor = node.meta.get("val")
        if not isinstance(tensor, Tensor):
            return None
        shape = tuple(int(n) for n in tensor.shape)
        if self.open:
            value = Value(self.labels.made(shape), (True,) * len(shape), shape)
            end = next(self._ends, None)
            if end is not None:
                self._decided(value, end)
            return value
        why = f"input {node.target}"
        return Value(tuple(Fixed(why) for _ in shape), (False,) * len(shape), shape)

    def _tensor(self, node: fx.Node) -> Value | None:
        tensor = self.traced.tensor(node)
        if tensor is None:
            return None
        node.meta.setdefault("val", tensor)
        target = str(node.target)
        name = self.names.get(target, self._by_identity.get(id(tensor), target))
        self._by_identity.setdefault(id(tensor), name)
        self.read[node] = name
        if name not in self.names:
            self.memo.constants[node] = tensor
        if name not in self.tensors:
            shape = tuple(int(n) for n in tensor.shape)
            real = tensor.is_floating_point() or tensor.is_complex()
            masked = target in self._parameters and real
            self.tensors[name] = Value(self.labels.made(shape), (masked,) * len(shape), shape)
            if self.kept is not None:
                self._decided(self.tensors[name], self.kept.get(name))
        return self.tensors[name]

    def _decided(self, value: Value, kept: Sequence[Tensor | None] | None) -> None:
        """The cut is known: these indices go, all others stay."""
        for d, dim in enumerate(value.dims):
            indices = kept[d] if kept is not None and d < len(kept) else None
            if isinstance(dim, Fixed):
                continue
            stays = np.full(len(dim), indices is None)
            if indices is not None:
                stays[indices.numpy()] = True
            self.labels.pin(dim[stays], "it stays in this cut")
            self.labels.gone.append(dim[~stays])

    def _output(self, node: fx.Node) -> None:
        for leaf in pytree.tree_leaves(node.args):
            found = self.known.get(leaf) if isinstance(leaf, fx.Node) else None
            for dim in found.dims if isinstance(found, Value) and not self.open else ():
                self.labels.pin(dim, "the model's output")

    def _operator(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            whole, which = self.known.get(node.args[0]), node.args[1]  # type: ignore[arg-type]
            if isinstance(whole, (list, tuple)) and isinstance(which, int):
                self.known[node] = whole[which]
                self._views[node] = [node.args[0]]  # type: ignore[list-item]
            return
        name = base_name(node)
        if name in _IGNORED:
            return
        value = node.meta.get("val")
        if not isinstance(value, (Tensor, tuple, list)):
            for dim in self._dims_of(node):
                self.labels.pin(dim, f"{describe(node)}: a number read from the values")
            return
        call = Call(node, named_arguments(node), self.known, self.labels, self.memo)
        self.known[node] = found = self._found(call, name, value)
        self._note(node, name, found)

    def _found(self, call: Call, name: str, value: Any) -> Found:
        """By the operator's rule, by what it is made of, or without either."""
        node = call.node
        rule = self._rules.get(name)
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = pointwise
        try:
            found = None if rule is None else rule(call)
        except Exception:  # a form of the operator, or sizes, for which it was not written
            found = None
        if found is None and any(not isinstance(d, Fixed) for d in self._dims_of(node)):
            found = self._composite(node)
        return self._without_rule(call, value) if found is None else found

    def _composite(self, node: fx.Node) -> Found:
        """What is known of an operator from those that it is made of."""
        made = expanded(node)
        if made is None:
            return None
        self.inside[node] = made
        outer = iter(made.operands)
        for inner in made.graph.nodes:
            if inner.op == "placeholder":
                self.known[inner] = self.known.get(source := next(outer))
                self._views[inner] = [source]
            elif inner.op == "call_function":
                self._operator(inner)
        given = [self.known.get(n) for n in pytree.tree_leaves(made.results)]
        values = [v if isinstance(v, Value) else None for v in given]
        return values[0] if isinstance(made.results, fx.Node) else values

    def _without_rule(self, call: Call, value: Any) -> Found:
        dims = list(self._dims_of(call.node))
        free = [d for d in dims if not isinstance(d, Fixed)]
        why = next((d.why for d in dims if isinstance(d, Fixed)), f"{call.where}: made of nothing")
        if free:
            why = f"{call.where}: no rule for this operator"
            self.unknown[call.name] += 1
        for dim in free:
            self.labels.pin(dim, why)
        if isinstance(value, Tensor):
            return call.fixed(why)
        return [call.fixed(why, t) if isinstance(t, Tensor) else None for t in value]

    def _dims_of(self, node: fx.Node) -> Iterator[Dim]:
        for operand in node.all_input_nodes:
            found = self.known.get(operand)
            for value in values_of(found):
                yield from value.dims

    # --- views, in-place changes, what is read

    def _note(self, node: fx.Node, name: str, found: Found) -> None:
        self._views[node] = _shared(node)
        first = node.args[0] if node.args else None
        lasting = isinstance(found, Value) and all(found.zero)
        if isinstance(first, fx.Node) and _in_place(node) and not lasting:
            self._written(first)
        if name not in _MOVING and node not in self.inside and not self._written_out(node, name):
            self._readers.append(node)

    def _written_out(self, node: fx.Node, name: str) -> bool:
        """Whether the code writes out what is read, and passes it on."""
        places = places_read(node) if name in BY_POSITION else []
        return len(places) == 1 and written_out(places[0][1]) in self.memo.constants

    def _written(self, node: fx.Node) -> None:
        """A value written in place: what it is a view of may no longer be zero."""
        old = self.known.get(node)
        if isinstance(old, Value):
            self.known[node] = Value(old.dims, (False,) * len(old.zero), old.shape)
        for source in self._views.get(node, ()):
            self._written(source)

    def pin_unread(self, solved: Solved) -> bool:
        """Rows of tables that no operator reads stay; whether any of them were free."""
        read = read_classes(self._readers, self.known, solved)
        dims = [d for v in self.tensors.values() for d in v.dims if not isinstance(d, Fixed)]
        unread = [dim[solved.free(dim) & ~read[solved.of(dim)]] for dim in dims]
        for dim in unread:
            self.labels.pin(dim, "not read with this example")
        return any(dim.size for dim in unread)


def _shared(node: fx.Node) -> list[fx.Node]:
    """On whose memory a result may stand; dropout, which does nothing here, returns its input."""
    found = schema(node.target)
    if found is None or "dropout" in base_name(node):
        return node.all_input_nodes[:1]
    named = named_arguments(node)
    aliased = [named[a.name] for a in found.arguments if a.alias_info and a.name in named]
    return [n for n in pytree.tree_leaves(aliased) if isinstance(n, fx.Node)]


def _in_place(node: fx.Node) -> bool:
    found = schema(node.target)
    return found is not None and bool(found.is_mutable)


@functools.cache
def rules() -> dict[str, Rule]:
    """Every rule by operator name."""
    return all_rules()
