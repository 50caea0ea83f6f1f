"""Whether a trial can be stopped: the guard's tolerance against what others have reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunus.progressive.guard import allowed_drop
from prunus.progressive.result import Round
from prunus.recipe.schema import Recipe
from prunus.sweep.types import Trial

NEAR = 0.005
"""Whole units miss an aim by a little; so much more left still counts as reaching it."""


def hopeless(rounds: Sequence[Round], recipe: Recipe, finished: Sequence[Trial]) -> Trial | None:
    """The finished trial that makes this one hopeless, or ``None``.

    That is one that was ahead after no more training, and ended ahead: better, each time, than this
    one's newest round by more than the guard's ``max_drop``, at first with at most as much left
    as the round has, and at its end with at most as much as this trial aims at. A rejected round
    counts once the one before it was rejected, too, and was as far behind: the first is rolled
    back and tried half as far. Where the aim is not known before it is reached (``target: guard``,
    an absolute bound, a latency), what the round has left stands for it.

    Args:
        rounds: judged so far, the dense one first; it counts, too.
        recipe: of the trial; without a guard it is never hopeless.
        finished: other trials of the sweep.

    >>> other = Trial(0, {}, "finished", metric=0.9, left=0.1, course=((9, 0.92, 1.0),))
    >>> dense = Round(0, 9, 0.0, 0.0, 0.0, 0.80, "dense")
    >>> hopeless([dense], Recipe(guard={"max_drop": 0.05}), [other]) is other
    True
    """
    if recipe.guard is None or not rounds:
        return None
    ahead = _ahead(rounds[0], recipe)
    found = next((t for t in finished if ahead(t, rounds[-1])), None)
    if rounds[-1].verdict != "rejected":
        return found
    before = rounds[-2]
    again = before.verdict == "rejected" and any(ahead(t, before) for t in finished)
    return found if again else None


def _ahead(dense: Round, recipe: Recipe) -> Callable[[Trial, Round], bool]:
    guard, aim = recipe.guard, _aim(recipe)
    assert guard is not None
    sign = 1 if guard.better == "higher" else -1

    def ahead(other: Trial, row: Round) -> bool:
        if row.metric is None or dense.metric is None or other.point is None:
            return False
        least = sign * row.metric + allowed_drop(guard, dense.metric) + 1e-12
        left = 1 - row.achieved
        metric, end = other.point
        return (
            sign * metric > least
            and end <= (left if aim is None else aim) + NEAR
            and any(
                step <= row.step and sign * then > least and part <= left + NEAR
                for step, then, part in other.course
            )
        )

    return ahead


def _aim(recipe: Recipe) -> float | None:
    """The part that the recipe wants to leave, where it says so."""
    target = recipe.target
    if target is not None and (recipe.until_guard or target.latency is not None):
        return None
    if target is not None and target.bound is not None and target.bound[1] >= 1:
        return None
    return 1 - recipe.sparsity
