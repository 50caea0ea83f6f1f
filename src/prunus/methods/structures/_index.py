"""Index vectors: how the dimensions of a weight number its units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def along(dim: int, rank: int, values: Tensor) -> Tensor:
    """Integers laid along one dimension of a weight, ready to broadcast.

    Args:
        dim: the dimension.
        rank: how many dimensions the weight has.
        values: ``[size of dim]``, int64.

    >>> import torch
    >>> along(0, 2, torch.arange(3)).shape
    torch.Size([3, 1])
    """
    shape = [1] * rank
    shape[dim] = len(values)
    return values.view(shape)


def numbering(shape: Sequence[int], dims: Iterable[int]) -> tuple[list[Tensor], int]:
    """Vectors whose sum numbers the weights along some dimensions, and how many numbers there are.

    Args:
        shape: of the weight.
        dims: the first of them counts fastest.

    >>> vectors, count = numbering((2, 3), (1, 0))
    >>> sum(vectors).tolist(), count
    ([[0, 1, 2], [3, 4, 5]], 6)
    """
    vectors, step = [], 1
    for dim in dims:
        vectors.append(along(dim, len(shape), torch.arange(shape[dim]) * step))
        step *= shape[dim]
    return vectors, step
