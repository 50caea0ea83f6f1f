"""Zeroing what a mask removes, step after step: prepared once for a weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunus._common.kernels import keeper

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def zeroer(weight: Tensor, mask: Tensor) -> Callable[[Tensor], None]:
    """What zeroes the removed weights of a tensor shaped like ``weight``, in place.

    The compiled kernel where it applies; else one bitwise AND with integers of the weight's
    width that have all bits set or none.
    """
    mask = mask.to(weight.device)
    native = keeper(weight, mask)
    if native is not None:
        return native
    width = weight.element_size()
    integer = _INTEGERS[width]
    bits = mask.to(integer).neg_()
    if bits.shape == weight.shape and not weight.is_contiguous():
        bits = torch.empty_like(weight, dtype=integer).copy_(bits)

    def zero(values: Tensor) -> None:
        if values.element_size() == width and values.device == bits.device:
            values.view(integer).bitwise_and_(bits)
        else:  # the model was cast or moved
            values.masked_fill_(~mask.to(values.device), 0)

    return zero
