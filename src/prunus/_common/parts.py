"""Large tensors in parts that stay in a processor's cache from one operator to the next."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

_ELEMENTS = 2**16


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of each tensor at a time, as views; a small tensor comes whole.

    Args:
        tensors: of one shape.

    >>> import torch
    >>> [(len(a), len(b)) for a, b in parts(torch.ones(5, 2**15), torch.ones(5, 2**15))]
    [(2, 2), (2, 2), (1, 1)]
    """
    first = tensors[0]
    if first.numel() <= _ELEMENTS:
        yield tensors
        return
    rows = max(1, _ELEMENTS * len(first) // first.numel())
    yield from zip(*(tensor.split(rows) for tensor in tensors), strict=True)
