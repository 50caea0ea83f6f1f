"""Large weights along which the loss is curved matter most."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor


def hessian_trace(
    unit_square: Tensor, unit_curvature: Tensor, *, probes: Annotated[int, Ge(1)] = 8
) -> Tensor:
    """Hessian trace: Tr(H_u) / (2 p) · ‖w_u‖² of a unit of p weights, by Hutchinson's estimate.

    Where a unit is one weight, the trace is that of its layer.

    Args:
        unit_square: ``[units]``, ‖w_u‖².
        unit_curvature: ``[units]``, Tr(H_u) / p.
        probes: random vectors of the estimate, a second backward pass each.

    Source: Yu, Yao, Gholami, Dong, Kim, Mahoney, Keutzer 2022, arXiv:2101.08940.

    >>> import torch
    >>> hessian_trace(torch.tensor([4.0, 1.0]), torch.tensor([0.5, 3.0]))
    tensor([1.0000, 1.5000])
    """
    return unit_curvature * unit_square / 2
