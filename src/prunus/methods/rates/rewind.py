"""Retrain with the rates of the original training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from annotated_types import Interval

NEEDS_DENSE = True


def rewind(
    progress: float,
    dense: Callable[[float], float],
    *,
    since: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
) -> float:
    """Rewind: the plan of round 0 again, from its progress ``since`` to its end.

    Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389.

    >>> rewind(0.5, lambda p: 1 - p, since=0.5)
    0.25
    """
    return dense(since + (1 - since) * progress)
