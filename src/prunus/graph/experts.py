"""Whole experts as units: slices of fused tensors or entries of lists, and their router's rows.

A router's softmax and top-k look at all experts at once, so index propagation pins them. That an
expert is taken out means that it is never chosen: its logit is −∞. What is left of a softmax, a
sigmoid and a top-k is then what a router of fewer rows gives. Where the router looks at its experts
in groups of one size, one of each group goes at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, fx, nn

from prunus._common.layers import Layer
from prunus._common.torch_internals import module_paths
from prunus.graph.analysis import Analysis
from prunus.graph.call import base_name, named_arguments
from prunus.graph.labels import Array, Dim, Fixed, Value
from prunus.graph.listed import Listed, find_listed
from prunus.graph.never_chosen import WAYS, Forgotten
from prunus.graph.solve import Solved
from prunus.graph.units import Place

_VIEWS = frozenset({"view", "reshape", "unflatten", "_unsafe_view"})
_CHOICES = frozenset({"topk", "argmax", "max", "sort"})


@dataclass(frozen=True)
class Experts:
    """Experts that one router chooses from.

    Attributes:
        where: the module that holds both.
        places: the dimensions that lose an index with an expert; a router's weight comes last.
        rows: those of them that are the router's: its weights, and vectors beside them.
        count: how many experts there are.
        least: of each group, how many stay at least: those that each item goes to.
        groups: in which the router looks at them.
        lists: names of lists of modules that lose an entry with an expert.
        entries: of each expert the tensors that go as a whole.
        way: in which the router forgets an expert.
    """

    where: str
    places: tuple[Place, ...]
    rows: tuple[Place, ...]
    count: int
    least: int
    groups: int = 1
    lists: tuple[str, ...] = ()
    entries: tuple[tuple[str, ...], ...] = ()
    way: Forgotten = WAYS[0]

    @property
    def units(self) -> int:
        """How many can go one after the other: an expert, or one of each group."""
        return self.count // self.groups

    @property
    def added(self) -> tuple[str, ...]:
        """Vectors beside the router, which are added to what it chooses by."""
        return tuple(name for name, _ in self.rows if name != self.router)

    @property
    def router(self) -> str:
        """Its weight, ``[experts, width]``."""
        return self.places[-1][0]


def find_experts(analysis: Analysis, layers: Sequence[Layer]) -> list[Experts]:
    """Stacks of matrices in scope, with the one matrix nearby that has a row for each of them.

    Where several matrices could be the router, the stack is passed over.

    Args:
        analysis: of the model.
        layers: in scope.
    """
    stacks: dict[tuple[str, int], list[Layer]] = {}
    for layer in layers:
        if len(layer.stack) == 1 and layer.shape[layer.stack[0]] > 1:
            stacks.setdefault((layer.module, layer.shape[layer.stack[0]]), []).append(layer)
    found = []
    for (module, count), members in stacks.items():
        own = {la.name for la in members}
        where, router = _router(analysis, module, count, own)
        if router is None:
            continue
        beside = router.rpartition(".")[0]
        added = [n for n in _below(analysis, beside, (count,)) if n not in own]
        biases = [
            n for n, v in analysis.tensors.items()
            if n.rpartition(".")[0] == module and n not in {*own, router, *added}
            and len(v.shape) > 1 and v.shape[0] == count and n.startswith(tuple(own))
        ]  # fmt: skip
        stack = [(la.name, la.stack[0]) for la in members]
        rest = [(n, 0) for n in (*biases, *added, router)]
        places = (*stack, *rest)
        groups = _groups(analysis, where, count)
        least = _least(analysis, where, count, groups)
        rows = tuple((n, 0) for n in (*added, router))
        found.append(Experts(where, places, rows, count, least, groups))
    return found


def _of_lists(analysis: Analysis, listed: Listed) -> Experts:
    """Experts that are entries of lists."""
    groups = _groups(analysis, listed.where, listed.count)
    return Experts(
        where=listed.where,
        places=tuple(reversed(listed.rows)),
        rows=listed.rows,
        count=listed.count,
        least=_least(analysis, listed.where, listed.count, groups),
        groups=groups,
        lists=listed.lists,
        entries=listed.entries,
        way=listed.way,
    )


def _router(analysis: Analysis, module: str, count: int, own: set[str]) -> tuple[str, str | None]:
    """The module that holds stack and router, and the router's weight, if there is just one."""
    parts = module.split(".") if module else []
    for end in range(len(parts), -1, -1):
        where = ".".join(parts[:end])
        rows = [
            n
            for n, v in analysis.tensors.items()
            if (n.startswith(f"{where}.") or not where)
            and n not in own
            and len(v.shape) == 2
            and v.shape[0] == count
            and not n.startswith(tuple(own))
        ]
        if rows:
            return where, rows[0] if len(rows) == 1 else None
    return module, None


def _below(analysis: Analysis, module: str, shape: tuple[int, ...]) -> Iterator[str]:
    for name, value in analysis.tensors.items():
        if name.rpartition(".")[0] == module and value.shape == shape:
            yield name


def _inside(analysis: Analysis, where: str, names: frozenset[str]) -> Iterator[tuple[fx.Node, int]]:
    """Operators of a module by these names, and how many indices their last dimension has."""
    for traced in analysis.passes:
        for node in traced.module.graph.nodes:
            if node.op != "call_function" or base_name(node) not in names:
                continue
            read = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
            if (
                isinstance(read, Tensor)
                and read.dim()
                and (not where or where in module_paths(node))
            ):
                yield node, read.shape[-1]


def _groups(analysis: Analysis, where: str, count: int) -> int:
    """How many groups of one size a module makes of as many numbers as there are experts."""
    for node, size in _inside(analysis, where, _VIEWS):
        made = node.meta.get("val")
        shape = tuple(made.shape[-2:]) if isinstance(made, Tensor) and made.dim() > 2 else ()
        if size == count and math.prod(shape) == count and 1 not in shape:
            return int(shape[0])
    return 1


def _least(analysis: Analysis, where: str, count: int, groups: int) -> int:
    """Of each group, how many are needed for what is chosen inside a module."""
    taken: dict[int, list[int]] = {}
    for node, size in _inside(analysis, where, _CHOICES):
        k = named_arguments(node).get("k")
        taken.setdefault(size, []).append(k if isinstance(k, int) else 1)
    every = max(taken.get(count, [1]))
    if groups == 1:
        return every
    open_groups = min(taken.get(groups, [groups]))
    return max(*taken.get(count // groups, [1]), 1, math.ceil(every / open_groups))


def with_experts(
    analysis: Analysis, layers: Sequence[Layer], model: nn.Module | None = None
) -> Analysis:
    """The analysis with experts as units that can go, beside all else that it found.

    Args:
        analysis: of the model.
        layers: in scope.
        model: whose values tell which lists are experts; without it only fused ones are found.
    """
    found = find_experts(analysis, layers)
    if model is not None:
        scope = {la.name for la in layers}
        found += [_of_lists(analysis, one) for one in find_listed(analysis, model, scope)]
    grown = _Grown(analysis, {} if model is None else _forms(model))
    for experts in found:
        grown.add(experts)
    return replace(
        analysis,
        tensors=grown.tensors,
        solved=grown.solved(),
        experts=tuple(found),
        whole=frozenset(n for e in found for own in e.entries for n in own),
    )


def _forms(model: nn.Module) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Of each tensor its shape, and whether masks are of it."""
    masked = {n: (tuple(p.shape), True) for n, p in model.named_parameters()}
    return {**masked, **{n: (tuple(b.shape), False) for n, b in model.named_buffers()}}


class _Grown:
    """Tensors and classes, with those of experts added."""

    def __init__(
        self, analysis: Analysis, forms: Mapping[str, tuple[tuple[int, ...], bool]]
    ) -> None:
        self.tensors = dict(analysis.tensors)
        self._forms = forms
        self._solved = analysis.solved
        self._labels: list[Array] = [analysis.solved.classes]
        self._count = len(analysis.solved.classes)
        self._number = len(analysis.solved.reason)

    def add(self, experts: Experts) -> None:
        """A class for each unit: at an index of each place, and at every index of an entry."""
        units = self._number + np.arange(experts.count, dtype=np.int64) % experts.units
        self._number += experts.units
        for name, d in experts.places:
            self._label(name, d, units)
        for unit, own in zip(units, experts.entries, strict=False):
            for name in own:
                shape, masked = self._forms[name]
                if shape:  # what is one number has no dimension to lose
                    self.tensors[name] = _whole(shape, masked=masked)
                    self._label(name, 0, np.full(shape[0], unit))

    def _label(self, name: str, d: int, classes: Array) -> None:
        made = np.arange(self._count, self._count + len(classes), dtype=np.int64)
        self._count += len(classes)
        self._labels.append(classes)
        value = self.tensors[name]
        dims: list[Dim] = list(value.dims)
        dims[d] = made
        self.tensors[name] = replace(value, dims=tuple(dims))

    def solved(self) -> Solved:
        """The classes, with those that were added."""
        solved = self._solved
        more = self._number - len(solved.reason)
        return replace(
            solved,
            classes=np.concatenate(self._labels),
            reason=np.concatenate([solved.reason, np.full(more, -1, dtype=np.int64)]),
            head=np.concatenate([solved.head, np.zeros(more, dtype=bool)]),
            gone=np.concatenate([solved.gone, np.zeros(more, dtype=bool)]),
            hidden=np.concatenate([solved.hidden, np.zeros(more, dtype=bool)]),
        )


def _whole(shape: tuple[int, ...], *, masked: bool) -> Value:
    """Of a tensor that goes with an expert or stays."""
    return Value(tuple(Fixed("of an expert") for _ in shape), (masked,) * len(shape), shape)


def counts_after(experts: Sequence[Experts], kept: Mapping[str, Sequence[object]]) -> list[int]:
    """How many experts stay of each.

    Args:
        experts: of a model.
        kept: the indices that stay, by tensor and dimension.
    """
    after = []
    for some in experts:
        name, d = some.places[-1]
        rows = kept[name][d] if name in kept else None
        after.append(some.count if rows is None else len(rows))  # type: ignore[arg-type]
    return after
