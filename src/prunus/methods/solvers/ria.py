"""The share of a weight in its row and in its column, times what it reads."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from prunus._common.memory import absolute
from prunus.methods.solvers import Pattern, keep_highest, masked


def ria(
    weight: Tensor, squares: Tensor, pattern: Pattern, *, power: Annotated[float, Ge(0)] = 0.5
) -> tuple[Tensor, Tensor]:
    """RIA: the largest shares in row and column, times what is read, stay in every row.

    The score is (\\|w_ij\\|/Σ_k\\|w_ik\\| + \\|w_ij\\|/Σ_k\\|w_kj\\|) · ‖x_j‖^a.

    Args:
        weight: ``[out, in]``.
        squares: the mean of x_j².
        pattern: how much stays.
        power: a.

    Source: Zhang et al. 2024, Plug-and-Play: an efficient post-training pruning method for large
    language models, ICLR.

    >>> import torch
    >>> w = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    >>> ria(w, torch.ones(2), Pattern(0.5))[0]
    tensor([[False,  True],
            [ True, False]])
    """
    size = absolute(weight)
    rows = size.sum(1, keepdim=True).clamp(min=1e-30)
    columns = size.sum(0, keepdim=True).clamp(min=1e-30)
    norms = squares.clamp(min=0).sqrt().to(weight)
    mask = keep_highest((size / rows + size / columns) * norms**power, pattern, by_row=True)
    return mask, masked(weight, mask)
