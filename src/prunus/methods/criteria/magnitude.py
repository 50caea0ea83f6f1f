"""Small weights matter least."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from prunus._common.memory import absolute


def magnitude(weight: Tensor, *, p: Annotated[float, Gt(0)] = 1) -> Tensor:
    """Absolute value: |w|^p (p = 1: L1, p = 2: L2 for units of several weights).

    Single weights rank alike for every p; the units of a structure are ranked by their
    mean, so p = 2 compares neurons by their L2 norm.

    Args:
        weight: ``[...]``, any shape.
        p: the exponent, above 0.

    Source: Han, Pool, Tran, Dally 2015, arXiv:1506.02626.

    >>> import torch
    >>> magnitude(torch.tensor([-3.0, 2.0]), p=2)
    tensor([9., 4.])
    """
    return absolute(weight) if p == 1 else weight.detach().abs().pow_(p)
