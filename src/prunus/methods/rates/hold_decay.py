"""At short budgets a long tail to zero matters more than the pruning schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from annotated_types import Interval


def hold_decay(
    progress: float,
    dense: Callable[[float], float],
    *,
    tail: Annotated[float, Interval(gt=0, le=1)] = 0.4,
) -> float:
    """Hold, then decay: 1 until 1 − tail, then linearly to 0 at the end.

    Source: Hägele et al. 2024 (constant rate with a cooldown), arXiv:2405.18392.

    >>> hold_decay(0.5, lambda p: 1.0), hold_decay(0.75, lambda p: 1.0, tail=0.5)
    (1.0, 0.5)
    """
    return min(1.0, (1 - progress) / tail)
