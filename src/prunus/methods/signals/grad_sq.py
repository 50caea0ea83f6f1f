"""Mean squared gradient over the calibration batches."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunus.methods.signals import SignalContext
from prunus.methods.signals._gradients import mean_of

CALIBRATION = True
BY_BATCH = True


def grad_sq(context: SignalContext) -> Mapping[str, Tensor]:
    """Mean over batches of (∂L/∂w)²."""
    return mean_of(context, lambda g: g.square())
