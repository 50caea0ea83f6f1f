"""Judges a round and says how far the next one goes: pure functions of the rounds so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunus.progressive.result import Round, last_accepted
from prunus.recipe.fields import Guard, Target
from prunus.recipe.schema import Recipe


def accepts(guard: Guard | None, metric: float | None, dense: float | None) -> bool:
    """Whether a metric is at most the allowed drop worse than that of the dense model.

    >>> accepts(Guard(max_drop=0.01), 0.97, 0.98), accepts(Guard(max_drop=0.01), 0.96, 0.98)
    (True, False)
    """
    if guard is None or metric is None or dense is None:
        return True
    worse = dense - metric if guard.better == "higher" else metric - dense
    return worse <= allowed_drop(guard, dense) + 1e-12


def allowed_drop(guard: Guard, dense: float) -> float:
    """How much worse than the dense model's a metric may be.

    >>> allowed_drop(Guard(max_drop=0.1, relative=True), 0.5)
    0.05
    """
    return guard.max_drop * (abs(dense) if guard.relative else 1.0)


ERRORS = ("error", "loss", "perplexity", "bits", "mse", "mae", "rmse", "wer", "cer")


def direction_warning(guard: Guard | None, metric_name: str) -> str | None:
    """A note on a metric that sounds as if less were better, where the guard wants more of it.

    >>> direction_warning(Guard(), "accuracy") is None
    True
    >>> direction_warning(Guard(better="lower"), "loss") is None
    True
    """
    words = metric_name.lower().replace("_", " ").split()
    if guard is None or guard.better == "lower" or not set(words) & set(ERRORS):
        return None
    return (
        f"the guard assumes that a higher {metric_name} is better; if a lower one is, set "
        "guard.better=lower"
    )


def next_progress(
    rounds: Sequence[Round], recipe: Recipe, asks: Callable[[float], float]
) -> tuple[float | None, str]:
    """The progress of the next round, or ``None`` and why the run ends.

    By the schedule, progress goes up in steps of 1/rounds. After a rejection it goes on from
    the last accepted round in steps half as long; it ends below the smallest step. With
    ``target: guard`` progress is the sparsity itself: next = s + step·(1 − s).

    Args:
        rounds: all so far, round 0 first.
        recipe: says how many and how far.
        asks: the sparsity that the schedule asks for at a progress.
    """
    if recipe.until_guard:
        return _until_guard(rounds, recipe)
    total = recipe.rounds or 1
    smallest = (recipe.target or Target()).smallest
    good = last_accepted(rounds)
    step = _halved(1.0 / total, rounds)
    if not rounds[-1].accepted:
        if not recipe.in_rounds:
            return None, "the guard rejected the pruned model: the dense one is the result"
        if step < smallest:
            return None, f"the guard: a step of {2 * step:.3g} of the way was too much"
        progress = min(good.progress + step, 1.0)
        if recipe.order == "all" and asks(progress) >= rounds[-1].requested:
            return None, f"the guard rejected a sparsity of {rounds[-1].requested:.4g}"
        return progress, ""
    if good.progress >= 1 - 1e-9:
        return None, _end(good, asks(1.0))
    if _caught_up(rounds, recipe, asks(1.0)):
        return None, "the target is reached"
    # Steps of 1/3 add up to 0.999…: the last one is the end itself.
    progress = good.progress + step
    return (1.0 if progress > 1 - 1e-9 else progress), ""


def _halved(step: float, rounds: Sequence[Round]) -> float:
    """A step after the rejections so far."""
    return step / 2.0 ** sum(not r.accepted for r in rounds)


def _end(good: Round, target: float) -> str:
    if good.achieved < target - 0.005:
        if good.achieved == 0:
            return "all rounds are done, but nothing was removed: one unit is more than the target"
        return f"all rounds are done, at a sparsity of {good.achieved:.4g}"
    return "the target is reached"


def _caught_up(rounds: Sequence[Round], recipe: Recipe, target: float) -> bool:
    """Whether a rule that takes what it takes, whatever is asked (``threshold``), is at the end.

    Where the schedule itself is at its end early, the rounds that it leaves retrain.
    """
    short = any(r.requested >= target - 1e-9 and r.achieved < target - 1e-9 for r in rounds[1:])
    reached = rounds[-1].achieved >= target - 1e-9
    return not recipe.trait("restore", "CHANGES") and short and reached


def _until_guard(rounds: Sequence[Round], recipe: Recipe) -> tuple[float | None, str]:
    assert recipe.target is not None
    target = recipe.target
    step = _halved(target.step, rounds)
    good = last_accepted(rounds)
    before = [r for r in rounds[:-1] if r.accepted]
    if before and rounds[-1] is good and good.achieved <= before[-1].achieved + 1e-12:
        return None, f"as far as whole units allow: {good.achieved:.4g}"
    if step < target.smallest:
        return None, f"as far as the guard allows: {good.achieved:.4g}"
    if recipe.rounds is not None and len(rounds) > recipe.rounds:
        return None, f"all {recipe.rounds} rounds are done"
    return good.achieved + step * (1 - good.achieved), ""
