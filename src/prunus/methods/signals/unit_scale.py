"""By how much batch norms multiply what each unit gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus._common.torch_internals import AnyBatchNorm
from prunus._common.units import numbers
from prunus.errors import InputError
from prunus.methods.signals import SignalContext
from prunus.types import Group

BY_UNIT = True


def unit_scale(context: SignalContext) -> Mapping[Group, Tensor]:
    """|γ| of the batch norm behind a unit, the mean where there are several, ``[units]``.

    Raises:
        InputError: for units that no batch norm with a scale follows.
    """
    owners = [m for m in context.model.modules() if isinstance(m, AnyBatchNorm)]
    scales = {id(m.weight) for m in owners if m.weight is not None}
    own = {n: p for n, p in context.model.named_parameters() if id(p) in scales}
    return {group: _mean(group, own) for group in context.groups}


def _mean(group: Group, scales: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(group.units, dtype=torch.float64)
    count = torch.zeros_like(total)
    for member in group.members:
        if member.name in scales and (number := numbers(member)) is not None:
            gamma = scales[member.name].detach().abs().double().cpu()
            inside = number >= 0
            total.index_add_(0, number[inside], gamma[inside])
            count.index_add_(0, number[inside], torch.ones_like(gamma[inside]))
    if not bool(count.all()):
        raise InputError(
            f"bn_scale: no batch norm follows the units of '{group.name}': structure: channel "
            "knows which one does; name the layers that have one in scope.include, or use "
            "magnitude"
        )
    return total / count
