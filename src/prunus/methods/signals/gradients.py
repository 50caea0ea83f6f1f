"""The gradients of all calibration batches, one by one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus._common.distributed import gather, world_size
from prunus.methods.signals import SignalContext
from prunus.methods.signals._gradients import visit

CALIBRATION = True
BY_BATCH = True


def gradients(context: SignalContext) -> Mapping[str, Tensor]:
    """∂L_n/∂w of every batch n, ``[batches, *shape]`` of each parameter; of all ranks in turn.

    All of them are held: as much as that many models.

    Raises:
        InputError: without calibration batches or loss.
    """
    kept: list[list[Tensor]] = []
    visit(context, lambda grads, before: kept.append([g.detach().clone() for g in grads]))
    if world_size() > 1:
        kept = [batch for rank in gather(kept) for batch in rank]
    return {
        name: torch.stack([batch[i] for batch in kept]) for i, name in enumerate(context.parameters)
    }
