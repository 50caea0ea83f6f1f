"""The walk over a traced model: labels for every value, then the classes that fall together."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunus._common.modules import canonical_names
from prunus._common.torch_internals import pytree, schema
from prunus.graph.call import Call, Found, Known, Memo, base_name, describe, named_arguments
from prunus.graph.labels import Dim, Fixed, Labels, Value
from prunus.graph.passes import trace_all
from prunus.graph.rules import Rule, all_rules
from prunus.graph.rules.fourier import PAIRS
from prunus.graph.rules.movement import MOVES, SPLITS
from prunus.graph.rules.pointwise import COPIES, pointwise
from prunus.graph.solve import Heads, Solved, solve
from prunus.graph.trace import Traced
from prunus.types import Kept

_IGNORED = frozenset(
    {"_assert_tensor_metadata", "sym_size", "_assert_scalar", "sym_constrain_range",
     "sym_constrain_range_for_size", "sym_numel", "sym_stride"}
)  # fmt: skip
Ends = Sequence[Sequence[Tensor | None] | None]
"""Of each tensor that enters a module, by dimension, the indices that stay; ``None``: unknown."""

_TABLES = frozenset({*MOVES, *SPLITS, *COPIES, *PAIRS} - {"copy"})


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
        unknown: operators without a rule, and how often.
        heads: the policy at attention sites.
        hidden: whether what a norm counts can go.
        spared: dimensions of parameters that are sliced, but not masked.
    """

    passes: tuple[Traced, ...]
    known: dict[fx.Node, Known]
    tensors: dict[str, Value]
    names: dict[str, str]
    read: dict[fx.Node, str]
    solved: Solved
    unknown: Counter[str]
    heads: Heads
    hidden: bool = False
    spared: frozenset[tuple[str, int]] = frozenset()

    @property
    def traced(self) -> Traced:
        """The first pass."""
        return self.passes[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the passes take as given."""
        return tuple(dict.fromkeys(note for traced in self.passes for note in traced.notes))


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
    walk.pin_unread_rows()
    return Analysis(
        passes=passes,
        known=walk.known,
        tensors=walk.tensors,
        names=walk.names,
        read=walk.read,
        solved=solve(walk.labels, heads),
        unknown=walk.unknown,
        heads=heads,
        hidden=hidden,
        spared=frozenset(
            (name, d)
            for name, value in walk.tensors.items()
            for d, dim in enumerate(value.dims)
            if any(dim is s for s in walk.labels.spared)
        ),
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
        self._views: dict[fx.Node, fx.Node] = {}
        self._tables: set[fx.Node] = set()

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
        self._tables.add(node)
        self.read[node] = name
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
            if isinstance(found, Value) and not self.open:
                for dim in found.dims:
                    self.labels.pin(dim, "the model's output")

    def _operator(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            whole, which = self.known.get(node.args[0]), node.args[1]  # type: ignore[arg-type]
            if isinstance(whole, (list, tuple)) and isinstance(which, int):
                self.known[node] = whole[which]
                self._follow(node, node.args[0])  # type: ignore[arg-type]
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
        rule = self._rules.get(name)
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = pointwise
        found = None if rule is None else rule(call)
        if found is None:
            found = self._without_rule(call, value)
        self.known[node] = found
        self._note(node, name, found)

    def _without_rule(self, call: Call, value: Any) -> Found:
        why = f"{call.where}: no rule for this operator"
        free = [d for d in self._dims_of(call.node) if not isinstance(d, Fixed)]
        for dim in free:
            self.labels.pin(dim, why)
        if free:
            self.unknown[call.name] += 1
        if isinstance(value, Tensor):
            return call.fixed(why)
        return [call.fixed(why, t) if isinstance(t, Tensor) else None for t in value]

    def _dims_of(self, node: fx.Node) -> Iterator[Dim]:
        for operand in node.all_input_nodes:
            found = self.known.get(operand)
            for value in found if isinstance(found, (list, tuple)) else (found,):
                yield from value.dims if value is not None else ()

    # --- views, in-place changes, tables

    def _note(self, node: fx.Node, name: str, found: Found) -> None:
        first = node.args[0] if node.args else None
        if isinstance(first, fx.Node):
            if name in _TABLES or _in_place(node):
                self._follow(node, first)
            if _in_place(node) and isinstance(found, Value):
                self._written(first, found.zero)
        if name not in _TABLES:
            for dim in self._dims_of(node):
                if not isinstance(dim, Fixed):
                    self.labels.used.append(dim)

    def _follow(self, node: fx.Node, source: fx.Node) -> None:
        if _may_share(node):
            self._views[node] = source
        if source in self._tables:
            self._tables.add(node)

    def _written(self, node: fx.Node, zero: tuple[bool, ...]) -> None:
        """A value written in place: what it is a view of may no longer be zero."""
        if all(zero):
            return
        at: fx.Node | None = node
        while at is not None:
            old = self.known.get(at)
            if isinstance(old, Value):
                self.known[at] = Value(old.dims, (False,) * len(old.zero), old.shape)
            at = self._views.get(at)

    def pin_unread_rows(self) -> None:
        """Rows of a table that this example never reads look free, and are not."""
        used = np.zeros(self.labels.count, dtype=bool)
        for labels in self.labels.used:
            used[labels] = True
        for value in self.tensors.values():
            for dim in value.dims:
                if not isinstance(dim, Fixed):
                    self.labels.pin(dim[~used[dim]], "not read with this example")


def _may_share(node: fx.Node) -> bool:
    """Whether a result may stand on its operand's memory: dropout does, which does nothing here."""
    found = schema(node.target)
    aliased = found is None or any(r.alias_info for r in found.returns)
    return aliased or "dropout" in base_name(node)


def _in_place(node: fx.Node) -> bool:
    found = schema(node.target)
    return found is not None and bool(found.is_mutable)


@functools.cache
def rules() -> dict[str, Rule]:
    """Every rule by operator name."""
    return all_rules()
