"""Every output neuron gives the same fraction of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from prunus.methods.allocations._apportion import apportion
from prunus.types import Counts, Group, Limits, Units

WITHIN_NEURONS = True
COUPLED = False


def per_neuron(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
) -> Counts:
    """Per neuron: each keeps (1 − target) of its incoming weights; remainders by position.

    A neuron may lose all of its inputs only if fewer weights are to stay than there are neurons.

    Source: the comparison groups of Sun et al. 2023 (Wanda), arXiv:2306.11695.
    """
    groups = list(units)
    known = getattr(units, "most", None)  # without scores
    alive = [known(g) if known else units[g].isfinite().view(-1, g.run).sum(1) for g in groups]
    shares = torch.cat(
        [torch.full((len(a),), float(g.run)) for g, a in zip(groups, alive, strict=True)]
    )
    most = torch.cat(alive).cpu()
    total = sum(g.units for g in groups)
    kept = apportion(shares, total - round(target * total), torch.zeros_like(most), most)
    return dict(zip(groups, kept.split([len(a) for a in alive]), strict=True))
