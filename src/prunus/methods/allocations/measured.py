"""Each group gives what it can spare: by measurement, and an integer program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from prunus.methods.allocations._shares import keep_by_share
from prunus.types import Counts, Damage, Group, Limits, Units

MEASURES = True
PASSES = 6
"""Integer programs at most: each has the costs at the counts that the one before gave."""


def measured(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
    damage: Damage,
) -> Counts:
    """Measured: counts kₗ that lose least together, of those that were tried in each group alone.

    min Σₗ dₗ(kₗ) so that cost(k) ≥ target, where dₗ(k) is the rise of the calibration loss with k
    units of group l left, made monotone. Costs are products of widths, so the program has what
    each count of one group saves at the counts found before, and is solved again at the new ones;
    what is left to the target is shared out in proportion.

    Args:
        units: scores of each group; they say which units go, and not how many.
        cost: the part that a choice removes.
        target: the part to be removed.
        limits: of each group.
        damage: pairs of units kept and the loss then, the most first.

    Source: Shen et al. 2021 (HALP), arXiv:2110.10811; Frantar & Alistarh 2022 (SPDY),
    arXiv:2201.13096; and arXiv:2504.02168.

    >>> monotone([(4, 0.5), (3, 0.4), (2, 0.7), (1, 0.6)])
    [(4, 0.0), (3, 0.0), (2, 0.2), (1, 0.2)]
    """
    levels = {g: _within(monotone(damage[g]), limits[g]) for g in units}
    start = _shares({g: limits[g].most for g in units})
    counts = keep_by_share(units, start, cost, target, limits)
    best, least = counts, _lost(levels, counts)
    for _ in range(PASSES):
        chosen = _program(levels, counts, cost, target)
        if chosen is None:
            break
        found = keep_by_share(units, _shares(chosen), cost, target, limits)
        lost = _lost(levels, found)
        if lost < least - 1e-12:
            best, least = found, lost
        if chosen == counts:
            break
        counts = chosen
    return best


def monotone(pairs: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Rises over the first, of which none is below an earlier one: chance lets a loss fall."""
    rises = np.maximum.accumulate([max(loss - pairs[0][1], 0.0) for _, loss in pairs])
    rounded = [round(float(rise), 12) for rise in rises]
    return list(zip([kept for kept, _ in pairs], rounded, strict=True))


def _shares(counts: Counts) -> dict[Group, float]:
    """In proportion to counts, and positive for a group of which all goes."""
    return {group: max(float(count), 1e-6) for group, count in counts.items()}


def _within(pairs: list[tuple[int, float]], limits: Limits) -> list[tuple[int, float]]:
    """Those that the limits allow, and the limits themselves."""
    kept = np.array([k for k, _ in pairs][::-1], dtype=float)
    rises = np.minimum(np.array([rise for _, rise in pairs][::-1]), 1e30)
    every = sorted({k for k, _ in pairs} | {limits.least, limits.most}, reverse=True)
    allowed = [k for k in every if limits.least <= k <= limits.most]
    return [(k, float(np.interp(k, kept, rises))) for k in allowed]


def _lost(levels: Mapping[Group, list[tuple[int, float]]], counts: Counts) -> float:
    """What a choice loses, between the levels in proportion."""
    total = 0.0
    for group, pairs in levels.items():
        kept = [float(k) for k, _ in pairs][::-1]
        total += float(np.interp(int(counts[group]), kept, [rise for _, rise in pairs][::-1]))
    return total


def _program(
    levels: Mapping[Group, list[tuple[int, float]]],
    counts: Counts,
    cost: Callable[[Counts], float],
    target: float,
) -> Counts | None:
    """One level of each group, by an integer program with the savings at these counts."""
    here = cost(counts)
    rises: list[float] = []
    saved: list[float] = []
    owner: list[int] = []
    for number, (group, pairs) in enumerate(levels.items()):
        for kept, rise in pairs:
            rises.append(rise)
            saved.append(cost({**counts, group: kept}) - here)
            owner.append(number)
    one_each = np.zeros((len(levels), len(rises)))
    one_each[owner, np.arange(len(rises))] = 1
    scale, whole = max(max(rises), 1e-12), max(max(map(abs, saved)), 1e-12)
    savings = np.array(saved) / whole
    found = milp(
        np.array(rises) / scale + 1e-6 * savings,  # of equal ones what saves least
        integrality=np.ones(len(rises)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(savings[None], (target - here) / whole - 1e-6, np.inf),
        ],
        options={"presolve": False},  # of a small program; some versions print from within it
    )
    if found.x is None:
        return None
    chosen = [i for i, x in enumerate(found.x) if x > 0.5]
    every = [kept for pairs in levels.values() for kept, _ in pairs]
    return dict(zip(levels, (every[i] for i in chosen), strict=True))
