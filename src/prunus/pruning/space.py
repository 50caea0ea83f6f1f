"""The pruning space of a model: the weights in scope, their units, and what those cost."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus._common.distributed import WRAPPERS, refuse_sharded, unwrapped
from prunus._common.inputs import arguments, tensors_of
from prunus._common.layers import Layer
from prunus._common.numbers import percent
from prunus.errors import InputError
from prunus.graph.analysis import Analysis, analyze
from prunus.graph.experts import with_experts
from prunus.graph.labels import Fixed
from prunus.graph.raw_weights import used_as_weights
from prunus.graph.trace import Traced, analysis_mode
from prunus.pruning.cost_model import CostModel, cost_model
from prunus.pruning.decide import Alive, Cost, limits_of, most_of, sparsity
from prunus.pruning.scope import (
    drop_output_layer,
    execution_order,
    find_layers,
    matches,
    outside,
)
from prunus.recipe.resolve import Methods
from prunus.recipe.schema import Recipe
from prunus.types import Counts, Group

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
    """

    layers: list[Layer]
    groups: list[Group]
    analysis: Analysis | None = None
    cost_model: CostModel | None = None
    weights: CostModel | None = None
    scored: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

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
        _refuse_uncoupled(recipe)
        _refuse_target(recipe, groups)
        return PruningSpace(found, groups, notes=notes)
    dims = recipe.trait("structure", "HEADS") == "dims"
    hidden = recipe.trait("structure", "HIDDEN") is True
    analysis = analyze(
        model, example, heads="dims" if dims else "whole", hidden=hidden, traced=traced
    )
    if recipe.trait("structure", "UNITS") == "experts":
        analysis = with_experts(analysis, found)
    try:
        groups = methods.structure(found, shapes, analysis)
    except InputError:
        if dense is None:
            raise
        groups = []  # every group is down to its last unit
    groups = _allowed(groups, recipe, analysis, first=dense is None)
    if dense is None:
        space = _counted(PruningSpace(found, groups, analysis, notes=notes), recipe, model, dense)
        _refuse_bound(recipe, space)
        return space
    space = PruningSpace(found, _continued(groups, dense), analysis, notes=notes)
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
    run = None if example is None else functools.partial(_run, model, example)
    uses = {} if run is None else used_as_weights(model, run)
    scope = recipe.scope
    found = find_layers(model, scope.include, scope.exclude, coupled=coupled, uses=uses)
    return execution_order(model, found, run)


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


def target_of(recipe: Recipe, space: PruningSpace) -> float:
    """The part of what the target counts that is to go, 0 to 1.

    Raises:
        InputError: if an absolute bound is above what the dense model costs.
    """
    bound = recipe.target.bound if recipe.target is not None else None
    if bound is None or bound[1] < 1:
        return recipe.sparsity
    assert space.cost_model is not None
    dense = space.cost_model.baseline
    if bound[0] == "macs":
        dense /= _batch(space)
    if bound[1] >= dense:
        raise InputError(
            f"target: max_{bound[0]} {bound[1]:,.0f} is not a bound: the dense model has "
            f"only {dense:,.0f}"
        )
    return 1 - bound[1] / dense


def _batch(space: PruningSpace) -> int:
    """Examples in the input that was traced."""
    assert space.analysis is not None
    tensors = [t for t in tensors_of(space.analysis.traced.inputs) if t.dim()]
    return int(tensors[0].shape[0]) if tensors else 1


def _allowed(
    groups: Sequence[Group], recipe: Recipe, analysis: Analysis, *, first: bool
) -> list[Group]:
    """Without units that touch an excluded parameter or buffer, under any of its names."""
    banned = {analysis.names[n] for n in analysis.names if matches(n, recipe.scope.exclude)}
    dims = [d for n in banned if n in analysis.tensors for d in analysis.tensors[n].dims]
    stays = {int(c) for d in dims if not isinstance(d, Fixed) for c in analysis.solved.of(d)}
    kept = [g for g in groups if stays.isdisjoint(g.classes or ())]
    if first and groups and not kept:
        raise InputError(
            "scope.exclude touches every unit: whatever is coupled with an excluded parameter "
            "stays, so exclude fewer of them; prunus.units shows what is coupled"
        )
    return kept


def _refuse_uncoupled(recipe: Recipe) -> None:
    """What a structure of the user's own cannot do unless it asks for the analysis."""
    bound = recipe.target is not None and recipe.target.bound is not None
    if bound or (recipe.compact != "none" and recipe.trait("structure", "UNITS") != "modules"):
        raise InputError(
            f"structure {recipe.structure.name} takes no analysis, so its units cannot be "
            "removed: give it a third parameter, analysis, or leave compact and bounds out"
        )


def _refuse_target(recipe: Recipe, groups: Sequence[Group]) -> None:
    wanted = recipe.sparsity
    cost = Cost(groups)
    most = cost({g: 0 if g.may_empty or g.balanced else 1 for g in groups})
    if recipe.until_guard:
        return
    if round(wanted * cost.total) / cost.total > most:
        raise InputError(
            f"target: a sparsity of {wanted:g} leaves less than one unit in some layer; at "
            f"most {most:.6g} of the {cost.total} weights in scope can go"
        )
    smallest = min((int(g.sizes.min()) for g in groups if g.sizes is not None), default=1)
    if 0 < wanted < smallest / cost.total:
        raise InputError(
            f"target: {wanted:g} of {cost.total} weights is less than one unit of structure "
            f"{recipe.structure.name}, whose smallest has {smallest}"
        )


def _refuse_bound(recipe: Recipe, space: PruningSpace) -> None:
    assert space.cost_model is not None
    if recipe.until_guard:
        return
    wanted = target_of(recipe, space)
    limits = limits_of(space.groups, dict.fromkeys(space.groups))
    most = most_of(space.cost_model, limits)
    if wanted > most + 1e-9:
        raise InputError(
            f"target: {wanted:.4g} of the {space.cost_model.name} should go, but at most "
            f"{most:.4g} can while every group keeps a unit "
            f"({sum(g.units for g in space.groups)} units in {len(space.groups)} groups; "
            "prunus units shows what is pinned and why)"
        )


def _run(model: nn.Module, example: Any) -> None:
    args, kwargs = arguments(example)
    with analysis_mode(model):
        unwrapped(model)(*args, **kwargs)
