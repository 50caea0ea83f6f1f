"""What experts compute: of every item, or of the items that their router sends them.

Where each item goes to some experts, the others get what one would have got that is gone: the
computation stays. Where all experts look at all items, it goes with the expert.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import fx

from prunus._common.torch_internals import module_paths
from prunus.graph.call import base_name
from prunus.graph.labels import Array, Dim, Fixed

if TYPE_CHECKING:
    from prunus.graph.analysis import Analysis

_MOVES = frozenset(
    {"select", "t", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze", "expand",
     "clone", "detach", "alias", "to", "_to_copy", "contiguous", "unbind", "getitem", "numpy_T"}
)  # fmt: skip
Pair = tuple[Dim, int]
"""A dimension and its size."""


def shared_out(analysis: Analysis, macs: Mapping[fx.Node, float]) -> dict[fx.Node, Pair]:
    """Products of experts that all items go through, with the dimension of these experts.

    Args:
        analysis: with experts.
        macs: of each product.
    """
    found: dict[fx.Node, Pair] = {}
    for experts in analysis.experts:
        owners = dict(_owned(analysis, experts, macs))
        if owners and _of_all_items(analysis, experts, macs, owners):
            name, d = experts.places[-1]
            found |= dict.fromkeys(owners, (analysis.tensors[name].dims[d], experts.count))
    return found


def with_rows(analysis: Analysis, groups: Array) -> Array:
    """The group of each class, also of those that rows of experts had before these were units.

    What a router gives has the classes that its rows had.

    Args:
        analysis: with experts or without.
        groups: of classes, −1 for none; ``[classes]``.
    """
    found = groups.copy()
    places = {place for experts in analysis.experts for place in experts.places}
    for node, name in analysis.read.items() if places else ():
        known = analysis.known.get(node)
        for d, old in enumerate(getattr(known, "dims", ())):
            new = analysis.tensors[name].dims[d]
            if (name, d) in places and not isinstance(old, Fixed) and not isinstance(new, Fixed):
                found[analysis.solved.of(old)] = groups[analysis.solved.of(new)]
    return found


def _owned(
    analysis: Analysis, experts: Any, macs: Iterable[fx.Node]
) -> Iterator[tuple[fx.Node, int]]:
    """Products of single experts, each with the expert's number."""
    paths = {
        ".".join(name.split(".")[: of.count(".") + 2]): number
        for number, own in enumerate(experts.entries)
        for name in own
        for of in experts.lists
        if name.startswith(f"{of}.")
    }
    stacks = {name for name, d in experts.places if not d} - {name for name, _ in experts.rows}
    for node in macs:
        within = [paths[p] for m in module_paths(node) if (p := m.partition("@")[0]) in paths]
        sources = [_source(analysis, operand) for operand in node.all_input_nodes]
        taken = [i for name, i in sources if name in stacks and i is not None]
        if within or taken:
            yield node, (within or taken)[0]


def _of_all_items(
    analysis: Analysis, experts: Any, macs: Mapping[fx.Node, float], owners: Mapping[fx.Node, int]
) -> bool:
    """Whether each expert is computed for as many rows, which the router does not choose."""
    router = {name for name, _ in experts.rows}
    chosen = _behind(analysis, router)
    looked = {_rows(analysis, node, macs, router) for node in macs} - {None}
    rows: dict[int, list[float]] = defaultdict(list)
    for node, number in owners.items():
        many = _rows(analysis, node, macs, None)
        if many is None:
            continue
        rows[number].append(many)
        if any(n in chosen for n in node.all_input_nodes) and many not in looked:
            return False
    return len(rows) == experts.count and len({tuple(sorted(r)) for r in rows.values()}) == 1


def _rows(
    analysis: Analysis, node: fx.Node, macs: Mapping[fx.Node, float], of: set[str] | None
) -> float | None:
    """How many rows a parameter is multiplied with; ``None`` where no such one is.

    Args:
        analysis: of the model.
        node: the product.
        macs: of each product.
        of: names of parameters; ``None``: any.
    """
    for operand in node.all_input_nodes:
        name, number = _source(analysis, operand)
        value = analysis.tensors.get(name) if name else None
        if value is not None and len(value.shape) > 1 and (of is None or name in of):
            shape = value.shape[1:] if number is not None else value.shape
            return macs[node] / max(1, math.prod(shape))
    return None


def _source(analysis: Analysis, node: fx.Node) -> tuple[str, int | None]:
    """The tensor that an operand is, or an entry of, by name; and which entry."""
    number = None
    while node not in analysis.read:
        if node.op != "call_function" or len(node.all_input_nodes) != 1:
            return "", None
        at, entry = None, node.target is operator.getitem
        if not entry and base_name(node) not in _MOVES:
            return "", None
        if entry:
            at = node.args[1]
        elif base_name(node) == "select" and node.args[1] == 0:
            at = node.args[2]
        number = at if isinstance(at, int) else number
        node = node.all_input_nodes[0]
    return analysis.read[node], number


def _behind(analysis: Analysis, names: set[str]) -> set[fx.Node]:
    """Values that depend on some tensors."""
    found = {node for node, name in analysis.read.items() if name in names}
    for node in analysis.traced.module.graph.nodes:
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found
