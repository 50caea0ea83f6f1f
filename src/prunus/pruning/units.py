"""Between weights and units: scores gathered into units, units spread into masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from prunus.types import Group, Masks, Member


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


def unit_scores(group: Group, score_of: Callable[[str], Tensor]) -> Tensor:
    """Mean score per weight of every unit, ``[units]``.

    Args:
        group: whose units.
        score_of: the scores of a parameter by its name, of the parameter's shape.

    Returns:
        a view of what ``score_of`` gave where every weight is its own unit, else a new tensor.
    """
    if group.sizes is None:
        (member,) = (m for m in group.members if m.scored)
        return _one_to_one(member, score_of(member.name), group.units)
    total = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        if member.scored:
            scores = score_of(member.name)
            total = total.to(scores.device) + _sums(member, scores, group.units)
    return total / group.sizes.to(total.device)


def unit_alive(group: Group, masks: Masks, shapes: Mapping[str, tuple[int, ...]]) -> Tensor | None:
    """Which units are not removed yet, bool ``[units]``; ``None`` when no mask touches them."""
    if not any(m.name in masks for m in group.members if m.scored):
        return None
    if group.sizes is None:
        (member,) = (m for m in group.members if m.scored)
        mask = masks[member.name].expand(shapes[member.name])
        return _one_to_one(member, mask, group.units)
    return _left(group, masks, shapes) > 0


def unit_density(
    group: Group, masks: Masks, shapes: Mapping[str, tuple[int, ...]]
) -> Tensor | None:
    """The part of each unit's weights that other groups' cuts left, ``[units]``; ``None``: all.

    Units cross: a row of one group loses the columns that another group removed. A mean over what
    is left ranks them the same whether the rest is masked or taken out.
    """
    if group.sizes is None or not any(m.name in masks for m in group.members if m.scored):
        return None
    left = _left(group, masks, shapes)
    return left / group.sizes.to(left.device)


def _left(group: Group, masks: Masks, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """How many scored weights of each unit are left, ``[units]``."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        if member.scored:
            counts = _counted(member, masks.get(member.name), shapes[member.name])
            total = total.to(counts.device) + _sums(member, counts, group.units)
    return total


def _counted(member: Member, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """What is kept, summed over the dimensions that do not matter to a member's units.

    Where a mask is broadcast nothing is expanded, so that one of a few rows costs a few numbers.
    """
    whole = torch.ones((1,) * len(shape), dtype=torch.bool) if mask is None else mask
    whole = whole.reshape((1,) * (len(shape) - whole.dim()) + tuple(whole.shape))
    number = numbers(member)
    assert number is not None
    shared = [d for d in range(len(shape)) if number.dim() == 0 or number.shape[d] == 1]
    times = math.prod(shape[d] for d in shared if whole.shape[d] == 1)
    summed = [d for d in shared if whole.shape[d] > 1]
    counts = _number_of_true(whole, summed) if summed else whole
    sizes = [1 if d in shared else n for d, n in enumerate(shape)]
    return counts.double().mul(times).expand(sizes)


def _number_of_true(mask: Tensor, dims: list[int]) -> Tensor:
    """Over some dimensions, which stay as 1; numpy counts ten times as fast as torch on a CPU."""
    if mask.device.type != "cpu":
        return mask.sum(dim=dims, keepdim=True)
    found = np.count_nonzero(mask.numpy(), axis=tuple(dims), keepdims=True)
    return torch.from_numpy(np.asarray(found))


def member_mask(member: Member, keep: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask of a parameter, broadcastable to it, from its group's kept units.

    Args:
        member: the parameter's part in the group.
        keep: bool ``[units]``.
        shape: of the parameter.
    """
    number = numbers(member)
    if number is None:
        return keep.view(shape)
    number = number.to(keep.device)
    return keep[number.clamp(min=0)] | (number < 0)


def _one_to_one(member: Member, values: Tensor, units: int) -> Tensor:
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


def _sums(member: Member, scores: Tensor, units: int) -> Tensor:
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
