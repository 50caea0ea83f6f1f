"""Modules whose own code cannot hold the smaller shapes, found and replaced by graphs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from prunus._common.inputs import Inputs
from prunus._common.torch_internals import AnyBatchNorm, AnyConv
from prunus.compaction.case import Case
from prunus.compaction.rewriting.submodules import Ends, as_graph, entering, record_calls, within
from prunus.compaction.slicing.attention import narrowings
from prunus.compaction.slicing.attributes import Attribute, standard
from prunus.compaction.slicing.surgery import Surgery
from prunus.compaction.verifying.verify import Comparison
from prunus.errors import InputError, RunError
from prunus.graph.call import module_path

SIMPLE = (nn.Linear, AnyConv, AnyBatchNorm, nn.Embedding,
          nn.LayerNorm, nn.GroupNorm, nn.Sequential, nn.ModuleList, nn.ModuleDict)  # fmt: skip
"""Modules whose code holds no sizes beside the attributes that ``standard`` sees to."""

MOST_ROUNDS = 12
"""How often modules are replaced before the whole model becomes a graph."""

Replaced = tuple[Surgery, Comparison, tuple[str, ...]]
"""What to do to the model, how it compared, and notes."""


def modules_replaced(case: Case) -> Replaced | None:
    """Replace the innermost modules that fail, then what encloses them, until all is right."""
    graphs: dict[str, nn.Module] = {}
    tried: set[str] = set()
    closed: set[str] = set()  # modules whose graphs have no open sizes
    fixed: list[Attribute] = standard(case.sliced(), case.rewritten.patches)
    fixed += narrowings(case.model, case.kept)
    for _ in range(MOST_ROUNDS):
        surgery = Surgery(case.kept, tuple(fixed), dict(graphs))
        twin = _operated(case, surgery)
        found = case.check(twin)
        if found.equal:
            return _without_needless(case, surgery, found, closed)
        wanted = [n for n in _failing(case, twin, graphs, tried) if n and n not in tried]
        if not wanted:
            return None
        calls = record_calls(case.model, wanted, case.plain_inputs())
        ends = entering(case.cut, calls, case.plain_inputs())
        for name in sorted(wanted, key=len):
            tried.add(name)
            made = None if _within_any(name, graphs) else _graph_of(case, name, calls, ends)
            if made is not None:
                graphs = {n: g for n, g in graphs.items() if not n.startswith(f"{name}.")}
                graphs[name], opened = made
                closed |= set() if opened else {name}
    return None


def _operated(case: Case, surgery: Surgery) -> nn.Module:
    twin = case.sliced()
    replace(surgery, kept={}).apply(twin)
    return twin


def _without_needless(
    case: Case, surgery: Surgery, found: Comparison, closed: set[str]
) -> Replaced:
    """Put back whatever module the model can do with."""
    for name in sorted(surgery.replaced):
        fewer = {n: g for n, g in surgery.replaced.items() if n != name}
        smaller = replace(surgery, replaced=fewer)
        again = case.check(_operated(case, smaller))
        if again.equal:
            surgery, found = smaller, again
    notes = [f"became graphs: {', '.join(sorted(surgery.replaced))}"]
    still = sorted(closed & surgery.replaced.keys())
    if still:
        notes.append(f"these take inputs of the example's shape only: {', '.join(still)}")
    return surgery, found, tuple(notes)


def _graph_of(
    case: Case, name: str, calls: Mapping[str, Inputs], ends: Mapping[str, Ends]
) -> tuple[nn.Module, bool] | None:
    """The graph of a module, and whether it takes inputs of other sizes."""
    if name not in calls:
        return None
    module = case.model.get_submodule(name)
    kept = within(case.kept, case.cut.analysis.names, module, name)
    try:
        return as_graph(module, calls[name], kept, ends[name])
    except (InputError, RunError):
        return None


def _failing(
    case: Case, twin: nn.Module, graphs: Mapping[str, nn.Module], tried: Container[str]
) -> list[str]:
    """Modules to replace next: where the pass breaks; the second time all of that class."""
    place = _own_code(case, _broken(case, twin, graphs), tried)
    if place is None:
        return _patched_modules(case, graphs)
    kind = type(case.model.get_submodule(place))
    if not any(type(case.model.get_submodule(g)) is kind for g in graphs):
        return [place]
    split = [name.split(".") for name in case.kept]  # what holds sliced tensors, and all around it
    changed = {".".join(parts[:i]) for parts in split for i in range(1, len(parts))}
    every = case.model.named_modules()
    return [n for n, m in every if type(m) is kind and (n in changed or n == place)]


def _broken(case: Case, twin: nn.Module, graphs: Mapping[str, nn.Module]) -> list[str]:
    """The modules that had been entered when the pass broke, the innermost one last.

    The candidate keeps the hooks: it is the last thing that is asked of it.
    """
    stack: list[str] = []

    def enter(name: str, *_: Any) -> None:
        stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    for name, module in twin.named_modules():
        if not _within_any(name, graphs):
            module.register_forward_pre_hook(partial(enter, name))
            module.register_forward_hook(leave)
    return stack if case.check(twin).problem else []


def _own_code(case: Case, broken: list[str], tried: Container[str]) -> str | None:
    """The innermost module on the way to the failure whose own code is at fault."""
    guilty = (n for n in reversed(broken) if n and n not in tried)
    return next((n for n in guilty if not isinstance(case.model.get_submodule(n), SIMPLE)), None)


def _patched_modules(case: Case, graphs: Mapping[str, nn.Module]) -> list[str]:
    """Every module whose own code had a literal that changed; a graph has its own no more."""
    there = {name for name, _ in case.model.named_modules()} - {""}
    paths = dict.fromkeys(module_path(patch.node) for patch in case.rewritten.patches)
    return [p for p in paths if p in there and not _within_any(p, graphs)]


def _within_any(path: str, outer: Iterable[str]) -> bool:
    return any(path == o or path.startswith(f"{o}.") for o in outer)
