"""What a graph holds for, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import fx

from prunus._common import torch_internals as internals
from prunus.compaction.files.document import fields_of, of_kind, wrong
from prunus.graph.guard import PLAIN, Guard, Leaf, expression


def plain_guard(guard: Guard) -> dict[str, Any]:
    """A guard as JSON: each part of an argument is its kind, its sizes and its value."""
    leaves = [
        [name, [[part.kind, list(part.sizes), _plain(part.value)] for part in parts]]
        for name, parts in guard.leaves.items()
    ]
    return {
        "names": list(guard.names),
        "defaults": {name: _plain(value) for name, value in guard.defaults.items()},
        "arguments": leaves,
        "conditions": list(guard.conditions),
    }


def guard_from(document: Any, graph: fx.Graph, where: str) -> Guard:
    """What :func:`plain_guard` wrote, from anyone; it fits the graph's inputs.

    Raises:
        InputError: if anything in it cannot be used.
    """
    where = f"{where}, guard"
    keys = "names defaults arguments conditions"
    names, defaults, arguments, conditions = fields_of(document, where, keys)
    for text in [*of_kind(list, names, where), *of_kind(Mapping, defaults, where)]:
        of_kind(str, text, where)
    leaves: dict[str, tuple[Leaf, ...]] = {}
    for entry in of_kind(list, arguments, where):
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] in leaves:
            raise wrong(where, entry, "each argument once, with its parts")
        parts = of_kind(list, entry[1], where)
        leaves[of_kind(str, entry[0], where)] = tuple(_leaf(part, where) for part in parts)
    for text in of_kind(list, conditions, where):
        expression(of_kind(str, text, where))
    call = internals.call_of(graph)
    inputs = sum(node.op == "placeholder" for node in graph.nodes)
    parts = [part for own in leaves.values() for part in own]
    given = [part for part in parts if part.kind != "value" or part.value is not None]
    if call is None or len(call[0]) != len(leaves) or inputs not in (len(parts), len(given)):
        raise wrong(where, f"{len(leaves)} arguments", f"those of a call with {inputs} inputs")
    known = {name: _value(value, where) for name, value in defaults.items()}
    return Guard(tuple(names), known, leaves, tuple(conditions))


def _leaf(part: Any, where: str) -> Leaf:
    if not isinstance(part, list) or len(part) != 3:
        raise wrong(where, part, "a kind, sizes and a value")
    kind, sizes, value = part
    for size in of_kind(list, sizes, where):
        if isinstance(size, str):
            expression(size)
        elif type(size) is not int:
            raise wrong(where, size, "whole numbers and expressions")
    return Leaf(of_kind(str, kind, where), tuple(sizes), _value(value, where))


def _plain(value: Any) -> Any:
    """JSON has no number for infinity."""
    endless = isinstance(value, float) and not math.isfinite(value)
    return {"float": str(value)} if endless else value


def _value(value: Any, where: str) -> Any:
    if isinstance(value, dict) and value.get("float") in ("inf", "-inf", "nan"):
        return float(value["float"])
    if type(value) not in PLAIN:
        raise wrong(where, value, "plain values")
    return value
