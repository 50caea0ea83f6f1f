"""Mean gradient over the calibration batches."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunus.methods.signals import SignalContext
from prunus.methods.signals._gradients import mean_of

CALIBRATION = True


def grad(context: SignalContext) -> Mapping[str, Tensor]:
    """Mean over batches of ∂L/∂w."""
    return mean_of(context, lambda g: g)
