"""Between weights and units: scores gathered into units, units spread into masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from prunus._common.units import numbers, one_to_one, sums, unit_sums
from prunus.types import Group, Masks, Member

Reduce: TypeAlias = Literal["mean", "sum", "max", "l2"]
Norm: TypeAlias = Literal["none", "mean", "max", "l2"]


def unit_scores(group: Group, score_of: Callable[[str], Tensor], reduce: Reduce = "mean") -> Tensor:
    """The scores of a unit's weights as one, ``[units]``: by default their mean.

    Args:
        group: whose units.
        score_of: the scores of a parameter by its name, of the parameter's shape.
        reduce: Σ s / n, Σ s, max s, or √Σ s², over the scored weights of all coupled members.

    Returns:
        a view of what ``score_of`` gave where every weight is its own unit, else a new tensor.
    """
    if group.sizes is None:
        (member,) = (m for m in group.members if m.scored)
        return one_to_one(member, score_of(member.name), group.units)
    if reduce in ("mean", "sum"):
        total = unit_sums(group, score_of)
        return total if reduce == "sum" else total / group.sizes.to(total.device)
    if reduce == "l2":
        return unit_sums(group, lambda name: score_of(name).double().square()).sqrt()
    most = torch.full((group.units,), -torch.inf, dtype=torch.float64)
    for member in group.members:
        if member.scored:
            scores = score_of(member.name).double()
            number = numbers(member)
            assert number is not None
            unit = number.to(scores.device).expand(scores.shape)
            inside = unit >= 0
            most = most.to(scores.device)
            most = most.scatter_reduce(0, unit[inside], scores[inside], "amax")
    return most


def normalized(scores: Tensor, by: Norm, alive: Tensor | None) -> Tensor:
    """A layer's scores ÷ the mean, maximum or l2 norm of their absolute values.

    Args:
        scores: ``[units]``.
        by: the divisor; nothing is divided by zero.
        alive: the units that count, by default all.

    >>> normalized(torch.tensor([1.0, -3.0]), "mean", None)
    tensor([ 0.5000, -1.5000])
    """
    if by == "none":
        return scores
    size = (scores if alive is None else scores[alive.to(scores.device)]).detach().abs().double()
    if not len(size):
        return scores
    norm = size.norm() if by == "l2" else size.max() if by == "max" else size.mean()
    return scores / norm.to(scores.dtype) if norm > 0 else scores


def unit_alive(group: Group, masks: Masks, shapes: Mapping[str, tuple[int, ...]]) -> Tensor | None:
    """Which units are not removed yet, bool ``[units]``; ``None`` when no mask touches them."""
    if not any(m.name in masks for m in group.members if m.scored):
        return None
    if group.sizes is None:
        (member,) = (m for m in group.members if m.scored)
        mask = masks[member.name].expand(shapes[member.name])
        return one_to_one(member, mask, group.units)
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
            total = total.to(counts.device) + sums(member, counts, group.units)
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
