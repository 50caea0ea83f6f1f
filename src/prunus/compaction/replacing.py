"""Modules whose own code cannot hold the smaller shapes, found and replaced by graphs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from prunus._common.former_module import FormerModule
from prunus._common.inputs import Inputs
from prunus._common.nested import map_tensors, own_containers, tensors_of
from prunus._common.torch_internals import AnyBatchNorm, AnyConv
from prunus.compaction.case import Case
from prunus.compaction.rewriting.alike import Traces
from prunus.compaction.rewriting.compact_graph import CompactGraph, eval_alone
from prunus.compaction.rewriting.describing import describe_as
from prunus.compaction.rewriting.submodules import (
    Called,
    as_graph,
    entering,
    record_calls,
    refuse_writing,
    whole_graph,
    within,
)
from prunus.compaction.rewriting.types_followed import follow_types
from prunus.compaction.slicing.attention import narrowings
from prunus.compaction.slicing.attributes import Attribute, standard
from prunus.compaction.slicing.surgery import Surgery
from prunus.compaction.verifying.uses import Use
from prunus.compaction.verifying.verify import Comparison, answers, difference
from prunus.errors import InputError, RunError
from prunus.graph.call import module_path
from prunus.graph.passes import Modes
from prunus.graph.trace import Traced

SIMPLE = (nn.Linear, AnyConv, AnyBatchNorm, nn.Embedding,
          nn.LayerNorm, nn.GroupNorm, nn.Sequential, nn.ModuleList, nn.ModuleDict)  # fmt: skip
"""Modules whose code holds no sizes beside the attributes that ``standard`` sees to."""

MOST_ROUNDS = 12
"""How often modules are replaced before the whole model becomes a graph."""

Seen = dict[str, tuple[Inputs, list[Tensor]]]
"""Modules' arguments in their first call, and their answers."""

Replaced = tuple[Surgery, Comparison, tuple[str, ...]]
"""What to do to the model, how it compared, and notes."""


def modules_replaced(case: Case) -> Replaced | None:
    """Replace the innermost modules that fail, then what encloses them, until all is right."""
    graphs: dict[str, nn.Module] = {}
    tried: set[str] = set()
    traces = Traces()
    fixed: list[Attribute] = standard(case.sliced(), case.rewritten.patches)
    fixed += [*narrowings(case.model, case.kept), *case.widenings()]
    for _ in range(MOST_ROUNDS):
        surgery = Surgery(case.kept, tuple(fixed), dict(graphs))
        twin = _operated(case, surgery)
        entered, seen = _watched(twin, graphs), _noted(twin, graphs)
        found = case.check(twin)
        if found.equal:
            return _without_needless(case, surgery, seen)
        broken = entered if found.problem else []
        wanted = [n for n in _failing(case, broken, graphs, tried) if n and n not in tried]
        if not wanted:
            return None
        calls = _calls(case, wanted)
        for name in sorted(wanted, key=len):
            tried.add(name)
            made = None if _within_any(name, graphs) else _graph_of(case, name, calls[name], traces)
            if made is not None:
                graphs = {n: g for n, g in graphs.items() if not n.startswith(f"{name}.")}
                graphs[name] = made
    return None


def _operated(case: Case, surgery: Surgery) -> nn.Module:
    twin = case.sliced()
    replace(surgery, kept={}).apply(twin)
    return twin


def _without_needless(case: Case, surgery: Surgery, seen: Seen) -> Replaced | None:
    """Put back whatever module the model can do with; the rest must hold in every use."""
    whole = _operated(case, replace(surgery, replaced={}))
    for name in sorted(surgery.replaced):
        if name in seen and not _answers_so(case, name, whole.get_submodule(name), *seen[name]):
            continue
        fewer = {n: g for n, g in surgery.replaced.items() if n != name}
        smaller = replace(surgery, replaced=fewer)
        if case.check(_operated(case, smaller)).equal:
            surgery = smaller
    found = case.check_everywhere(_operated(case, surgery))
    if not found.equal:
        return None
    notes = [f"became graphs: {', '.join(sorted(surgery.replaced))}"]
    still = sorted(n for n, g in surgery.replaced.items() if not _is_open(g))
    if still:
        notes.append(f"these take inputs of the example's shape only: {', '.join(still)}")
    return surgery, found, (*notes, *refusals(found))


def _noted(twin: nn.Module, names: Iterable[str]) -> Seen:
    """With what modules of a candidate are called first from now on, and what they answer.

    The candidate keeps the hooks: it is let go behind that pass.
    """
    seen: Seen = {}

    def note(name: str, _: nn.Module, args: Any, kwargs: Any, answer: Any) -> None:
        if name not in seen:  # copies: a residual sum may be written into either
            inputs: Inputs = own_containers(map_tensors(Tensor.clone, (args, kwargs)))
            seen[name] = inputs, [t.clone() for t in tensors_of(answer)]

    for name in names:
        twin.get_submodule(name).register_forward_hook(partial(note, name), with_kwargs=True)
    return seen


def _answers_so(
    case: Case, name: str, module: nn.Module, inputs: Inputs, wanted: Sequence[Tensor]
) -> bool:
    """Whether a module by itself gives what the graph in its place gave in the model."""
    start = f"{name}."
    own = {n.removeprefix(start): t for n, t in case.small.items() if n.startswith(start)}
    try:
        found, _ = answers(module, own, Use("", inputs), case.gate)
    except Exception:  # of the module's code, on shapes that it was not written for
        return False
    real = [t for t in wanted if t.is_floating_point() or t.is_complex()]
    return not difference(real or list(wanted), found)[0] > case.gate.tolerance


def refusals(found: Comparison) -> tuple[str, ...]:
    """What a model that holds graphs refuses, for its user."""
    names = "; ".join(found.refusals)
    return (f"refused when called, since no example covers it: {names}",) if names else ()


def _is_open(graph: nn.Module) -> bool:
    return isinstance(graph, CompactGraph) and any(p.guard.open for p in graph.passes)


def _calls(case: Case, names: Sequence[str]) -> dict[str, list[Called]]:
    """How modules are called with each example, in eval and in train mode."""
    calls: dict[str, list[Called]] = {name: [] for name in names}
    for inputs in case.examples:
        able = [t for t in case.cut.analysis.passes if fits(t, inputs)]
        traced = next((t for t in able if t.takes(inputs)), able[0])
        as_given = record_calls(case.model, names, inputs)
        ends = entering(case.cut, traced, as_given, inputs)
        in_mode = {False: as_given, True: _or_nothing(case.model, names, inputs)}
        for training, found in in_mode.items():
            for name, call in found.items():
                if len(tensors_of(call)) == len(ends.get(name, ())):
                    calls[name].append(Called(call, ends[name], training))
    return calls


def _or_nothing(model: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, Inputs]:
    """The calls of a pass in train mode, where the model has one."""
    try:
        return record_calls(model, names, inputs, training=True)
    except Exception:  # of the model's code: targets that are missing, a batch of one item
        return {}


def fits(traced: Traced, inputs: Inputs) -> bool:
    """Whether this is the pass in eval mode of these inputs."""
    return not traced.training and isinstance(traced.guard.arranged(*inputs), list)


def _graph_of(
    case: Case, name: str, calls: Sequence[Called], traces: Traces
) -> CompactGraph | None:
    """The graph of a module, with a pass for each kind of call."""
    if not calls:
        return None
    module = case.model.get_submodule(name)
    kept = within(case.kept, case.cut.analysis.names, module, name)
    try:
        return as_graph(module, calls, kept, traces, hidden=case.cut.analysis.hidden)
    except (InputError, RunError):
        return None


def opened_graph(case: Case) -> CompactGraph:
    """The whole model as a graph of open sizes.

    Raises:
        InputError, RunError: if it cannot be.
    """
    calls = [Called(inputs, (), mode) for inputs in case.examples for mode in (False, True)]
    hidden = case.cut.analysis.hidden
    return whole_graph(case.model, calls, case.kept, case.named_slices(), hidden=hidden)


def closed_graph(case: Case) -> CompactGraph:
    """The whole model as a graph of the example's sizes.

    Raises:
        RunError: if its code changes what it is called with.
    """
    refuse_writing(case.model, case.cut.analysis.passes)
    rewritten, passes = case.rewritten, case.cut.analysis.passes
    follow_types(rewritten.module, case.model, passes, rewritten.nodes, Traces())
    graph = describe_as(rewritten.module, case.model)
    modes = Modes.of(case.model, case.examples[0])
    trained = any(p.training for p in graph.passes)
    return eval_alone(graph) if modes.problem or (modes.numbers and not trained) else graph


def _failing(
    case: Case, broken: list[str], graphs: Mapping[str, nn.Module], tried: Container[str]
) -> list[str]:
    """Modules to replace next: where the pass breaks; the second time all of that class."""
    place = _own_code(case, broken, tried)
    if place is None:
        return _patched_modules(case, graphs)
    kind = type(case.model.get_submodule(place))
    if not any(type(case.model.get_submodule(g)) is kind for g in graphs):
        return [place]
    split = [name.split(".") for name in case.kept]  # what holds sliced tensors, and all around it
    changed = {".".join(parts[:i]) for parts in split for i in range(1, len(parts))}
    every = case.model.named_modules()
    return [n for n, m in every if type(m) is kind and (n in changed or n == place)]


def _watched(twin: nn.Module, graphs: Mapping[str, nn.Module]) -> list[str]:
    """The modules that a pass of a candidate is in, the innermost one last: where it breaks.

    The candidate keeps the hooks: it is let go behind that pass.
    """
    stack: list[str] = []

    def enter(name: str, *_: Any) -> None:
        stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    for name, module in twin.named_modules():
        if not _within_any(name, graphs) and not isinstance(module, FormerModule):
            module.register_forward_pre_hook(partial(enter, name))
            module.register_forward_hook(leave)
    return stack


def _own_code(case: Case, broken: list[str], tried: Container[str]) -> str | None:
    """The innermost module on the way to the failure whose own code is at fault."""
    guilty = (n for n in reversed(broken) if n and n not in tried)
    return next((n for n in guilty if not isinstance(case.model.get_submodule(n), SIMPLE)), None)


def _patched_modules(case: Case, graphs: Mapping[str, nn.Module]) -> list[str]:
    """Every module whose own code had a literal that changed; a graph has its own no more."""
    every = case.model.named_modules()
    there = {name for name, module in every if name and not isinstance(module, FormerModule)}
    paths = dict.fromkeys(module_path(patch.node) for patch in case.rewritten.patches)
    return [p for p in paths if p in there and not _within_any(p, graphs)]


def _within_any(path: str, outer: Iterable[str]) -> bool:
    return any(path == o or path.startswith(f"{o}.") for o in outer)
