"""Which trials nothing else beats, and which one to take."""

from __future__ import annotations

from collections.abc import Sequence

from prunus.sweep.types import Point, Trial


def front(points: Sequence[Point], *, better: str = "higher") -> list[int]:
    """The numbers of the points that no other dominates, from the least left to the most.

    In one pass over the points sorted by what is left: a point is on the front if its metric is
    better than that of all before it, or if it equals the last one there.

    >>> front([(0.9, 0.5), (0.8, 0.5), (0.7, 0.1), (0.9, 0.5)])
    [2, 0, 3]
    """
    sign = 1 if better == "higher" else -1
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][1], -sign * points[i][0])):
        last = points[found[-1]] if found else None
        if last is None or sign * points[i][0] > sign * last[0] or points[i] == last:
            found.append(i)
    return found


def choose(trials: Sequence[Trial], *, better: str = "higher") -> Trial | None:
    """The trial to take of those on the front.

    With a guard the one with the least left among those whose metric is at most its ``max_drop``
    worse than the best dense model of the sweep; without one, or if none is, the one with the best
    metric. ``None`` if no trial is finished.
    """
    sign = 1 if better == "higher" else -1
    done = [t for t in trials if t.point is not None]
    on_front = [done[i] for i in front([t.point for t in done if t.point], better=better)]
    dense = [sign * t.dense for t in done if t.dense is not None]
    for trial in on_front:
        if trial.allowed is not None and trial.metric is not None:
            drop = max(dense, default=sign * trial.metric) - sign * trial.metric
            if drop <= trial.allowed + 1e-12:
                return trial
    return on_front[-1] if on_front else None
