"""Less of blocks that a cut harms more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval

from prunus.methods.block_rates import leveled


def measured(
    target: float,
    sizes: Sequence[int],
    damage: Sequence[float],
    *,
    spread: Annotated[float, Interval(ge=0, le=0.5)] = 0.1,
) -> list[float]:
    """Rates within ``target ± spread``, by the logarithm of what a cut of the block alone does.

    With e_l the error of the block's answer when the target of it goes,
    r_l ∝ 2λ (max ln e − ln e_l)/(max ln e − min ln e), shifted so that the target goes.

    Args:
        target: of all weights.
        sizes: weights of each block.
        damage: e_l.
        spread: λ.

    Source: prunus; the interval is that of Yin et al. 2024, arXiv:2310.05175.

    >>> [round(r, 3) for r in measured(0.5, [1, 1, 1], [0.1, 0.01, 0.001], spread=0.1)]
    [0.4, 0.5, 0.6]
    """
    logs = [math.log(max(e, 1e-12)) for e in damage]
    width = max(max(logs) - min(logs), 1e-12)
    return leveled([2 * spread * (max(logs) - e) / width for e in logs], sizes, target)
