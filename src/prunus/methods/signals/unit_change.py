"""What the loss loses, to first order, with each unit as a whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus._common.distributed import total
from prunus._common.units import unit_sums
from prunus.methods.signals import SignalContext
from prunus.methods.signals._gradients import visit
from prunus.types import Group

CALIBRATION = True
BY_UNIT = True
BY_BATCH = True


def unit_change(context: SignalContext) -> Mapping[Group, Tensor]:
    """Mean over batches of (Σ over the scored weights of a unit of g · w)², ``[units]``.

    Raises:
        InputError: without calibration batches or loss.
    """
    weights = {n: p.detach() for n, p in context.parameters.items()}
    device = next(iter(weights.values())).device
    sums = {g: torch.zeros(g.units, dtype=torch.float64, device=device) for g in context.groups}

    def note(grads: list[Tensor], before: int) -> None:
        found = dict(zip(weights, grads, strict=True))
        for group, own in sums.items():
            change = unit_sums(group, lambda n: found[n].detach().double() * weights[n])
            own += change.square().to(own.device)

    batches = visit(context, note)
    total(list(sums.values()))
    return {group: own / batches for group, own in sums.items()}
