"""What a graph knows of the modules whose place it takes, and what of them it lacks."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunus._common.former_module import PLAIN, StandIn, put_part
from prunus._common.modules import joined
from prunus._common.read_only import ReadOnlyDict, ReadOnlyList, read_only
from prunus.compaction.rewriting.compact_graph import CompactGraph
from prunus.compaction.rewriting.read_names import names_read


def describe_as(graph: CompactGraph, original: nn.Module) -> CompactGraph:
    """Let a graph know whose place it takes, module by module.

    Args:
        graph: smaller, without attributes.
        original: the module before the cut.
    """
    fixed = names_read(original) - set(dir(CompactGraph)) - vars(graph).keys()
    _tell(graph, original, fixed)
    smaller = _smaller(graph, original)
    older: list[str] = []  # graphs, of which no operator says in what part it was
    for path, module in original.named_modules():
        if isinstance(module, CompactGraph):
            older.append(joined(path, ""))
        if path:
            part = put_part(graph, path)
            _tell(part, module, fixed)
            vars(part)["followed"] = not path.startswith(tuple(older))
            sizes = any(name.startswith(f"{path}.") for name in smaller)
            take_attributes(part, module, sizes=not sizes)
            vars(part).pop("_before_pruning", None)  # of sizes that the part does not know
    return graph


def _tell(part: StandIn, module: nn.Module, fixed: frozenset[str]) -> None:
    kind = type(module)
    if isinstance(module, StandIn):
        vars(part).update(stands_for=module.stands_for, methods=module.methods)
    else:
        own = {n for n in dir(kind) if not n.startswith("_") and callable(getattr(kind, n, None))}
        methods = tuple(sorted(own - set(dir(nn.Module)) - set(dir(type(part)))))
        vars(part).update(stands_for=kind.__name__, methods=methods)
    vars(part)["fixed"] = fixed


def _smaller(graph: nn.Module, original: nn.Module) -> list[str]:
    """The names of tensors that lost indices."""
    before = {n: t.shape for n, t in (*original.named_parameters(), *original.named_buffers())}
    now = (*graph.named_parameters(), *graph.named_buffers())
    return [n for n, t in now if n in before and before[n] != t.shape]


def take_attributes(graph: StandIn, original: nn.Module, *, sizes: bool = True) -> None:
    """Numbers, words, flags and lists of them that code may ask a replaced module for.

    Args:
        graph: gets them; lists that the model's code reads cannot be changed.
        original: has them.
        sizes: whether whole numbers are among them: a cut may have made them others.
    """
    for key, value in vars(original).items():
        if key in vars(graph) or not _is_plain(value) or (type(value) is int and not sizes):
            continue
        vars(graph)[key] = read_only(value, key) if key in graph.fixed else value


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple, ReadOnlyList):
        return all(map(_is_plain, value))
    if type(value) in (dict, ReadOnlyDict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    return type(value) in PLAIN
