"""The gradients of a step, before masks zero those of removed weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunus._common.distributed import mean
from prunus.errors import InputError
from prunus.methods.signals import SignalContext

CAPTURED = True


def dense_grad(context: SignalContext) -> Mapping[str, Tensor]:
    """∂L/∂w of all weights in the batches of one optimizer step, the mean over the ranks.

    Raises:
        InputError: where none was kept: that is done for regrowth alone.
    """
    if context.running is None or not context.running.keys() >= context.parameters.keys():
        raise InputError(
            "dense gradients are kept for regrowth alone (regrow: rigl): a criterion reads grad, "
            "with calibration"
        )
    return mean({name: context.running[name] for name in context.parameters})
