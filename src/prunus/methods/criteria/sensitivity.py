"""First-order change of the loss when a weight goes."""

from __future__ import annotations

from torch import Tensor


def sensitivity(weight: Tensor, grad: Tensor) -> Tensor:
    """Sensitivity: |w · ∂L/∂w|, the gradient averaged over the calibration batches.

    Args:
        weight: ``[...]``.
        grad: same shape, mean of ∂L/∂w over batches.

    Source: Mozer & Smolensky 1988; Lee, Ajanthan, Torr 2018 (SNIP), arXiv:1810.02340.

    >>> import torch
    >>> sensitivity(torch.tensor([-3.0, 2.0]), torch.tensor([0.5, 1.0]))
    tensor([1.5000, 2.0000])
    """
    return (weight.detach() * grad).abs_()
