"""One way after the other to a smaller model, each verified before it is taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from prunus.compaction.case import Case, case_of
from prunus.compaction.cut import IndexCut, way_out
from prunus.compaction.experts import without_experts
from prunus.compaction.replacing import closed_graph, modules_replaced, opened_graph, refusals
from prunus.compaction.rewriting.compact_graph import CompactGraph, take_mode_of_operators
from prunus.compaction.slicing.attention import narrowings
from prunus.compaction.slicing.attributes import Attribute, guesses, standard
from prunus.compaction.slicing.configs import configured
from prunus.compaction.slicing.limits import Limits, unread
from prunus.compaction.slicing.surgery import Surgery, refresh
from prunus.compaction.verifying.stepping import first_differing
from prunus.compaction.verifying.values import WHOLE, Lazy
from prunus.compaction.verifying.verify import Comparison
from prunus.errors import InputError, RunError
from prunus.graph.call import describe, some
from prunus.graph.trace import Traced

ROUTES = {
    "sliced": "the model's own modules, their tensors sliced",
    "attributes": "the model's own modules, sliced, with the sizes they store updated",
    "modules": "the model's own class; some modules became graphs",
    "graph": "the whole model became a graph",
}


@dataclass(frozen=True)
class CompactionPlan:
    """A verified way to a smaller model.

    Attributes:
        route: a key of ``ROUTES``.
        surgery: what to do to the model; for the route ``graph`` only what is kept.
        graph: the smaller graph, for that route.
        comparison: how masked and compact model compared.
        notes: what a user should know.
        traced: the smaller model's passes, so that it need not be traced again.
    """

    route: str
    surgery: Surgery
    graph: fx.GraphModule | None
    comparison: Comparison
    notes: tuple[str, ...] = ()
    traced: tuple[Traced, ...] = ()


NOT_COMPARED = "gradients were not compared: not all values of a model this large are held at once"


def find_plan(
    model: nn.Module, cut: IndexCut, example: Any, *, whole: int = WHOLE
) -> CompactionPlan:
    """The first route whose result equals the masked model.

    The model itself is not changed. One of more than ``whole`` bytes is never held in float64:
    each of its matrices is converted when an operator reads it, and let go behind it.

    Args:
        model: dense, or with the masks of the cut applied.
        cut: what goes.
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        whole: bytes of parameters and buffers.

    Raises:
        RunError: if none does, naming the first operator whose value differs.
    """
    if cut.analysis.experts:
        surgery, comparison, notes = without_experts(model, cut, example, whole=whole)
        plan = CompactionPlan("attributes", surgery, None, comparison, notes)
        return _limited(plan, model, cut)
    case, traced = case_of(model, cut, example, whole=whole), cut.analysis.traced
    found = _first_route(case) if case.kept else None
    if found is None:
        graph = case.check(case.rewritten.module)
        recorded = traced.how == "recorder"  # whose decisions may be other ones
        if not graph.equal and (case.kept or not recorded):
            _fail(case, graph)
        nothing = CompactionPlan("sliced", Surgery({}), None, graph)  # of the model's own tensors
        found = _whole(case) if case.kept else nothing
    found = _for_inference(found, case)
    notes = (*cut.analysis.notes, *([case.gate.note] if case.gate.note else []), *found.notes)
    return _limited(replace(found, notes=notes, traced=case.rewritten.traced), model, cut)


def _for_inference(plan: CompactionPlan, case: Case) -> CompactionPlan:
    """Graphs that answer alike and would train otherwise refuse a backward pass.

    So does what is made of one that refuses it: there is nothing to compare with.
    """
    graphs = [g for g in (plan.graph, *plan.surgery.replaced.values()) if g is not None]
    before = (m.gradient for m in case.model.modules() if isinstance(m, CompactGraph))
    name = plan.comparison.gradient or next(filter(None, before), "")
    if not name:
        lazy = graphs and any(isinstance(t, Lazy) for t in case.small.values())
        return replace(plan, notes=(*plan.notes, NOT_COMPARED)) if lazy else plan
    plan = replace(plan, comparison=replace(plan.comparison, gradient=name))
    for graph in graphs:
        if isinstance(graph, CompactGraph):
            vars(graph)["gradient"] = name
    note = (
        f"for inference alone: the gradient of '{name}' would not be the masked model's, so a "
        "backward pass is refused"
    )
    return replace(plan, notes=(*plan.notes, note))


def _limited(plan: CompactionPlan, model: nn.Module, cut: IndexCut) -> CompactionPlan:
    """A model of its own class refuses what was seen to go wrong; a graph knows its calls."""
    if plan.graph is not None:
        return plan
    seen = {name for node, name in cut.analysis.read.items() if node.users}
    inside = tuple(f"{name}." for name in (*plan.surgery.replaced, *plan.surgery.gone))
    names = cut.analysis.names
    never = unread(model, names, seen | {n for n in cut.analysis.tensors if _like(cut, n)})
    limits = Limits(
        dict(plan.comparison.flags), tuple(n for n in never if not n.startswith(inside))
    )
    note = (
        (f"no example visits {some(limits.unread)}: what is cut is not for them",)
        if limits.unread
        else ()
    )
    surgery = replace(plan.surgery, limits=limits)
    return replace(plan, surgery=surgery, notes=(*plan.notes, *note))


def _like(cut: IndexCut, name: str) -> bool:
    """Whether a tensor is of an entry that is cut as others that some pass visits."""
    return any(name == entry or name.startswith(f"{entry}.") for entry in cut.analysis.like)


def _first_route(case: Case) -> CompactionPlan | None:
    """The model's own class, with all of its modules or with graphs for some."""
    kept = _modules_kept(case)
    if kept is not None:
        return kept
    replaced = modules_replaced(case)
    if replaced is None:
        return None
    surgery, comparison, notes = replaced
    return CompactionPlan("modules", surgery, None, comparison, notes)


def _modules_kept(case: Case) -> CompactionPlan | None:
    """The first guess at the numbers that modules keep that is right, less what is not needed."""
    twin = case.sliced()
    narrow = narrowings(case.model, case.kept)
    wide = case.widenings()
    fixed = [*standard(twin, case.rewritten.patches), *narrow, *wide]
    _set(twin, fixed)
    refresh(twin)
    shared = configured(case.model, case.cut)
    for told in (shared, []) if shared else ([],):
        _set(twin, told)
        trials = guesses(case.model, case.cut, case.rewritten.patches)
        for guess in trials[: 3 if told else None]:
            _set(twin, guess)
            found = case.check_everywhere(twin)
            if found.equal:
                guilty = _needed(case, twin, guess, found)
                adapted = narrow or wide or guilty or _reads(case, twin, told)
                surgery = Surgery(case.kept, (*fixed, *told, *guilty))
                route = "attributes" if adapted else "sliced"
                return CompactionPlan(route, surgery, None, found, refusals(found))
            _set(twin, guess, back=True)
        _set(twin, told, back=True)
    return None


def _needed(
    case: Case, twin: nn.Module, guess: list[Attribute], right: Comparison
) -> list[Attribute]:
    """Those of a right guess that the model cannot do without."""
    needed = list(guess)
    for name in dict.fromkeys(a.name for a in guess):
        own = [a for a in guess if a.name == name]
        _set(twin, own, back=True)
        found = case.check_everywhere(twin)
        if found.equal and found.flags == right.flags:
            needed = [a for a in needed if a.name != name]
        else:
            _set(twin, own)
    return needed


def _reads(case: Case, twin: nn.Module, told: list[Attribute]) -> bool:
    """Whether the model's code needs the new sizes in its configuration."""
    _set(twin, told, back=True)
    return bool(told) and not case.check_everywhere(twin).equal


def _set(twin: nn.Module, attributes: Iterable[Attribute], *, back: bool = False) -> None:
    for attribute in attributes:
        attribute.set(twin, back=back)


def _whole(case: Case) -> CompactionPlan:
    """The whole graph, of open sizes where that one is as right.

    Raises:
        RunError: if neither equals the masked model in every use.
    """
    try:
        graph = opened_graph(case)
        take_mode_of_operators(graph, case.model)
        found = case.check_everywhere(graph)
    except (InputError, RunError):
        found = None
    if found is None or not found.equal:
        graph = closed_graph(case)
        take_mode_of_operators(graph, case.model)
        found = case.check_everywhere(graph)
    if not found.equal:
        _fail(case, found)
    closed = not any(p.guard.open for p in graph.passes)
    notes = ("the graph takes inputs of the example's shape only",) if closed else ()
    return CompactionPlan("graph", Surgery(case.kept), graph, found, (*notes, *refusals(found)))


def _fail(case: Case, found: Comparison) -> None:
    states = (case.masked, case.small)
    where = first_differing(case.cut, case.rewritten, states, case.inputs, case.gate)
    what = found.problem or f"they differ by {found.error:.2g}"
    place = "" if where is None else f"; the first operator that differs is {describe(where)}"
    raise RunError(
        f"the compact model does not equal the masked one ({what}{place}), so none was made; the "
        f"masked model is right and as it was. {way_out(case.cut, where)}"
    )
