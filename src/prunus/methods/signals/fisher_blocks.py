"""Blocks of the empirical Fisher matrix along its diagonal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus._common.distributed import total
from prunus.methods.signals import SignalContext
from prunus.methods.signals._blocks import in_blocks
from prunus.methods.signals._gradients import visit

CALIBRATION = True
BY_BATCH = True


def fisher_blocks(context: SignalContext) -> Mapping[str, Tensor]:
    """(1/N) Σ_n g_n g_nᵀ of every ``block_size`` weights that follow one another.

    ``[blocks, block_size, block_size]`` of each parameter, zeros beyond its last weight; one
    accumulator while batches pass, of ``block_size`` numbers for each weight.

    Raises:
        InputError: without calibration batches or loss.
    """
    size = int(context.settings["block_size"])
    sums: dict[str, Tensor] = {}
    for name, parameter in context.parameters.items():
        block = min(size, parameter.numel())
        shape = (-(-parameter.numel() // block), block, block)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        sums[name] = torch.zeros(shape, dtype=wide, device=parameter.device)

    def note(grads: list[Tensor], before: int) -> None:
        for own, grad in zip(sums.values(), grads, strict=True):
            (row,) = in_blocks(grad.detach()[None], own.shape[-1]).to(own.dtype).unbind(1)
            own.baddbmm_(row[:, :, None], row[:, None, :])

    batches = visit(context, note)
    total(list(sums.values()))
    for own in sums.values():
        own /= batches
    return sums
