"""Density falls by equal steps from the first layer to the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from annotated_types import Interval

from prunus.methods.allocations._shares import keep_by_share
from prunus.types import Counts, Group, Limits, Units


def arithmetic(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
    *,
    slope: Annotated[float, Interval(ge=-1, le=1)] = 0.15,
) -> Counts:
    """Density ∝ 1 + slope·(1 − 2·l/(L − 1)) for layer l of L, in the order of the pass.

    Errors of early layers grow on their way through those behind them. A negative slope keeps the
    last layers denser.

    Source: Huang, Hu, Zhu, Zhang, Ji 2025, arXiv:2502.14770.
    """
    last = max(1, len(units) - 1)
    shares = {
        g: (g.dense_units or g.units) * max(1 + slope * (1 - 2 * place / last), 1e-6)
        for place, g in enumerate(units)
    }
    return keep_by_share(units, shares, cost, target, limits)
