"""From the share of each group to counts, for units of one weight and of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    least = torch.tensor([limits[g].least for g in groups])
    most = torch.tensor([limits[g].most for g in groups])
    share = torch.tensor([shares[g] for g in groups], dtype=torch.float64)

    def counts(total: int) -> Counts:
        kept = apportion(share, total, least, most)
        return {g: int(n) for g, n in zip(groups, kept, strict=True)}

    everything = sum(g.units for g in groups)
    if all(g.sizes is None for g in groups):
        return counts(everything - round(target * everything))
    return fewest(counts, cost, target, {g: limits[g] for g in groups})
