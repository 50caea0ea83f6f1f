"""Compiled kernels behind a thin door; without a C compiler torch does the same, more slowly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

try:
    from prunus.native import kernels
except ImportError:  # no compiler when the package was built
    kernels = None  # type: ignore[assignment]

THREADS = 4
"""With more threads than this, torch's parallel loop is the faster one."""


def available() -> bool:
    """Whether the kernel was compiled and this processor has the instructions that it is for."""
    return kernels is not None and kernels.instructions != ""


def keeper(weight: Tensor, mask: Tensor) -> Callable[[Tensor], None] | None:
    """A function that zeroes what the mask removes, in place, in tensors laid out like ``weight``.

    ``None`` where the kernel does not apply: it is for dense float32 on a CPU.

    Args:
        weight: any shape; only its layout is read.
        mask: bool, True = kept, broadcastable to it.

    >>> kept = torch.tensor([True, False, True])
    >>> values = torch.tensor([1.0, float("nan"), 3.0])
    >>> zero = keeper(values, kept)
    >>> if zero is not None: zero(values)
    >>> values.nan_to_num(0.0)
    tensor([1., 0., 3.])
    """
    dense = weight.device.type == "cpu" and weight.dtype == torch.float32
    if not (available() and dense and torch.get_num_threads() <= THREADS):
        return None
    laid_out = torch.empty_like(weight, dtype=torch.bool).copy_(mask)
    if laid_out.stride() != weight.stride():
        return None  # a view with gaps
    flat = laid_out.as_strided((laid_out.numel(),), (1,))
    bits = memoryview(np.packbits(flat.numpy(), bitorder="little").data)
    count, stride = weight.numel(), weight.stride()

    def zero(values: Tensor) -> None:
        if values.stride() == stride and values.dtype == torch.float32:
            kernels.keep(values.data_ptr(), bits, count)
        else:
            values.masked_fill_(~mask, 0)

    return zero
