"""From the share of each group to counts, for units of one weight and of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch

from prunus.methods.allocations._apportion import apportion
from prunus.methods.allocations._fewest import fewest
from prunus.types import Counts, Group, Limits, Units


def keep_by_share(
    units: Units,
    shares: Mapping[Group, float],
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
) -> Counts:
    """Keep units in proportion to ``shares`` until the sparsity is the target.

    Units of one weight: exactly the asked number. Larger units: as near to the target as
    whole units allow without passing it.
    """
    groups = list(units)
    least, most = tuple(limits[g].least for g in groups), tuple(limits[g].most for g in groups)
    share = tuple(shares[g] for g in groups)

    def counts(total: int) -> Counts:
        return dict(zip(groups, _apportioned(share, total, least, most), strict=True))

    everything = sum(g.units for g in groups)
    if all(g.sizes is None for g in groups):
        return counts(everything - round(target * everything))
    return fewest(counts, cost, target, {g: limits[g] for g in groups})


@lru_cache(maxsize=1024)  # a bound on a cost asks for the same totals over and over
def _apportioned(
    shares: tuple[float, ...], total: int, least: tuple[int, ...], most: tuple[int, ...]
) -> list[int]:
    bounds = torch.tensor(least), torch.tensor(most)
    return apportion(torch.tensor(shares, dtype=torch.float64), total, *bounds).tolist()
