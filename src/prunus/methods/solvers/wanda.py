"""Weights times the norm of what they read."""

from __future__ import annotations

from torch import Tensor

from prunus._common.memory import absolute
from prunus.methods.solvers import Pattern, keep_highest, masked


def wanda(weight: Tensor, squares: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Wanda: in every row the largest \\|w_ij\\| · ‖x_j‖ stay, as they are.

    Args:
        weight: ``[out, in]``.
        squares: the mean of x_j².
        pattern: how much stays.

    Source: Sun et al. 2024, arXiv:2306.11695.

    >>> import torch
    >>> w, squares = torch.tensor([[1.0, 2.0], [3.0, 0.5]]), torch.tensor([9.0, 1.0])
    >>> wanda(w, squares, Pattern(0.5))[1]
    tensor([[1., 0.],
            [3., 0.]])
    """
    norms = squares.clamp(min=0).sqrt().to(weight)
    mask = keep_highest(absolute(weight).mul_(norms), pattern, by_row=True)
    return mask, masked(weight, mask)
