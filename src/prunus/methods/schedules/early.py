"""Cut early, then let what is left recover for long."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval


def early(
    progress: float,
    start: float,
    target: float,
    *,
    within: Annotated[float, Interval(gt=0, le=1)] = 0.25,
) -> float:
    """Early: cubic over the first ``within`` of the budget, then hold.

    Source: Zhu & Gupta 2017, arXiv:1710.01878, compressed in time.

    >>> early(0.125, 0.0, 0.8), early(0.25, 0.0, 0.8), early(0.9, 0.0, 0.8)
    (0.7000000000000001, 0.8, 0.8)
    """
    done = min(progress / within, 1.0)
    return target + (start - target) * (1 - done) ** 3
