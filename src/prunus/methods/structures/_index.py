"""Index vectors: how the dimensions of a weight number its units."""

from __future__ import annotations

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
