"""What the loss loses, to first order, when a whole unit goes."""

from __future__ import annotations

from torch import Tensor


def taylor(unit_change: Tensor) -> Tensor:
    """Taylor: (Σ over the weights of a unit of g · w)², the mean over the calibration batches.

    Of single weights it is the mean of (g · w)², which is ``fisher``.

    Args:
        unit_change: ``[units]``, the squared sum.

    Source: Molchanov, Mallya, Tyree, Frosio, Kautz 2019, arXiv:1906.10771.

    >>> import torch
    >>> g, w = torch.tensor([[1.0, 2.0], [1.0, -1.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    >>> taylor((g * w).sum(1).square())  # two units of two weights, one batch
    tensor([9., 0.])
    """
    return unit_change
