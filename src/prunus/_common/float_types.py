"""The type that a graph's constants have in a model of another type than the one traced."""

from __future__ import annotations

import torch
from torch import Tensor

_COMPLEX = {torch.float16: torch.complex32, torch.float64: torch.complex128}


def float_type(like: Tensor, traced: torch.dtype) -> torch.dtype:
    """What a type written in a graph is, where the code took it from its inputs or weights.

    Args:
        like: a weight or an input as it is in this call.
        traced: the type in the call that was traced.

    >>> float_type(torch.ones(1, dtype=torch.float64), torch.float32)
    torch.float64
    >>> float_type(torch.ones(1, dtype=torch.float64), torch.complex64)
    torch.complex128
    """
    if traced.is_complex and not like.is_complex():
        return _COMPLEX.get(like.dtype, torch.complex64)
    return like.dtype
