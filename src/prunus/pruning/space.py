"""The pruning space of a model: the weights in scope, their units, and what those cost."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from prunus._common.distributed import WRAPPERS, refuse_sharded
from prunus._common.given import not_taken
from prunus._common.inputs import Inputs, arguments
from prunus._common.layers import Layer
from prunus._common.modules import shared_copy
from prunus._common.names import bare, meant, unwrapped
from prunus._common.nested import map_tensors, own_containers
from prunus._common.numbers import percent
from prunus._common.put_back import PutBack
from prunus._common.smaller_inputs import parts_of
from prunus._common.traces import without_trace
from prunus.errors import InputError
from prunus.graph.analysis import Analysis, analyze
from prunus.graph.experts import with_experts
from prunus.graph.labels import Fixed
from prunus.graph.raw_weights import used_as_weights
from prunus.graph.trace import Traced, analysis_mode
from prunus.pruning.caps import Cap, Caps, find_caps
from prunus.pruning.cost_model import CostModel, cost_model
from prunus.pruning.decide import Alive, Cost, limits_of, most_of, sparsity
from prunus.pruning.scope import (
    drop_output_layer,
    execution_order,
    find_layers,
    outside,
)
from prunus.recipe.resolve import Methods
from prunus.recipe.schema import Recipe
from prunus.types import Counts, Group, Limits

WORTH_A_NOTE = 0.05
"""The part of a model's parameters that stays out of the scope without a word."""


@dataclass(frozen=True)
class PruningSpace:
    """A model as a recipe sees it.

    Attributes:
        layers: the weights in scope, in the order of execution.
        groups: their units.
        analysis: what falls together; ``None`` for structures that need none.
        cost_model: what the target counts, for coupled units.
        weights: the sparsity of coupled units.
        scored: the weights that it counts, by name: those in scope of which a unit can go. What
            is pinned throughout counts neither as removed nor as a whole.
        notes: what the user should know of the scope.
        caps: sparsities of single layers.
    """

    layers: list[Layer]
    groups: list[Group]
    analysis: Analysis | None = None
    cost_model: CostModel | None = None
    weights: CostModel | None = None
    scored: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    caps: Caps = field(default_factory=Caps)

    def limits(
        self,
        alive: Alive | None = None,
        requested: float = 1.0,
        target: float = 1.0,
        most: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[Group, Limits]:
        """Of each group what must stay and what can, with what the recipe says of its layer.

        Args:
            alive: units that are not removed yet; by default all.
            requested: the part that is to go now.
            target: the part that is to go at the end.
            most: of groups by name, the largest part that may be gone by now.
        """
        if most:
            found = self.limits(alive, requested, target)
            return self.held_back(most).within(found)
        known = limits_of(self.groups, alive or dict.fromkeys(self.groups))
        found = self.caps.within(known, requested, target)
        if (
            self.caps
            and requested < target
            and self._cost({g: x.most for g, x in found.items()}) > (requested + 1e-12)
        ):  # a model that is pruned already: what must go waits for what may
            return {g: Limits(x.least, known[g].most) for g, x in found.items()}
        return found

    def held_back(self, most: Mapping[str, float]) -> Caps:
        """The largest sparsities of some groups, by name, as caps."""
        return Caps({g: Cap(0.0, most[g.name]) for g in self.groups if g.name in most})

    def reach(
        self, alive: Alive | None = None, most: Mapping[str, float] = MappingProxyType({})
    ) -> float:
        """The largest part of what the target counts that can go."""
        limits = self.limits(alive, most=most)
        if self.cost_model is not None:
            return most_of(self.cost_model, limits)
        return self._cost({g: x.least for g, x in limits.items()})

    def least_gone(self, alive: Alive | None = None) -> float:
        """The smallest part that is gone once every layer has what the recipe asks of it."""
        return self._cost({g: x.most for g, x in self.limits(alive).items()})

    @property
    def _cost(self) -> CostModel | Cost:
        return self.cost_model or Cost(self.groups)

    def removed_fraction(self, alive: Alive) -> tuple[float, float]:
        """Removed weights ÷ weights in scope, and the part of what the target counts."""
        if self.weights is None or self.cost_model is None:
            removed = sparsity(self.groups, alive)
            return removed, removed
        kept: Counts = {
            g: g.units if (a := alive[g]) is None else int(a.sum()) for g in self.groups
        }
        return self.weights(kept), self.cost_model(kept)

    @property
    def baselines(self) -> dict[str, float]:
        """The dense model's costs, for the space of a smaller one."""
        return {f.name: f.baseline for f in (self.cost_model, self.weights) if f is not None}


def build_space(
    model: nn.Module,
    recipe: Recipe,
    methods: Methods,
    example: Any,
    *,
    layers: Sequence[Layer] | None = None,
    dense: PruningSpace | None = None,
    traced: Sequence[Traced] = (),
) -> PruningSpace:
    """The pruning space of a model as a recipe sees it.

    Args:
        model: to be pruned.
        recipe: scope, structure and target.
        methods: the functions that the recipe names.
        example: an input; needed by structures that are found by analysis.
        layers: in scope, where they are known from before the model became smaller.
        dense: the space of the dense model, then.
        traced: the model's passes, where they are known.

    Raises:
        InputError: if nothing can be pruned as asked.
    """
    refuse_sharded(model)
    changes = recipe.compact != "none" or recipe.deploy is not None or recipe.quantize != "none"
    if changes and isinstance(model, WRAPPERS):
        raise InputError(
            f"compact, deploy: {type(model).__name__} keeps copies of the old sizes: pass its "
            ".module, and wrap it again in each train(model, run)"
        )
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    coupled = _coupled(recipe, methods, example)
    if layers is None:
        found = _in_scope(model, recipe, example, coupled=coupled)
    else:
        found = [dataclasses.replace(la, shape=shapes[la.name]) for la in layers]
    notes = _notes(model, recipe, found) if dense is None else dense.notes
    if recipe.trait("structure", "SPARES_OUTPUT") and not recipe.scope.include:
        found = drop_output_layer(found)
    if not coupled:
        groups = methods.structure(found, shapes)
        _refuse_no_units(recipe, groups)
        _refuse_uncoupled(recipe)
        caps = find_caps(recipe, found, groups, model, first=dense is None)
        return PruningSpace(found, groups, notes=notes, caps=caps)
    dims = recipe.trait("structure", "HEADS") == "dims"
    hidden = recipe.trait("structure", "HIDDEN") is True
    analysis = analyze(
        model, example, heads="dims" if dims else "whole", hidden=hidden, traced=traced
    )
    if recipe.trait("structure", "UNITS") == "experts":
        analysis = with_experts(analysis, found, model)
    try:
        groups = methods.structure(found, shapes, analysis)
    except InputError:
        if dense is None:
            raise
        groups = []  # every group is down to its last unit
    groups = _allowed(groups, recipe, analysis, first=dense is None)
    groups = groups if dense is None else _continued(groups, dense)
    caps = find_caps(recipe, found, groups, model, first=dense is None)
    space = PruningSpace(found, groups, analysis, notes=notes, caps=caps)
    return _counted(space, recipe, model, dense)


def _coupled(recipe: Recipe, methods: Methods, example: Any) -> bool:
    """Whether the structure asks for the analysis, which needs an example."""
    coupled = "analysis" in inspect.signature(methods.structure).parameters
    if coupled and example is None:
        raise InputError(
            f"structure {recipe.structure.name} finds coupled units by analyzing a forward pass: "
            "pass example=, an input (or a tuple, or a mapping of keyword arguments)"
        )
    return coupled


def _in_scope(model: nn.Module, recipe: Recipe, example: Any, *, coupled: bool) -> list[Layer]:
    """The weights in scope, in the order of execution."""
    inputs = None if example is None else arguments(example)
    run = None if inputs is None else functools.partial(_run, model, inputs)
    uses = {} if run is None else used_as_weights(model, run)
    scope = recipe.scope
    found = find_layers(model, scope.include, scope.exclude, coupled=coupled, uses=uses)
    part = None if inputs is None else functools.partial(_run_part, model, inputs)
    return execution_order(model, found, part)


def _notes(model: nn.Module, recipe: Recipe, found: Sequence[Layer]) -> tuple[str, ...]:
    """What of the model is outside of the scope, if the recipe does not say it and it is much."""
    part, names = outside(model, found, recipe.scope.exclude)
    if recipe.scope.include or part < WORTH_A_NOTE:
        return ()
    more = "" if len(names) <= 3 else f" and {len(names) - 3} more"
    return (
        f"{percent(part)} of the parameters are outside of the scope: {', '.join(names[:3])}{more} "
        "(embeddings, tables, and what no layer or product is known to use); scope.include: ['*'] "
        "takes in every parameter of two or more dimensions",
    )


def _continued(groups: Sequence[Group], dense: PruningSpace) -> list[Group]:
    """Groups of a smaller model, with the sizes that they had in the dense one."""
    before = {g.name: g for g in dense.groups}
    return [
        dataclasses.replace(g, dense_units=d.dense_units or d.units, shape=d.shape)
        if (d := before.get(g.name)) is not None
        else g
        for g in groups
    ]


def _counted(
    space: PruningSpace, recipe: Recipe, model: nn.Module, dense: PruningSpace | None
) -> PruningSpace:
    """With what the target counts; a smaller model's parts are of the dense model's costs."""
    assert space.analysis is not None
    known = {} if dense is None else dense.baselines
    name = recipe.target.bound[0] if recipe.target and recipe.target.bound else "sparsity"
    scored = frozenset(m.name for g in space.groups for m in g.members if m.scored)
    if dense is not None:
        scored = dense.scored
    weights = cost_model(
        "sparsity", space.groups, space.analysis, model, baseline=known.get("sparsity"),
        scored=scored,
    )  # fmt: skip
    counted = weights
    if name != "sparsity":
        counted = cost_model(name, space.groups, space.analysis, model, baseline=known.get(name))
    return dataclasses.replace(space, cost_model=counted, weights=weights, scored=scored)


def _allowed(
    groups: Sequence[Group], recipe: Recipe, analysis: Analysis, *, first: bool
) -> list[Group]:
    """Without units that touch an excluded parameter or buffer, under any of its names."""
    names = bare(analysis.names)
    left = {n for pattern in recipe.scope.exclude for n in meant(pattern, names)}
    banned = {analysis.names[n] for n in left}
    dims = [d for n in banned if n in analysis.tensors for d in analysis.tensors[n].dims]
    stays = {int(c) for d in dims if not isinstance(d, Fixed) for c in analysis.solved.of(d)}
    kept = [g for g in groups if stays.isdisjoint(g.classes or ())]
    if first and groups and not kept:
        raise InputError(
            "scope.exclude touches every unit: whatever is coupled with an excluded parameter "
            "stays, so exclude fewer of them; prunus.units shows what is coupled"
        )
    return kept


def _refuse_no_units(recipe: Recipe, groups: Sequence[Group]) -> None:
    if not sum(g.weights for g in groups):
        raise InputError(
            f"structure {recipe.structure.name} finds no unit in this model that could go: the "
            "output layer, modules in use elsewhere and the like are not its units; "
            "structure: weight takes single weights, scope.include: ['*'] every parameter"
        )


def _refuse_uncoupled(recipe: Recipe) -> None:
    """What a structure of the user's own cannot do unless it asks for the analysis."""
    bound = recipe.target is not None and recipe.target.bound is not None
    if bound or (recipe.compact != "none" and recipe.trait("structure", "UNITS") != "modules"):
        raise InputError(
            f"structure {recipe.structure.name} takes no analysis, so its units cannot be "
            "removed: give it a third parameter, analysis, or leave compact and bounds out"
        )


def _run_part(model: nn.Module, inputs: Inputs) -> None:
    """Run the model on a part of a large picture, if it takes that."""
    for part in parts_of(inputs, (4, 2)):
        with contextlib.suppress(InputError):
            return _run(model, part)
    return _run(model, inputs)


def _run(model: nn.Module, inputs: Inputs) -> None:
    inner = shared_copy(unwrapped(model))  # what the pass leaves in it goes with the copy

    def once(within: AbstractContextManager[Any]) -> None:
        args, kwargs = own_containers(map_tensors(Tensor.clone, inputs))
        with analysis_mode(inner), within:
            inner(*args, **kwargs)

    with without_trace(model, "a forward pass"):
        try:
            try:
                once(PutBack(inner.parameters()))
            except Exception:  # of code that runs under no mode of torch's
                once(nullcontext())
        except Exception as error:  # of the model's code, which does not take this
            raise not_taken(inner, inputs, error) from error
