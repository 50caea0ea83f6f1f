"""A verdict on items rather than on an average: is the pruned model shown to be no worse?

Source: McNemar 1947 (Psychometrika 12) for paired answers; Tango 1998 (Statistics in Medicine 17)
for the bound of their difference; Piaggio et al. 2012 (JAMA 308) on non-inferiority.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from torch import Tensor

from prunus._common.metrics import bootstrap, interval_of
from prunus._common.scores import Scores
from prunus.errors import InputError
from prunus.recipe.fields import Guard

NAMED = 100
"""How many of the items that changed a round names."""


def evidence(before: Scores, after: Scores, guard: Guard | None = None) -> dict[str, Any]:
    """What items say of a model and of what became of it, for a round.

    Args:
        before: of the model that is judged against.
        after: of the pruned one, on the same items.
        guard: says what is better, and how sure one must be.

    Returns:
        ``drop``: the mean that was lost; ``most``: the most it is with the guard's confidence;
        ``groups``: means before and after; ``worse`` and ``better``: the items that changed, the
        first ``NAMED`` of each, and how many there are in all.

    Raises:
        InputError: if these are not the same items.

    >>> found = evidence(Scores([1, 1, 1, 0.0]), Scores([1, 0, 1, 1.0]))
    >>> found["drop"], found["worse"], found["better"]
    (0.0, [1], [3])
    """
    if len(before) != len(after) or before.groups != after.groups:
        raise InputError(
            f"evaluate returned {len(after)} items and {len(before)} before, or others: it must "
            "score the same items in the same order each time"
        )
    sign = -1.0 if _better(guard, after) == "lower" else 1.0
    lost = sign * (before.each - after.each)
    worse, better = (lost > 0).nonzero().flatten(), (lost < 0).nonzero().flatten()
    found: dict[str, Any] = {
        "items": len(after),
        "drop": float(lost.mean() if after.figure is None else sign * (before.mean - after.mean)),
        "worse": worse[:NAMED].tolist(),
        "better": better[:NAMED].tolist(),
        "worse_count": len(worse),
        "better_count": len(better),
    }
    if guard is not None and guard.confidence is not None:
        found["confidence"] = guard.confidence
        found["most"] = _most(before, after, guard.confidence, sign)
    if after.groups is not None:
        means = before.by_group()
        found["groups"] = {name: [means[name], mean] for name, mean in after.by_group().items()}
    return found


def objection(guard: Guard, allowed: float, found: Mapping[str, Any]) -> str:
    """Why a guard rejects what the items say; empty where it does not.

    Args:
        guard: of the recipe.
        allowed: how much of the metric may be lost.
        found: what :func:`evidence` gave.
    """
    if guard.confidence is not None and found["most"] > allowed + 1e-12:
        return (
            f"with {guard.confidence:g} confidence {found['most']:.4g} may be lost "
            f"({found['drop']:.4g} was, on {found['items']} items); {allowed:.4g} is allowed"
        )
    if guard.worst_class is not None:
        sign = -1.0 if guard.better == "lower" else 1.0
        lost = {name: sign * (old - new) for name, (old, new) in found["groups"].items()}
        name = max(lost, key=lambda n: lost[n])
        if lost[name] > guard.worst_class + 1e-12:
            return f"{name} lost {lost[name]:.4g}; {guard.worst_class:.4g} is allowed to a class"
    return ""


def _most(before: Scores, after: Scores, confidence: float, sign: float) -> float:
    if after.figure is None:
        return most_lost(before.items, after.items, confidence, sign=sign)
    low, high = interval_of(after, before, level=2 * confidence - 1)
    return -low if sign > 0 else high


def most_lost(before: Tensor, after: Tensor, confidence: float, *, sign: float = 1.0) -> float:
    """The one-sided upper bound of what was lost per item, on paired items.

    Of answers that are right or wrong Tango's score bound, the largest δ with

    .. math:: \\frac{b - c - n\\delta}{\\sqrt{n(2\\tilde q + \\delta(1 - \\delta))}} \\ge -z

    for b items that only the model before has right, c that only the one after has, and the
    estimate :math:`\\tilde q` of the share of the latter under δ; of other numbers the bootstrap's
    quantile.

    Args:
        before, after: ``[n]``.
        confidence: of the bound, above 0.5 and below 1.
        sign: -1 where less is better.

    >>> same = Scores([1.0] * 300).items
    >>> round(most_lost(same, same, 0.95), 4)  # z²/(n + z²): what 300 items cannot rule out
    0.0089
    """
    lost = sign * (before - after)
    if not bool(((before == 0) | (before == 1)).all() and ((after == 0) | (after == 1)).all()):
        return bootstrap(lost, level=2 * confidence - 1)[1]
    b, c, n = int((lost > 0).sum()), int((lost < 0).sum()), len(lost)
    z = NormalDist().inv_cdf(confidence)
    low, high = (b - c) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tango(b, c, n, middle) >= -z else (low, middle)
    return high


def _tango(b: int, c: int, n: int, delta: float) -> float:
    """The score statistic of the hypothesis that δ was lost."""
    linear = (2 * n - b + c) * delta - b - c
    root = math.sqrt(max(linear**2 + 8 * n * c * delta * (1 - delta), 0.0))
    share = (root - linear) / (4 * n)
    spread = n * (2 * share + delta * (1 - delta))
    gap = b - c - n * delta
    return gap / math.sqrt(spread) if spread > 0 else math.copysign(math.inf, gap) if gap else 0.0


def refuse_unproven(guard: Guard | None, scores: Scores | None, allowed: float) -> None:
    """A guard on items where there are none, or too few for its confidence.

    Args:
        guard: of the recipe.
        scores: of the model as it is given; ``None`` where ``evaluate`` gave one number.
        allowed: how much of the metric may be lost.

    Raises:
        InputError: naming what is missing.

    >>> refuse_unproven(Guard(confidence=0.95), None, 0.01)
    Traceback (most recent call last):
    ...
    prunus.errors.InputError: guard.confidence judges item by item, and evaluate returns one ...
    """
    if guard is None or not asks_for_items(guard):
        return
    key = "confidence" if guard.confidence is not None else "worst_class"
    if scores is None:
        raise InputError(
            f"guard.{key} judges item by item, and evaluate returns one number: return "
            "prunus.Scores(items, groups=…), or leave it out"
        )
    if scores.better not in (None, guard.better):
        raise InputError(
            f"guard.better is {guard.better}, and evaluate returns Scores of which {scores.better} "
            f"is better: set guard.better={scores.better}"
        )
    if guard.worst_class is not None and scores.groups is None:
        raise InputError("guard.worst_class needs classes: return prunus.Scores(items, groups=…)")
    right_or_wrong = scores.figure is None and bool(
        ((scores.items == 0) | (scores.items == 1)).all()
    )
    if guard.confidence is None or not right_or_wrong:
        return
    least = most_lost(scores.items, scores.items, guard.confidence)
    if allowed < least:
        z = NormalDist().inv_cdf(guard.confidence)
        needed = math.ceil(z**2 * (1 - allowed) / allowed) if allowed else None
        items = "no number of items is enough" if needed is None else f"{needed} items are needed"
        raise InputError(
            f"guard: with {len(scores)} items and {guard.confidence:g} confidence not even the "
            f"same model is shown to lose at most {allowed:.4g}: {items} for that; allow "
            f"{least:.2g} (max_drop), or ask for less confidence"
        )


def asks_for_items(guard: Guard | None) -> bool:
    """Whether a guard judges more than an average."""
    return guard is not None and (guard.confidence, guard.worst_class) != (None, None)


def _better(guard: Guard | None, scores: Scores) -> str:
    return guard.better if guard is not None else scores.better or "higher"
