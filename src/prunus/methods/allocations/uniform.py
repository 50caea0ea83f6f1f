"""Every group gives the same fraction."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from prunus.methods.allocations._shares import keep_by_share
from prunus.types import Counts, Group, Limits, Units

N_OF_M = True


def uniform(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
) -> Counts:
    """Uniform: each group keeps (1 − target) of its units; n:m keeps m − ⌊target·m⌋ of every m.

    Source: Zhu & Gupta 2017, arXiv:1710.01878; n:m: Mishra et al. 2021, arXiv:2104.08378.
    """
    if any(group.balanced for group in units):
        return {
            g: torch.tensor(g.run - int(target * g.run + 1e-9)).expand(g.units // g.run)
            for g in units
        }
    return keep_by_share(
        units, {g: float(g.dense_units or g.units) for g in units}, cost, target, limits
    )
