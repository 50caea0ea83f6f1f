"""Types in a graph that the code took from its inputs or weights: ``zeros(…, dtype=x.dtype)``.

A trace has the type that they had, and where a cast did nothing, what was cast is taken for the
cast. Which types follow, and what is read, shows in a second trace, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus._common.float_types import float_type
from prunus._common.modules import detached_copy
from prunus._common.nested import map_tensors
from prunus._common.torch_internals import OpOverload, pytree
from prunus.compaction.rewriting.alike import Traces
from prunus.compaction.rewriting.compact_graph import CompactGraph
from prunus.graph.call import base_name
from prunus.graph.trace import Traced

Place = int | str
"""Of an argument, by number or by name."""

LARGEST = 2**27
"""Bytes of parameters of which a second copy is made."""


def follow_types(
    graph: CompactGraph,
    module: nn.Module,
    passes: Sequence[Traced],
    nodes: Mapping[fx.Node, fx.Node],
    traces: Traces,
) -> None:
    """Let a graph answer in the types of its weights, where the code does.

    Args:
        graph: of a module, smaller; changed in place.
        module: the dense one.
        passes: of it, in the graph's order.
        nodes: of the passes to those of the graph.
        traces: passes that were traced before.
    """
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    if size > LARGEST or any(p.is_meta for p in module.parameters()):
        return
    twin = None
    for traced, one in zip(passes, graph.passes, strict=True):
        if not any(True for node in traced.module.graph.nodes for _ in _types(node)):
            continue
        twin = detached_copy(module).double() if twin is None else twin
        like = _weight(graph, one.graph) or _input(one.graph)
        if like is None:
            continue
        for node, wide, same in _pairs(twin, traced, traces):
            _read_what_was_cast(node, wide, same, nodes)
            other, made = dict(_types(wide)), nodes[node]
            for place, own in _types(node):
                if other.get(place, own) is not own and dict(_types(made)).get(place) is own:
                    _put(one.graph, made, place, like)
    if twin is not None:
        graph.recompile()


def _types(node: fx.Node) -> Iterator[tuple[Place, torch.dtype]]:
    """The floating-point and complex types among the arguments of an operator."""
    if node.op == "call_function":
        given: list[tuple[Place, Any]] = [*enumerate(node.args), *node.kwargs.items()]
        for place, value in given:
            if isinstance(value, torch.dtype) and (value.is_floating_point or value.is_complex):
                yield place, value


Same = Mapping[fx.Node, fx.Node]
"""Of the nodes of one trace those of another."""


def _pairs(
    twin: nn.Module, traced: Traced, traces: Traces
) -> Iterator[tuple[fx.Node, fx.Node, Same]]:
    """The operators of a pass, each with that of the pass in float64, if those are the same."""

    def widened(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor.clone()

    inputs, one = map_tensors(widened, traced.inputs), _operators(traced.module.graph)
    for dynamic in (False, True) if traced.open else (False,):  # the cheap one first
        how = {"dynamic": dynamic, "training": traced.training}
        try:
            two = _operators(traces.trace(twin, inputs, closed=(), **how).module.graph)
        except Exception:  # of the model's code, which may know one type alone
            return
        if [n.target for n in one] == [n.target for n in two]:
            same = dict(zip(two, one, strict=True))
            yield from ((node, wide, same) for node, wide in zip(one, two, strict=True))
            return


def _operators(graph: fx.Graph) -> list[fx.Node]:
    """What gives tensors, but weights; and the answers."""
    return [
        n
        for n in graph.nodes
        if n.op in ("placeholder", "output")
        or (isinstance(n.target, OpOverload) and isinstance(n.meta.get("val"), _TENSORS))
    ]


_TENSORS = (Tensor, tuple, list)


def _read_what_was_cast(
    node: fx.Node, wide: fx.Node, same: Same, nodes: Mapping[fx.Node, fx.Node]
) -> None:
    """Let an operator read what it reads in float64, where that differs by casts without effect."""
    made = nodes[node]
    (own, _), (other, _), (now, spec) = (
        pytree.tree_flatten((n.args, dict(n.kwargs))) for n in (node, wide, made)
    )
    if not len(own) == len(other) == len(now):
        return
    for i, (read, there) in enumerate(zip(own, other, strict=True)):
        known = isinstance(there, fx.Node) and there in same and now[i] is nodes.get(read)
        if known and same[there] in _cast_from(read):
            now[i] = nodes[same[there]]
    made.args, made.kwargs = pytree.tree_unflatten(now, spec)


def _cast_from(node: fx.Node) -> Iterator[fx.Node]:
    """What a value was before it was cast."""
    while isinstance(node, fx.Node) and base_name(node) == "to":
        node = node.args[0]  # type: ignore[assignment]
        yield node


def _weight(module: nn.Module, graph: fx.Graph) -> fx.Node | None:
    """A weight that a graph reads before anything else."""
    floats = {n for n, p in module.named_parameters() if p.is_floating_point()}
    every: Iterable[fx.Node] = graph.nodes
    for node in every:
        if node.op == "call_function":
            return None
        if node.op == "get_attr" and node.target in floats:
            return node
    return None


def _input(graph: fx.Graph) -> fx.Node | None:
    """An input of floating-point numbers."""
    every: Iterable[fx.Node] = graph.nodes
    for node in every:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.is_floating_point():
            return node
    return None


def _put(graph: fx.Graph, node: fx.Node, place: Place, like: fx.Node) -> None:
    """Compute a type, instead of the one that was traced."""
    traced = node.args[place] if isinstance(place, int) else node.kwargs[place]
    with graph.inserting_before(node):
        made = graph.call_function(float_type, (like, traced))
    if isinstance(place, int):
        node.update_arg(place, made)
    else:
        node.update_kwarg(place, made)
