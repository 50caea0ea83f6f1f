"""How far each unit is from the others of its layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus._common.layers import layers_of
from prunus._common.units import numbers
from prunus.errors import InputError
from prunus.methods.signals import SignalContext
from prunus.types import Group

BY_UNIT = True


def unit_distance(context: SignalContext) -> Mapping[Group, Tensor]:
    """Σ_j ‖F_i − F_j‖₂ over the units j of the layer, ``[units]``.

    F_i are the weights that make unit i: of its filter, without those that read it. Units that are
    zero already are no neighbors.

    Raises:
        InputError: where a unit is a single weight.
    """
    tables = (layers_of(n, m) for n, m in context.model.named_modules())
    out = {layer.name: layer.out_dim for table in tables for layer in table}
    weights = {n: p.detach() for n, p in context.parameters.items()}
    return {group: _distances(_filters(group, weights, out)) for group in context.groups}


def _filters(group: Group, weights: Mapping[str, Tensor], out: Mapping[str, int]) -> Tensor:
    """``[units, weights of one]``."""
    if group.sizes is None:
        raise InputError(
            f"fpgm compares whole filters, and the units of '{group.name}' are single weights: use "
            "structure: channel or neuron, or another criterion"
        )
    known = [(m, n) for m in group.members if m.scored and (n := numbers(m)) is not None]
    makes = [(m, n) for m, n in known if n.dim() and n.shape[out.get(m.name, 0)] > 1]
    parts = [_rows(weights[m.name], n, group.units) for m, n in makes or known]
    return torch.cat(parts, dim=1)


def _rows(weight: Tensor, number: Tensor, units: int) -> Tensor:
    unit = number.to(weight.device).expand(weight.shape).flatten()
    order = torch.sort(unit, stable=True).indices
    order = order[unit[order] >= 0]
    sizes = torch.bincount(unit[order], minlength=units)
    rows = weight.new_zeros(units, int(sizes.max()), dtype=torch.float64)
    place = torch.arange(len(order), device=weight.device) - (sizes.cumsum(0) - sizes)[unit[order]]
    rows[unit[order], place] = weight.flatten()[order].double()
    return rows


def _distances(filters: Tensor) -> Tensor:
    there = filters[filters.any(dim=1)]
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(filters, there, compute_mode=exact).sum(dim=1)
