"""Weights that training moves away from zero are worth keeping."""

from __future__ import annotations

from torch import Tensor


def movement(grad_weight_running: Tensor) -> Tensor:
    """Movement: −Σ over optimizer steps of g · w: high where steps made |w| larger.

    For fine-tuning a pretrained model. Weights that were removed stay so; a frozen weight has no
    gradient, so it cannot be in scope.

    Args:
        grad_weight_running: ``[...]``, Σ g · w of the training before the cut.

    Source: Sanh, Wolf, Rush 2020, arXiv:2005.07683.

    >>> import torch
    >>> g, w = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    >>> movement((g * w).sum(0))  # two steps, by which the first weight grew
    tensor([ 3., -3.])
    """
    return -grad_weight_running
