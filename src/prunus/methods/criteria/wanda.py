"""How much a weight moves what its layer gives."""

from __future__ import annotations

from torch import Tensor


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """Wanda: |w_ij| · ‖x_j‖, the norm of the input over calibration data.

    Its authors compare the weights of one row: ``allocation: per_neuron``. Needs no gradients.

    Args:
        weight: ``[...]``.
        input_norm: same shape, √(mean of x_j²) of what the weight multiplies.

    Source: Sun, Liu, Bair, Kolter 2024, arXiv:2306.11695.

    >>> import torch
    >>> wanda(torch.tensor([[-3.0, 2.0]]), torch.tensor([[0.5, 1.0]]))
    tensor([[1.5000, 2.0000]])
    """
    return weight.detach().abs() * input_norm
