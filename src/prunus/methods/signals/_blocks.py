"""Weights that follow one another, in blocks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def in_blocks(values: Tensor, size: int) -> Tensor:
    """``[n, ...]`` as ``[blocks, n, size]``, zeros at the end of the last block.

    >>> import torch
    >>> in_blocks(torch.tensor([[1.0, 2.0, 3.0]]), 2).tolist()
    [[[1.0, 2.0]], [[3.0, 0.0]]]
    """
    rows = values.reshape(len(values), -1)
    padded = functional.pad(rows, (0, -rows.shape[1] % size))
    return padded.reshape(len(rows), -1, size).transpose(0, 1)
