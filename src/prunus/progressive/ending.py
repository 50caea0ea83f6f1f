"""How an end is told: what was requested, what was achieved, and why it is not more."""

from __future__ import annotations

from collections.abc import Sequence

from prunus._common.names import plain_name
from prunus.progressive.engine import PruningEngine
from prunus.progressive.guard import GUARDED, baseline
from prunus.progressive.result import Round, counted, last_accepted
from prunus.recipe import duration

REACHED = "the target is reached"
NEAR = 0.005
"""Whole units miss a target by a little; so much less still counts as reaching it."""
SAME = 0.001
"""So much less goes without saying."""
NAMED = 3
"""Layers that are named where several stay dense."""


def ended(engine: PruningEngine, why: str, rounds: Sequence[Round] = ()) -> str:
    """Why pruning ended, with what was requested and achieved where that is not the same.

    Args:
        engine: at the end.
        why: as the loop says it.
        rounds: judged so far; the last accepted one is the result.
    """
    achieved = last_accepted(rounds).achieved if rounds else engine.achieved
    said = (_told(engine, why, achieved), stays_dense(engine), _judged(engine, rounds))
    return "; ".join(x for x in said if x)


def is_short(engine: PruningEngine) -> bool:
    """Whether the model has less than was requested, by more than whole units explain."""
    return not engine.recipe.until_guard and engine.achieved < engine.target - NEAR


def _told(engine: PruningEngine, why: str, achieved: float) -> str:
    what, target = counted(engine.counts_in), engine.target
    reached = f"{what} {achieved:.4g}"
    if engine.recipe.until_guard:
        return f"{why}: {reached}{'' if why.startswith('as far') else f', requested {GUARDED}'}"
    if engine.start > target + 1e-9 and achieved <= engine.start + 1e-9:
        return (
            f"nothing was removed: the model came with {what} {engine.start:.4g}, and "
            f"{target:.4g} was requested"
        )
    if achieved < target - NEAR:
        return f"{why}: {reached} of {target:.4g} requested"
    if achieved < target - SAME:
        why = REACHED if why == REACHED else f"{why}; {REACHED}"
        return f"{why} as nearly as whole units allow: {reached} of {target:.4g} requested"
    return why if why == REACHED else f"{why}; {REACHED}: {reached}"


def _judged(engine: PruningEngine, rounds: Sequence[Round]) -> str:
    """What a guard judged against, where it was not the dense model."""
    trains = duration.parse(engine.recipe.dense.length).value > 0
    if not rounds or baseline(engine.recipe.guard, rounds, trained=trains) == rounds[0].metric:
        return ""
    return "pruned rounds are better than round 0 by far, so the guard judged against the best one"


def stays_dense(engine: PruningEngine) -> str:
    """Which layers in scope lose nothing because the structure has no units there."""
    space = engine.shrinks[0].space if engine.shrinks else engine.space
    grouped = {m.name for g in space.groups for m in g.members}
    left = [la for la in space.layers if la.name not in grouped]
    if not left:
        return ""
    names = ", ".join(plain_name(la.name) for la in left[:NAMED])
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    return (
        f"{len(left)} of {len(space.layers)} layers in scope stay dense and do not count, for "
        f"structure {engine.recipe.structure.name} has no units there: {names}{more}"
    )
