"""Second-order change of the loss, with the empirical Fisher diagonal."""

from __future__ import annotations

from torch import Tensor


def fisher(weight: Tensor, grad_sq: Tensor) -> Tensor:
    """Fisher: w² · mean g², from gradients of the calibration batches.

    Args:
        weight: ``[...]``.
        grad_sq: same shape, mean over batches of (∂L/∂w)².

    Source: LeCun, Denker, Solla 1989 (OBD); Theis et al. 2018, arXiv:1801.05787.

    >>> import torch
    >>> fisher(torch.tensor([-3.0, 2.0]), torch.tensor([1.0, 0.5]))
    tensor([9., 2.])
    """
    return weight.detach().square() * grad_sq
