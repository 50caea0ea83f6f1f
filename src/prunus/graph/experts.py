"""Whole experts as units: slices of fused tensors, and the rows of the router that chooses them.

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
from torch import Tensor, fx

from prunus._common.layers import Layer
from prunus._common.torch_internals import module_paths
from prunus.graph.analysis import Analysis
from prunus.graph.call import base_name, named_arguments
from prunus.graph.labels import Array, Dim
from prunus.graph.units import Place

_VIEWS = frozenset({"view", "reshape", "unflatten", "_unsafe_view"})
_CHOICES = frozenset({"topk", "argmax", "max", "sort"})


@dataclass(frozen=True)
class Experts:
    """Experts that one router chooses from.

    Attributes:
        where: the module that holds both.
        places: the dimensions that lose an index with an expert; the router's weight comes last.
        added: vectors beside the router, which are added to what it chooses by.
        count: how many experts there are.
        least: of each group, how many stay at least: those that each item goes to.
        groups: in which the router looks at them.
    """

    where: str
    places: tuple[Place, ...]
    added: tuple[str, ...]
    count: int
    least: int
    groups: int = 1

    @property
    def units(self) -> int:
        """How many can go one after the other: an expert, or one of each group."""
        return self.count // self.groups

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
        found.append(Experts(where, places, tuple(added), count, least, groups))
    return found


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


def with_experts(analysis: Analysis, layers: Sequence[Layer]) -> Analysis:
    """The analysis with experts as units that can go, beside all else that it found."""
    found = find_experts(analysis, layers)
    tensors, solved = dict(analysis.tensors), analysis.solved
    labels: list[Array] = [solved.classes]
    count, number = len(solved.classes), len(solved.reason)
    for experts in found:
        classes = number + np.arange(experts.count, dtype=np.int64) % experts.units
        number += experts.units
        for name, d in experts.places:
            made = np.arange(count, count + experts.count, dtype=np.int64)
            count += experts.count
            labels.append(classes)
            dims: list[Dim] = list(tensors[name].dims)
            dims[d] = made
            tensors[name] = replace(tensors[name], dims=tuple(dims))
    more = number - len(solved.reason)
    grown = replace(
        solved,
        classes=np.concatenate(labels),
        reason=np.concatenate([solved.reason, np.full(more, -1, dtype=np.int64)]),
        head=np.concatenate([solved.head, np.zeros(more, dtype=bool)]),
        gone=np.concatenate([solved.gone, np.zeros(more, dtype=bool)]),
        hidden=np.concatenate([solved.hidden, np.zeros(more, dtype=bool)]),
    )
    return replace(analysis, tensors=tensors, solved=grown, experts=tuple(found))


def counts_after(experts: Sequence[Experts], kept: Mapping[str, Sequence[object]]) -> list[int]:
    """How many experts stay of each.

    Args:
        experts: of a model.
        kept: the indices that stay, by tensor and dimension.
    """
    after = []
    for some in experts:
        rows = kept.get(some.router, (None,))[0]
        after.append(some.count if rows is None else len(rows))  # type: ignore[arg-type]
    return after
