"""Large tensors in parts that stay in a processor's cache from one operator to the next."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_ELEMENTS = 2**16


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of each tensor at a time, as views; a small tensor comes whole.

    Args:
        tensors: of one shape.

    >>> [(len(a), len(b)) for a, b in parts(torch.ones(5, 2**15), torch.ones(5, 2**15))]
    [(2, 2), (2, 2), (1, 1)]
    """
    first = tensors[0]
    if first.numel() <= _ELEMENTS:
        yield tensors
        return
    rows = max(1, _ELEMENTS * len(first) // first.numel())
    yield from zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def computable(tensor: Tensor) -> Tensor:
    """The same values in a type that torch computes in: float8 is only stored.

    >>> computable(torch.ones(1, dtype=torch.float8_e4m3fn)).dtype
    torch.float32
    """
    small = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.float() if small else tensor


def count_nonzero(values: Tensor) -> int:
    """How many are not zero; numpy counts what is one byte each faster than torch.

    >>> count_nonzero(torch.tensor([0.0, -0.0, 2.0, float("nan")]))
    2
    """
    values = computable(values.detach())
    if values.device.type != "cpu":
        return int(torch.count_nonzero(values))
    return sum(int(np.count_nonzero(part.bool().numpy())) for (part,) in parts(values))
