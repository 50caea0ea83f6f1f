"""Weights grow where the loss falls fastest."""

from __future__ import annotations

from torch import Tensor


def rigl(dense_grad: Tensor) -> Tensor:
    """RigL: |∂L/∂w| of the removed weights, in the batch of the step.

    Args:
        dense_grad: ``[...]``, the gradient before masks zero it.

    Source: Evci, Gale, Menick, Castro, Elsen 2020, arXiv:1911.11134.

    >>> import torch
    >>> rigl(torch.tensor([-3.0, 2.0]))
    tensor([3., 2.])
    """
    return dense_grad.abs()
