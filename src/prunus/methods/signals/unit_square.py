"""How large the weights of each unit are together."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunus._common.units import unit_sums
from prunus.methods.signals import SignalContext
from prunus.types import Group

BY_UNIT = True


def unit_square(context: SignalContext) -> Mapping[Group, Tensor]:
    """Σ over the scored weights of a unit of w², ``[units]``."""
    weights = context.parameters
    return {
        g: unit_sums(g, lambda n: weights[n].detach().double().square()) for g in context.groups
    }
