"""What of a matrix stays, and what its values are then: chosen and compensated at once.

``(weight, …, pattern, *, settings) -> (mask, weight)``, a function of the file's name: ``weight``
``[out, in]`` in float32, between it and the pattern what it needs to know of what the matrix
multiplies: ``squares`` ``[in]``, the mean of x², or ``hessian`` ``[in, in]``, the mean of x xᵀ.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus._common.memory import lasting
from prunus._common.topk import keep_largest, keep_largest_by_run


@dataclass(frozen=True)
class Pattern:
    """How much of a matrix stays.

    Attributes:
        sparsity: the part that goes; of n:m it is 1 − n/m.
        n_of_m: so many of so many consecutive inputs stay, in every row.
    """

    sparsity: float
    n_of_m: tuple[int, int] | None = None


def keep_highest(scores: Tensor, pattern: Pattern, *, by_row: bool) -> Tensor:
    """The mask of the highest scores ``[rows, columns]``; of equal ones the first stay.

    Args:
        scores: of weights.
        pattern: how many stay, rounded to whole weights: of each row, of each m, or of all.
        by_row: whether every row keeps as many.

    >>> keep_highest(torch.tensor([[1.0, 3.0, 2.0, 4.0]]), Pattern(0.5, (1, 2)), by_row=True)
    tensor([[False,  True, False,  True]])
    """
    if pattern.n_of_m is not None:
        n, m = pattern.n_of_m
        runs = scores.reshape(-1, m)
    elif by_row:
        runs, n = scores, scores.shape[1] - round(pattern.sparsity * scores.shape[1])
    else:
        keep = scores.numel() - round(pattern.sparsity * scores.numel())
        return keep_largest(scores.reshape(-1), keep)[0].view_as(scores)
    return keep_largest_by_run(runs, torch.full((len(runs),), n)).view_as(scores)


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """A weight with zeros where its mask has them.

    >>> masked(torch.tensor([2.0, 3.0]), torch.tensor([True, False]))
    tensor([2., 0.])
    """
    if not weight.is_cpu:
        return weight * mask
    return torch.mul(weight, mask, out=lasting(weight.shape, weight.dtype))


STATISTICS = ("squares", "hessian")


def statistic_of(solver: Callable[..., Any]) -> str:
    """What a solver needs to know of what a matrix multiplies; empty: nothing.

    >>> statistic_of(lambda weight, squares, pattern: None)
    'squares'
    """
    names = inspect.signature(solver).parameters
    return next((name for name in STATISTICS if name in names), "")
