"""Judges a round and says how far the next one goes: pure functions of the rounds so far."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from prunus.errors import InputError
from prunus.progressive.result import Round, last_accepted
from prunus.recipe.fields import Guard, Target
from prunus.recipe.schema import Recipe

GUARDED = "as far as the guard allows"


def accepts(guard: Guard | None, metric: float | None, dense: float | None) -> bool:
    """Whether a metric is at most the allowed drop worse than that of the dense model.

    >>> accepts(Guard(max_drop=0.01), 0.97, 0.98), accepts(Guard(max_drop=0.01), 0.96, 0.98)
    (True, False)
    """
    if guard is None or metric is None or dense is None:
        return True
    worse = dense - metric if guard.better == "higher" else metric - dense
    return worse <= allowed_drop(guard, dense) + 1e-12


def better(guard: Guard | None) -> str:
    """Which metric is better: the higher one unless the guard says otherwise."""
    return "higher" if guard is None else guard.better


def allowed_drop(guard: Guard, dense: float) -> float:
    """How much worse than the dense model's a metric may be.

    >>> allowed_drop(Guard(max_drop=0.1, relative=True), 0.5)
    0.05
    """
    return guard.max_drop * (abs(dense) if guard.relative else 1.0)


UNSAID = "say guard.better=lower if less of it is better, or guard.better=higher if more is"


def refuse_unclear(
    guard: Guard | None,
    metric_name: str,
    metric: float | None,
    *,
    untrained: float | None = None,
    whole: float | None = None,
) -> None:
    """A guard that does not say which metric is better, where that may be the lower one.

    Args:
        guard: of the recipe; one that says it is never refused.
        metric_name: what the metric is called.
        metric: of a round, or of what the dense model will be trained from; ``None``: not known.
        untrained: the metric before the dense model was trained, where that is known.
        whole: that of the dense model, for a round before which nothing was trained.

    Raises:
        InputError: if the name is one of an error, the metric is outside 0 to 1, it fell while
            the dense model was trained, or rose as weights were taken away and nothing trained.

    >>> refuse_unclear(Guard(), "accuracy", 0.97, untrained=0.1)
    >>> refuse_unclear(Guard(better="higher"), "score", 21.5)
    >>> refuse_unclear(Guard(), "metric", 2.3)
    Traceback (most recent call last):
    ...
    prunus.errors.InputError: guard: the metric is 2.3, outside 0 to 1: say guard.better=lower ...
    """
    if guard is None or guard.says_better:
        return
    if _sounds_like_an_error(metric_name):
        raise InputError(f"guard: by its name the {metric_name} may be an error: {UNSAID}")
    if metric is None:
        return
    if not 0 <= metric <= 1:
        raise InputError(f"guard: the {metric_name} is {metric:.4g}, outside 0 to 1: {UNSAID}")
    if untrained is not None and metric < untrained - max(allowed_drop(guard, untrained), FALL):
        raise InputError(
            f"guard: the {metric_name} fell from {untrained:.4g} to {metric:.4g} while the dense "
            f"model was trained, as a loss does: {UNSAID}"
        )
    if whole is not None and metric > whole + max(allowed_drop(guard, whole), BETTERED[False]):
        raise InputError(
            f"guard: the {metric_name} rose from {whole:.4g} to {metric:.4g} as weights were "
            f"removed and nothing was trained, as an error does: {UNSAID}"
        )


FALL = 0.02
"""A metric that falls by less while the dense model is trained may waver."""
ERRORS = ("error", "errors", "err", "loss", "losses", "perplexity", "ppl", "bits", "bpc", "bpb",
          "mse", "mae", "rmse", "mape", "wer", "cer", "eer", "nll", "entropy", "brier", "fid",
          "divergence", "regret")  # fmt: skip
"""Words in the name of a metric of which less is better; also as the end of a word."""


def direction_warning(guard: Guard | None, metric_name: str) -> str | None:
    """A note on a metric that sounds as if less were better, where the guard wants more of it.

    >>> direction_warning(Guard(), "accuracy") is None
    True
    >>> direction_warning(Guard(better="lower"), "loss") is None
    True
    """
    if guard is None or guard.better == "lower" or not _sounds_like_an_error(metric_name):
        return None
    return (
        f"the guard assumes that a higher {metric_name} is better; if a lower one is, set "
        "guard.better=lower"
    )


def _sounds_like_an_error(metric_name: str) -> bool:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", metric_name).lower()
    words = re.findall(r"[^\W\d_]+", spaced)
    return any(word in ERRORS or word.endswith(("loss", "error")) for word in words)


BETTERED = {False: 0.1, True: 0.5}
"""By which part of a metric's scale a round betters a dense model that was no trained one: one
that came so, and one that the recipe itself has trained (too short, then)."""


NOT_TRAINED = (
    "round 0 ({0} {1:.4g}) was not fully trained: round {3}, though pruned, has {2:.4g}; from here "
    "on the guard judges against the best round accepted. Give it a trained model, or train one: "
    "dense: 10ep"
)
"""A note for whoever watches."""


def baseline(guard: Guard | None, rounds: Sequence[Round], *, trained: bool) -> float | None:
    """What a round is judged against: the dense model, if it was a trained one.

    A dense model that pruned and retrained rounds better by far says nothing of what is lost; the
    best accepted round so far stands for it then.

    Args:
        guard: of the recipe.
        rounds: so far, the dense one first.
        trained: whether the recipe has trained the dense model.

    >>> rows = [Round(i, 0, 0, 0, 0, m, "accepted") for i, m in enumerate((0.08, 0.777, 0.97))]
    >>> baseline(Guard(), rows, trained=False), baseline(Guard(), rows[2:], trained=False)
    (0.97, 0.97)
    >>> rows = [Round(i, 0, 0, 0, 0, m, "accepted") for i, m in enumerate((0.93, 0.97))]
    >>> baseline(Guard(), rows, trained=False)
    0.93
    """
    known = [r.metric for r in rounds if r.accepted and r.metric is not None]
    dense = rounds[0].metric if rounds else None
    if guard is None or dense is None:
        return dense
    best = max(known) if guard.better == "higher" else min(known)
    scale = 1.0 if 0 <= dense <= 1 else abs(dense)
    least = max(allowed_drop(guard, dense), BETTERED[trained] * scale)
    return best if abs(best - dense) > least else dense


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
        return _until_guard(rounds, recipe, asks)
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


def _halved(step: float, rounds: Sequence[Round], *, adapts: bool = False) -> float:
    """A step after the rejections so far.

    Where a rejection has its own groups go less far, the first one after an accepted round lets
    the same step be tried once more.
    """
    rejected = [not r.accepted for r in rounds]
    again = zip(rejected, [False, *rejected], strict=False)
    return step / 2.0 ** sum(now and (before or not adapts) for now, before in again)


def _end(good: Round, target: float) -> str:
    if good.achieved < target - 0.005:
        if good.achieved == 0:
            return "all rounds are done, but nothing was removed: one unit is more than the target"
        return "all rounds are done"
    return "the target is reached"


def _caught_up(rounds: Sequence[Round], recipe: Recipe, target: float) -> bool:
    """Whether a rule that takes what it takes, whatever is asked (``threshold``), is at the end.

    Where the schedule itself is at its end early, the rounds that it leaves retrain.
    """
    short = any(r.requested >= target - 1e-9 and r.achieved < target - 1e-9 for r in rounds[1:])
    reached = rounds[-1].achieved >= target - 1e-9
    return not recipe.trait("restore", "CHANGES") and short and reached


def _until_guard(
    rounds: Sequence[Round], recipe: Recipe, asks: Callable[[float], float]
) -> tuple[float | None, str]:
    assert recipe.target is not None
    target = recipe.target
    step = _halved(target.step, rounds, adapts=target.adapt)
    good = last_accepted(rounds)
    before = [r for r in rounds[:-1] if r.accepted]
    if before and rounds[-1] is good and good.achieved <= before[-1].achieved + 1e-12:
        return None, "as far as whole units allow"
    if step < target.smallest:
        return None, GUARDED
    if recipe.rounds is not None and len(rounds) > recipe.rounds:
        return None, f"all {recipe.rounds} rounds are done"
    progress = good.achieved + step * (1 - good.achieved)
    if asks(progress) <= good.achieved + 1e-12:
        return None, "as far as limits and whole units allow"
    return progress, ""
