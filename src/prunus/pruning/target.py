"""How much is to go, and whether that can be had."""

from __future__ import annotations

from torch import nn

from prunus._common.batch import find_batch
from prunus.errors import InputError
from prunus.pruning.decide import Alive, Cost
from prunus.pruning.space import PruningSpace
from prunus.recipe.schema import Recipe


def target_of(recipe: Recipe, space: PruningSpace, model: nn.Module) -> float:
    """The part of what the target counts that is to go, 0 to 1.

    Args:
        recipe: whose target.
        space: of the dense model.
        model: that model.

    Raises:
        InputError: if it is out of reach, or an absolute bound is above what the model costs.
    """
    wanted = _asked(recipe, space, model)
    if recipe.until_guard:
        return wanted
    (_refuse_target if space.cost_model is None else _refuse_bound)(recipe, space, wanted)
    refuse_forced(space, wanted)
    return wanted


def _asked(recipe: Recipe, space: PruningSpace, model: nn.Module) -> float:
    bound = recipe.target.bound if recipe.target is not None else None
    if recipe.target is not None and recipe.target.layers_alone:
        return space.reach()
    if bound is None or bound[1] < 1:
        return recipe.sparsity
    assert space.cost_model is not None
    dense = space.cost_model.baseline
    if bound[0] == "macs":
        assert space.analysis is not None
        dense /= find_batch(model, space.analysis.traced.inputs).size
    if bound[1] >= dense:
        raise InputError(
            f"target: max_{bound[0]} {bound[1]:,.0f} is not a bound: the dense model has "
            f"only {dense:,.0f}"
        )
    return 1 - bound[1] / dense


def _refuse_target(recipe: Recipe, space: PruningSpace, wanted: float) -> None:
    whole, most = Cost(space.groups).total, space.reach()
    if round(wanted * whole) / whole > most + 1e-12:
        said = f"at most {most:.6g} of the {whole} weights in scope can go"
        raise InputError(
            f"target: a sparsity of {wanted:g} is more than the limits of layers allow; {said}"
            if space.caps
            else f"target: a sparsity of {wanted:g} leaves less than one unit in some layer; {said}"
        )
    sizes = [int(g.sizes.min()) for g in space.groups if g.sizes is not None]
    smallest = min(sizes, default=1)
    if 0 < wanted < smallest / whole:
        raise InputError(
            f"target: {wanted:g} of {whole} weights is less than one unit of structure "
            f"{recipe.structure.name}, whose smallest has {smallest}"
        )


def _refuse_bound(recipe: Recipe, space: PruningSpace, wanted: float) -> None:
    assert space.cost_model is not None
    most = space.reach()
    if wanted > most + 1e-9:
        limits = " and limits of layers hold" if space.caps else ""
        name = space.cost_model.name
        raise InputError(
            f"target: {wanted:.4g} of the {name} should go, but at most "
            f"{most:.4g} can while every group keeps a unit{limits} "
            f"({sum(g.units for g in space.groups)} units in {len(space.groups)} groups; "
            f"prunus units shows what is pinned and why){_routed(space) if name == 'macs' else ''}"
        )


def _routed(space: PruningSpace) -> str:
    """Why experts that go take so little computation with them."""
    if space.analysis is None or not space.analysis.experts:
        return ""
    return (
        ". Each item goes to as many experts as before, whichever are left, so fewer of them are "
        "less memory, and less computation only where all look at every item: bound max_params or "
        "max_bytes, or make experts narrower with structure: channel"
    )


def refuse_forced(space: PruningSpace, wanted: float, alive: Alive | None = None) -> None:
    """A sparsity that single layers pass by themselves; a bound on a cost may be passed.

    Raises:
        InputError: saying how much goes at least.
    """
    if (
        not space.caps
        or space.caps.guarded
        or (space.cost_model is not None and space.cost_model.name != "sparsity")
    ):
        return
    least = space.least_gone(alive)
    total = Cost(space.groups).total
    if space.cost_model is None and round(wanted * total) >= round(least * total):
        return
    if least > wanted + 1e-9:
        raise InputError(
            f"target: a sparsity of {wanted:g} is less than what limits and target.layers ask of "
            f"single layers: these alone make {least:.6g}"
            f"{'' if alive is None else ', with what is removed already'}"
        )
