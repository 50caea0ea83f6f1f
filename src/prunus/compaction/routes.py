"""One way after the other to a smaller model, each verified before it is taken."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree

from prunus.compaction.attributes import Attribute, guesses, standard
from prunus.compaction.cut import Cut, Kept, masks_of
from prunus.compaction.replace import as_graph, record_calls, whole_graph, within
from prunus.compaction.rewrite import Rewritten, rewrite
from prunus.compaction.surgery import Surgery, refresh, slice_tensors
from prunus.compaction.verify import (
    Comparison,
    State,
    compare,
    difference,
    first_difference,
    outputs,
    random_like,
    small_state,
    values_for_test,
)
from prunus.errors import InputError, RunError
from prunus.graph.trace import Inputs
from prunus.types import Masks

ROUTES = {
    "sliced": "the model's own modules, their tensors sliced",
    "attributes": "the model's own modules, sliced, and numbers that they keep changed",
    "modules": "the model's own class; some modules became graphs",
    "graph": "the whole model became a graph",
}


@dataclass(frozen=True)
class Plan:
    """A verified way to a smaller model.

    Attributes:
        route: a key of ``ROUTES``.
        surgery: what to do to the model; for the route ``graph`` only what is kept.
        graph: the smaller graph, for that route.
        comparison: how masked and compact model compared.
        notes: what a user should know.
    """

    route: str
    surgery: Surgery
    graph: fx.GraphModule | None
    comparison: Comparison
    notes: tuple[str, ...] = ()


def find_plan(model: nn.Module, cut: Cut, example: Any) -> Plan:
    """The first route whose result equals the masked model.

    The model itself is not changed.

    Raises:
        RunError: if none does, naming the first operator whose value differs.
    """
    return _Search(model, cut, example).find()


class _Search:
    def __init__(self, model: nn.Module, cut: Cut, example: Any) -> None:
        self.model, self.cut = model, cut
        self.kept: Kept = cut.kept()
        self.masks: Masks = masks_of(cut, dict(model.named_parameters()))
        self.inputs: Inputs = random_like(example)
        dense, masked = values_for_test(model, self.masks)
        self.small: State = small_state(masked, self.kept, cut.analysis.names)
        self.masked = masked
        self.expected = outputs(model, masked, self.inputs)
        self.effect = difference(outputs(model, dense, self.inputs), self.expected)[0]
        self.rewritten: Rewritten = rewrite(cut)

    def find(self) -> Plan:
        graph = self.check(self.rewritten.module)
        if not graph.equal:
            self._fail(graph)
        if not self.kept:
            return Plan("sliced", Surgery({}), None, graph)
        return self._modules_kept() or self._modules_replaced() or self._whole(graph)

    def check(self, model: nn.Module) -> Comparison:
        """Compare a candidate with the masked model."""
        found = compare(self.expected, model, self.small, self.inputs)
        return replace(found, effect=self.effect)

    def _modules_kept(self) -> Plan | None:
        twin = self._sliced()
        fixed = standard(twin, self.rewritten.patches)
        for attribute in fixed:
            attribute.set(twin)
        refresh(twin)
        for guess in guesses(self.model, self.cut, self.rewritten.patches):
            for attribute in guess:
                attribute.set(twin)
            found = self.check(twin)
            if found.equal:
                guilty = self._needed(twin, guess)
                route = "attributes" if guilty else "sliced"
                return Plan(route, Surgery(self.kept, (*fixed, *guilty)), None, found)
            for attribute in guess:
                attribute.set(twin, back=True)
        return None

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

    def _modules_replaced(self) -> Plan | None:
        """Replace the innermost modules that fail, then what encloses them."""
        graphs: dict[str, nn.Module] = {}
        tried: set[str] = set()
        fixed = standard(self._sliced(), self.rewritten.patches)
        for _ in range(12):
            surgery = Surgery(self.kept, tuple(fixed), dict(graphs))
            twin = copy.deepcopy(self.model)
            surgery.apply(twin)
            found = self.check(twin)
            if found.equal:
                notes = (f"became graphs: {', '.join(sorted(graphs))}",)
                return Plan("modules", surgery, None, found, notes)
            wanted = [
                n
                for n in self._failing(twin, graphs)
                if n and n not in tried and not any(_inside(n, g) for g in graphs)
            ]
            if not wanted:
                return None
            calls = record_calls(self.model, wanted, self._plain_inputs())
            for name in sorted(wanted, key=len):
                tried.add(name)
                if any(_inside(name, g) for g in graphs):
                    continue
                made = self._graph_of(name, calls)
                if made is not None:
                    for inner in [g for g in graphs if g.startswith(f"{name}.")]:
                        del graphs[inner]
                    graphs[name] = made
        return None

    def _graph_of(self, name: str, calls: dict[str, Inputs]) -> nn.Module | None:
        if name not in calls:
            return None
        module = self.model.get_submodule(name)
        kept = within(self.kept, self.cut.analysis.names, module, name)
        try:
            return as_graph(module, calls[name], kept, self.cut.analysis.heads)
        except (InputError, RunError, AssertionError):
            return None

    def _failing(self, twin: nn.Module, graphs: dict[str, nn.Module]) -> list[str]:
        """Modules to replace next: where the pass breaks, with others of the same class."""
        stack: list[str] = []
        broken: list[str] = []
        hooks = []
        for name, module in twin.named_modules():
            if any(_inside(name, g) for g in graphs):
                continue

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                stack.append(name)

            def leave(module: nn.Module, args: Any, out: Any) -> None:
                stack.pop()

            hooks += [
                module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
            ]  # fmt: skip
        try:
            found = compare(self.expected, twin, self.small, self.inputs)
            broken = list(stack) if found.problem else []
        finally:
            for hook in hooks:
                hook.remove()
        place = self._own_code(broken)
        if place is None:
            return self._patched_modules(graphs)
        kind = type(twin.get_submodule(place))
        changed = self._holders()
        return [
            n
            for n, m in self.model.named_modules()
            if type(m) is kind and (n in changed or n == place)
        ] or [place]

    def _own_code(self, broken: list[str]) -> str | None:
        """The innermost module on the way to the failure whose own code is at fault."""
        simple = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.Embedding,
                  nn.LayerNorm, nn.GroupNorm)  # fmt: skip
        for name in reversed(broken):
            module = self.model.get_submodule(name)
            if not isinstance(module, simple) and name:
                return name
        return None

    def _holders(self) -> set[str]:
        """Modules that hold sliced tensors, with all that enclose them."""
        holders = set()
        for name in self.kept:
            parts = name.split(".")[:-1]
            holders |= {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
        return holders

    def _patched_modules(self, graphs: dict[str, nn.Module]) -> list[str]:
        """Every module whose own code had a literal that changed."""
        found = []
        for patch in self.rewritten.patches:
            stack = patch.node.meta.get("nn_module_stack") or {}
            paths = [str(entry[0]) for entry in stack.values()]
            if paths and paths[-1] and not any(_inside(paths[-1], g) for g in graphs):
                found.append(paths[-1])
        return list(dict.fromkeys(found))

    def _whole(self, known: Comparison) -> Plan:
        notes: tuple[str, ...] = ()
        graph: fx.GraphModule | None = None
        try:
            graph = whole_graph(
                self.model, self._plain_inputs(), self.kept, self.cut.analysis.heads
            )
            known_open = self.check(graph)
            if not known_open.equal:
                graph = None
        except (InputError, RunError):
            graph = None
        if graph is None:
            graph = self.rewritten.module
            notes = ("the graph takes inputs of the example's shape only",)
        return Plan("graph", Surgery(self.kept), graph, known, notes)

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
        twin = copy.deepcopy(self.model)
        slice_tensors(twin, self.kept)
        return twin

    def _fail(self, found: Comparison) -> None:
        where = first_difference(self.cut, self.rewritten, (self.masked, self.small), self.inputs)
        what = found.problem or f"they differ by {found.error:.2g}"
        place = f"; the first operator that differs is {where}" if where else ""
        raise RunError(
            f"the compact model does not equal the masked one ({what}{place}). Nothing was "
            "changed: the masked model is right; please report this with the model's class"
        )


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")
