"""What a graph knows of the modules that it stands for, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunus._common.former_module import PLAIN, StandIn, parts_of, put_part, told
from prunus._common.read_only import read_only
from prunus.compaction.files.document import fields_of, name_of, of_kind, wrong
from prunus.errors import InputError


def plain_parts(graph: nn.Module) -> dict[str, Any]:
    """Of each module its class and attributes; names that its code reads and methods once.

    >>> from prunus._common.former_module import put_part
    >>> root = StandIn()
    >>> vars(put_part(root, "a")).update(stands_for="Linear", fixed=frozenset(["scale"]), scale=2.0)
    >>> plain_parts(root)["modules"]["a"]
    ['Linear', {'scale': 2.0}]
    """
    modules: dict[str, Any] = {}
    methods: dict[str, list[str]] = {}
    fixed: set[str] = set()
    own = {"": graph} if isinstance(graph, StandIn) else {}
    for path, part in {**own, **parts_of(graph)}.items():
        if not all(_good(key, dotted=True) for key in path.split(".") if path):
            continue
        kind = part.stands_for if _good(part.stands_for) else ""
        values = {k: v for k, v in told(part).items() if _may_be_named(k) and _is_plain(v)}
        if not path:  # its other ones stand beside
            values = {k: v for k, v in values.items() if isinstance(v, (list, dict)) and v}
        modules[path] = [kind, values]
        methods[kind] = sorted({*methods.get(kind, ()), *filter(_good, part.methods)})
        fixed |= set(filter(_good, part.fixed))
    return {"fixed": sorted(fixed), "methods": methods, "modules": modules}


def take_parts(graph: StandIn, given: Any) -> None:
    """Let a graph know what :func:`plain_parts` wrote, from anyone.

    Raises:
        InputError: if it is damaged, or does not fit the graph.
    """
    fixed, methods, modules = fields_of(given, "parts", "fixed methods modules")
    known = {k: _names(v) for k, v in of_kind(Mapping, methods, "parts, methods").items()}
    read = frozenset(_names(fixed)) - set(dir(type(graph))) - vars(nn.Module()).keys()
    tensors = {n for n, _ in (*graph.named_parameters(), *graph.named_buffers())}
    for path, entry in of_kind(Mapping, modules, "parts, modules").items():
        where = f"parts, module {path[:80]!r}"
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in known:
            raise wrong(where, entry, "a class whose methods are listed, and attributes")
        outer = path.split(".")
        if path and {".".join(outer[:i]) for i in range(1, len(outer) + 1)} & tensors:
            raise wrong(where, "a module", "what is no tensor")
        kind = name_of(entry[0], where) if entry[0] else ""
        part = put_part(graph, name_of(path, where, dotted=True)) if path else graph
        vars(part).update(stands_for=kind, methods=tuple(known[entry[0]]), fixed=read)
        for key, value in of_kind(Mapping, entry[1], where).items():
            if not _may_be_named(key) or not _is_plain(value):
                raise wrong(f"{where}, {key[:80]!r}", value, "plain values")
            if key not in vars(part):
                vars(part)[key] = read_only(value, key) if key in read else value


_OWN = ("training", "stands_for", "methods", "fixed", "followed", "gradient")


def _may_be_named(key: str) -> bool:
    return _good(key) and not key.startswith("__") and key not in _OWN


def _good(name: str, *, dotted: bool = False) -> bool:
    try:
        return bool(name_of(name, "", dotted=dotted))
    except InputError:
        return False


def _names(given: Any) -> list[str]:
    return [name_of(name, "parts, a name") for name in of_kind(list, given, "parts")]


def _is_plain(value: Any) -> bool:
    """Whether JSON gives the same value back."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return type(value) in PLAIN
