"""How curved the loss is along the weights of each unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from prunus._common.units import unit_sums
from prunus.methods.signals import SignalContext
from prunus.methods.signals._hessian import products
from prunus.methods.signals.noise import noise
from prunus.types import Group

CALIBRATION = True
BY_UNIT = True
SAMPLES = True


def unit_curvature(context: SignalContext) -> Mapping[Group, Tensor]:
    """Trace of a unit's block of the Hessian ÷ its weights, by Hutchinson's estimate, ``[units]``.

    Mean over ``probes`` random signs v of v · (H v), summed over the unit. Where a unit is one
    weight, over all of its layer.

    Raises:
        InputError: without calibration batches or loss, or where an operator has no second
            derivative.
    """
    probes = int(context.settings["probes"])
    signs = [_signs(replace(context, seed=context.seed + 1_000_003 * k)) for k in range(probes)]
    found = list(zip(signs, products(context, signs), strict=True))
    diagonal = {n: sum(v[n] * hv[n] for v, hv in found) / probes for n in context.parameters}
    return {group: _trace(group, diagonal) for group in context.groups}


def _signs(context: SignalContext) -> dict[str, Tensor]:
    drawn = noise(context)
    return {n: (drawn[n] < 0.5).double() * 2 - 1 for n in context.parameters}


def _trace(group: Group, diagonal: Mapping[str, Any]) -> Tensor:
    sums = unit_sums(group, lambda n: diagonal[n])
    if group.sizes is None:
        return sums.mean().expand(group.units)
    return sums / group.sizes.to(sums.device)
