"""A weight's share of its row and of its column, times what it is multiplied by."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor


def ria(
    weight: Tensor, input_norm: Tensor, *, power: Annotated[float, Interval(ge=0, le=1)] = 0.5
) -> Tensor:
    """Relative importance: (|w_ij| / Σ_k |w_ik| + |w_ij| / Σ_k |w_kj|) · ‖x_j‖^power.

    So no row and no column of a layer is emptied. A filter is a row, each of its entries a column.

    Args:
        weight: ``[outputs, ...]``.
        input_norm: same shape, √(mean of x_j²) of what the weight multiplies.
        power: of the input's norm.

    Source: Zhang, Bai, Lin et al. 2024, arXiv:2402.12187.

    >>> ria(torch.tensor([[1.0, -1.0], [3.0, 1.0]]), torch.ones(2, 2))
    tensor([[0.7500, 1.0000],
            [1.5000, 0.7500]])
    """
    size = weight.detach().abs()
    size = size.to(torch.promote_types(size.dtype, torch.float32))  # 1e-12 is 0 in float16
    rows = size.flatten(1)
    share = rows / rows.sum(1, keepdim=True).clamp(min=1e-12)
    share = share + rows / rows.sum(0, keepdim=True).clamp(min=1e-12)
    return share.view(size.shape) * input_norm**power
