"""Sums over units: which elements of which parameters belong to each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunus.types import Group, Member


def numbers(member: Member) -> Tensor | None:
    """The unit of each element, broadcastable to the parameter; −1 = of no unit.

    ``None`` when every element is its own unit.

    >>> rows, columns = torch.tensor([[0], [-1]]), torch.tensor([[0, 1]])
    >>> numbers(Member("w", (rows, columns)))
    tensor([[ 0,  1],
            [-1, -1]])
    """
    if member.index is None:
        return None
    total = torch.zeros((), dtype=torch.int64)
    belongs = torch.ones((), dtype=torch.bool)
    for vector in member.index:
        total = total + vector
        belongs = belongs & (vector >= 0)
    return torch.where(belongs, total, -1)


def unit_sums(group: Group, value_of: Callable[[str], Tensor]) -> Tensor:
    """Sum over the scored weights of every unit, ``[units]``.

    Args:
        group: whose units.
        value_of: values of a parameter by its name, of the parameter's shape.

    Returns:
        a view of what ``value_of`` gave where every weight is its own unit, else a new tensor.
    """
    if group.sizes is None:
        (member,) = (m for m in group.members if m.scored)
        return one_to_one(member, value_of(member.name), group.units)
    total = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        if member.scored:
            values = value_of(member.name)
            total = total.to(values.device) + sums(member, values, group.units)
    return total


def one_to_one(member: Member, values: Tensor, units: int) -> Tensor:
    """The values of a parameter, each a unit, in the order of units."""
    number = numbers(member)
    if number is None:
        return values.reshape(-1)
    number = number.to(values.device)
    if number.min() < 0:
        inside = (number >= 0).expand(values.shape)
        number, values = number.expand(values.shape)[inside], values[inside]
    out = values.new_empty(units)
    out[number] = values
    return out


def sums(member: Member, scores: Tensor, units: int) -> Tensor:
    """Sums by unit in float64, in a fixed order: sorted segments, no atomic adds."""
    number = numbers(member)
    assert number is not None
    number = number.to(scores.device)
    scores = scores.double()
    shared = [d for d in range(scores.dim()) if number.dim() == 0 or number.shape[d] == 1]
    if shared:  # dimensions that do not matter are summed by view
        scores = scores.sum(dim=shared, keepdim=True)
    flat, unit = scores.flatten(), number.expand(scores.shape).flatten()
    order = torch.sort(unit, stable=True).indices
    order = order[unit[order] >= 0]
    lengths = torch.bincount(unit[order], minlength=units)
    return torch.segment_reduce(flat[order], "sum", lengths=lengths, initial=0.0)
