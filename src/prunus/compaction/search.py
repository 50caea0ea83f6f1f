"""One way after the other to a smaller model, each verified before it is taken."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree

from prunus._common.inputs import Inputs
from prunus._common.modules import detached_copy, shared_copy
from prunus.compaction.cut import IndexCut, Kept, masks_of
from prunus.compaction.rewriting.rewrite import Rewritten, rewrite
from prunus.compaction.rewriting.submodules import (
    Ends,
    as_graph,
    entering,
    record_calls,
    whole_graph,
    within,
)
from prunus.compaction.slicing.attributes import Attribute, guesses, standard
from prunus.compaction.slicing.configs import configured
from prunus.compaction.slicing.parameters import slices
from prunus.compaction.slicing.surgery import Surgery, refresh
from prunus.compaction.verifying.values import (
    WHOLE,
    State,
    held,
    random_like,
    small_state,
    values_for_test,
)
from prunus.compaction.verifying.verify import (
    FLOAT64,
    META,
    OWN_TYPE,
    Comparison,
    compare,
    difference,
    first_difference,
    outputs,
    traced_outputs,
)
from prunus.errors import InputError, RunError, first_line
from prunus.graph.call import module_path
from prunus.graph.trace import Traced
from prunus.types import Masks

ROUTES = {
    "sliced": "the model's own modules, their tensors sliced",
    "attributes": "the model's own modules, sliced, and numbers that they keep changed",
    "modules": "the model's own class; some modules became graphs",
    "graph": "the whole model became a graph",
}

SIMPLE = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.Embedding,
          nn.LayerNorm, nn.GroupNorm, nn.Sequential, nn.ModuleList, nn.ModuleDict)  # fmt: skip
"""Modules whose code holds no sizes beside the attributes that ``standard`` sees to."""

MOST_ROUNDS = 12
"""How often modules are replaced before the whole model becomes a graph."""


@dataclass(frozen=True)
class CompactionPlan:
    """A verified way to a smaller model.

    Attributes:
        route: a key of ``ROUTES``.
        surgery: what to do to the model; for the route ``graph`` only what is kept.
        graph: the smaller graph, for that route.
        comparison: how masked and compact model compared.
        notes: what a user should know.
        traced: the smaller model's operators, so that it need not be traced again.
    """

    route: str
    surgery: Surgery
    graph: fx.GraphModule | None
    comparison: Comparison
    notes: tuple[str, ...] = ()
    traced: Traced | None = None


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
    return _Search(model, cut, example, whole).find()


States = tuple[State, State]


class _Search:
    def __init__(self, model: nn.Module, cut: IndexCut, example: Any, whole: int) -> None:
        self.model, self.cut = model, cut
        names = cut.analysis.names  # constants of the code are sliced in graphs alone
        self.kept: Kept = {n: k for n, k in cut.kept().items() if n in names}
        self.masks: Masks = masks_of(cut, dict(model.named_parameters()))
        self.inputs: Inputs = random_like(example)
        self.closed: set[str] = set()  # modules whose graphs have no open sizes
        self.gate = META if any(p.is_meta for p in model.parameters()) else FLOAT64
        states, self.expected = self._expected(values_for_test(model, self.masks, whole=whole))
        self.effect = self._effect(states[0])
        self.masked = states[1]
        self.small: State = small_state(self.masked, self.kept, cut.analysis.names)
        self.slices = slices(model, self.kept)
        self.rewritten: Rewritten = rewrite(cut, self._named_slices())

    def _expected(self, states: States) -> tuple[States, list[Tensor]]:
        """The masked model's outputs, and the values that they were found with."""
        if self.gate is META:
            return states, traced_outputs(self.cut.analysis.traced)
        try:
            return states, outputs(self.model, states[1], self.inputs, self.gate)
        except Exception as error:
            in_memory = held(states)
            if in_memory is not None:  # some code asks tensors for more than operators do
                return self._expected(in_memory)
            if not isinstance(error, (RuntimeError, NotImplementedError)):
                raise
            why = first_line(error, kind=False)  # an operator without float64
            self.gate = replace(OWN_TYPE, note=f"{OWN_TYPE.note} ({why})")
            self.inputs = self._plain_inputs()
            return states, outputs(self.model, states[1], self.inputs, self.gate)

    def _effect(self, dense: State) -> float:
        if self.gate is META:
            return float("nan")
        return difference(outputs(self.model, dense, self.inputs, self.gate), self.expected)[0]

    def find(self) -> CompactionPlan:
        graph = self.check(self.rewritten.module)
        recorded = self.cut.analysis.traced.how == "recorder"  # its decisions may be other ones
        if not graph.equal and not recorded:
            self._fail(graph)
        found = (
            self._modules_kept() or self._modules_replaced()
            if self.kept
            else CompactionPlan("sliced", Surgery({}), None, graph)
        )
        if found is None and not graph.equal:
            self._fail(graph)
        found = found or self._whole(graph)
        known = (*self.cut.analysis.traced.notes, *([self.gate.note] if self.gate.note else []))
        module: nn.Module = self.rewritten.module
        if found.graph is module:  # training switches the one, the analysis reads the other
            module = shared_copy(module)
        assert isinstance(module, fx.GraphModule)
        smaller = replace(self.cut.analysis.traced, module=module)
        return replace(found, notes=(*known, *found.notes), traced=smaller)

    def check(self, model: nn.Module) -> Comparison:
        """Compare a candidate with the masked model."""
        found = compare(self.expected, model, self.small, self.inputs, self.gate)
        return replace(found, effect=self.effect)

    def _modules_kept(self) -> CompactionPlan | None:
        twin = self._sliced()
        fixed = standard(twin, self.rewritten.patches)
        for attribute in fixed:
            attribute.set(twin)
        refresh(twin)
        shared = configured(self.model, self.cut)
        for told in (shared, []) if shared else ([],):
            trials = guesses(self.model, self.cut, self.rewritten.patches)
            found = self._guessed(twin, told, trials[: 3 if told else None])
            if found is not None:
                guilty, comparison = found
                changed = bool(guilty) or self._reads(twin, told)
                route = "attributes" if changed else "sliced"
                return CompactionPlan(
                    route, Surgery(self.kept, (*fixed, *told, *guilty)), None, comparison
                )
        return None

    def _guessed(
        self, twin: nn.Module, told: list[Attribute], trials: list[list[Attribute]]
    ) -> tuple[list[Attribute], Comparison] | None:
        """The first trial that is right, less what it can do without."""
        for attribute in told:
            attribute.set(twin)
        for guess in trials:
            for attribute in guess:
                attribute.set(twin)
            found = self.check(twin)
            if found.equal:
                return self._needed(twin, guess), found
            for attribute in guess:
                attribute.set(twin, back=True)
        for attribute in told:
            attribute.set(twin, back=True)
        return None

    def _reads(self, twin: nn.Module, told: list[Attribute]) -> bool:
        """Whether the model's code needs the new sizes in its configuration."""
        for attribute in told:
            attribute.set(twin, back=True)
        needed = bool(told) and not self.check(twin).equal
        for attribute in told:
            attribute.set(twin)
        return needed

    def _needed(self, twin: nn.Module, guess: list[Attribute]) -> list[Attribute]:
        """Those of a right guess that the model cannot do without."""
        needed = list(guess)
        for name in dict.fromkeys(a.name for a in guess):
            own = [a for a in guess if a.name == name]
            for attribute in own:
                attribute.set(twin, back=True)
            if self.check(twin).equal:
                needed = [a for a in needed if a.name != name]
            else:
                for attribute in own:
                    attribute.set(twin)
        return needed

    def _modules_replaced(self) -> CompactionPlan | None:
        """Replace the innermost modules that fail, then what encloses them."""
        graphs: dict[str, nn.Module] = {}
        tried: set[str] = set()
        fixed = standard(self._sliced(), self.rewritten.patches)
        for _ in range(MOST_ROUNDS):
            surgery = Surgery(self.kept, tuple(fixed), dict(graphs))
            twin = self._operated(surgery)
            found = self.check(twin)
            if found.equal:
                return self._without_needless(surgery, found)
            wanted = [n for n in self._failing(twin, graphs, tried) if n and n not in tried]
            if not wanted:
                return None
            calls = record_calls(self.model, wanted, self._plain_inputs())
            ends = entering(self.cut, calls, self._plain_inputs())
            for name in sorted(wanted, key=len):
                tried.add(name)
                made = None if _within_any(name, graphs) else self._graph_of(name, calls, ends)
                if made is not None:
                    graphs = {n: g for n, g in graphs.items() if not n.startswith(f"{name}.")}
                    graphs[name] = made
        return None

    def _operated(self, surgery: Surgery) -> nn.Module:
        twin = self._sliced()
        replace(surgery, kept={}).apply(twin)
        return twin

    def _without_needless(self, surgery: Surgery, found: Comparison) -> CompactionPlan:
        """Put back whatever module the model can do with."""
        for name in sorted(surgery.replaced):
            fewer = {n: g for n, g in surgery.replaced.items() if n != name}
            smaller = replace(surgery, replaced=fewer)
            again = self.check(self._operated(smaller))
            if again.equal:
                surgery, found = smaller, again
        notes = [f"became graphs: {', '.join(sorted(surgery.replaced))}"]
        closed = sorted(self.closed & surgery.replaced.keys())
        if closed:
            notes.append(f"of these take inputs of the example's shape only: {', '.join(closed)}")
        return CompactionPlan("modules", surgery, None, found, tuple(notes))

    def _graph_of(
        self, name: str, calls: Mapping[str, Inputs], ends: Mapping[str, Ends]
    ) -> nn.Module | None:
        if name not in calls:
            return None
        module = self.model.get_submodule(name)
        kept = within(self.kept, self.cut.analysis.names, module, name)
        try:
            made, opened = as_graph(module, calls[name], kept, ends[name])
        except (InputError, RunError, AssertionError):
            return None
        if not opened:
            self.closed.add(name)
        return made

    def _failing(
        self, twin: nn.Module, graphs: Mapping[str, nn.Module], tried: Container[str]
    ) -> list[str]:
        """Modules to replace next: where the pass breaks; the second time all of that class."""
        place = self._own_code(self._broken(twin, graphs), tried)
        if place is None:
            return self._patched_modules(graphs)
        kind = type(self.model.get_submodule(place))
        if not any(type(self.model.get_submodule(g)) is kind for g in graphs):
            return [place]
        changed = self._holders()
        return [
            n
            for n, m in self.model.named_modules()
            if type(m) is kind and (n in changed or n == place)
        ]

    def _broken(self, twin: nn.Module, graphs: Mapping[str, nn.Module]) -> list[str]:
        """The modules that had been entered when the pass broke, the innermost one last."""
        stack: list[str] = []
        hooks = []
        for name, module in twin.named_modules():
            if _within_any(name, graphs):
                continue

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                stack.append(name)

            def leave(module: nn.Module, args: Any, out: Any) -> None:
                stack.pop()

            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave))
        try:
            found = compare(self.expected, twin, self.small, self.inputs, self.gate)
        finally:
            for hook in hooks:
                hook.remove()
        return stack if found.problem else []

    def _own_code(self, broken: list[str], tried: Container[str]) -> str | None:
        """The innermost module on the way to the failure whose own code is at fault."""
        for name in reversed(broken):
            if (
                name
                and name not in tried
                and not isinstance(self.model.get_submodule(name), SIMPLE)
            ):
                return name
        return None

    def _holders(self) -> set[str]:
        """Modules that hold sliced tensors, with all that enclose them."""
        split = [name.split(".") for name in self.kept]
        return {".".join(parts[:i]) for parts in split for i in range(1, len(parts))}

    def _patched_modules(self, graphs: Mapping[str, nn.Module]) -> list[str]:
        """Every module whose own code had a literal that changed; a graph has its own no more."""
        there = {name for name, _ in self.model.named_modules()}
        paths = dict.fromkeys(module_path(patch.node) for patch in self.rewritten.patches)
        return [p for p in paths if p in there - {""} and not _within_any(p, graphs)]

    def _whole(self, known: Comparison) -> CompactionPlan:
        """The whole graph, of open sizes where that one is as right."""
        try:
            graph, opened = whole_graph(
                self.model, self._plain_inputs(), self.kept, self._named_slices()
            )
            found = self.check(graph)
        except (InputError, RunError):
            opened = False
        if not opened or not found.equal:
            graph, found, opened = self.rewritten.module, known, False
        notes = () if opened else ("the graph takes inputs of the example's shape only",)
        return CompactionPlan("graph", Surgery(self.kept), graph, found, notes)

    def _plain_inputs(self) -> Inputs:
        """The random inputs in the model's own type."""
        like = self.cut.analysis.traced.inputs
        plain: Inputs = _pytree.tree_map(
            lambda new, old: new.to(old.dtype) if isinstance(new, Tensor) else new,
            self.inputs,
            like,
        )
        return plain

    def _sliced(self) -> nn.Module:
        """The model's modules with the smaller tensors; those that stay whole are its own."""
        own = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        return detached_copy(self.model, own | self.slices)

    def _named_slices(self) -> dict[str, Tensor]:
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return {n: self.slices[id(t)] for n, t in named if id(t) in self.slices}

    def _fail(self, found: Comparison) -> None:
        states = (self.masked, self.small)
        where = first_difference(self.cut, self.rewritten, states, self.inputs, self.gate)
        what = found.problem or f"they differ by {found.error:.2g}"
        place = f"; the first operator that differs is {where}" if where else ""
        raise RunError(
            f"the compact model does not equal the masked one ({what}{place}). Nothing was "
            "changed: the masked model is right; please report this with the model's class"
        )


def _within_any(path: str, outer: Iterable[str]) -> bool:
    return any(_inside(path, o) for o in outer)


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")
