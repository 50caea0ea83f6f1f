"""Weights that training moved far are worth keeping."""

from __future__ import annotations

from torch import Tensor


def weight_change(weight: Tensor, start_weight: Tensor) -> Tensor:
    """Weight change: |w − w₀|, how far training moved a weight.

    Args:
        weight: ``[...]``.
        start_weight: same shape, before the first optimizer step.

    Source: Zhou, Lan, Liu, Yosinski 2019, arXiv:1905.01067.

    >>> import torch
    >>> weight_change(torch.tensor([-3.0, 2.0]), torch.tensor([-3.0, -1.0]))
    tensor([0., 3.])
    """
    return (weight.detach() - start_weight).abs_()
