"""More of every next block than of the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval

from prunus.methods.block_rates import leveled


def progression(
    target: float, sizes: Sequence[int], *, slope: Annotated[float, Interval(ge=-1, le=1)] = 0.15
) -> list[float]:
    """An arithmetic progression: the last block loses ``slope`` more than the first.

    r_l = target + slope · (l/(L − 1) − ½) for l = 0 … L − 1, shifted so that the target goes.

    Source: Hu et al. 2025, Determining layer-wise sparsity for large language models through a
    theoretical perspective, arXiv:2502.14770.

    >>> [round(r, 3) for r in progression(0.5, [1, 1, 1], slope=0.2)]
    [0.4, 0.5, 0.6]
    """
    last = max(1, len(sizes) - 1)
    return leveled([target + slope * (i / last - 0.5) for i in range(len(sizes))], sizes, target)
