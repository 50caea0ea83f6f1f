"""Small layers are kept denser than large ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from prunus.methods.allocations._shares import keep_by_share
from prunus.types import Counts, Group, Limits, Units


def erk(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
) -> Counts:
    """Erdős–Rényi kernel: density ∝ Σ dimensions ÷ Π dimensions, at most 1.

    Source: Evci et al. 2019 (RigL), arXiv:1911.11134; Mocanu et al. 2018, arXiv:1707.04780.
    """
    shares = {g: (g.dense_units or g.units) * sum(g.shape) / math.prod(g.shape) for g in units}
    return keep_by_share(units, shares, cost, target, limits)
