"""Fisher scores at no extra cost: the gradients that training computes anyway."""

from __future__ import annotations

from torch import Tensor


def fisher_running(weight: Tensor, grad_sq_running: Tensor) -> Tensor:
    """Fisher: w² · running mean of g², collected while training.

    A frozen weight has no gradient, so it cannot be in scope; ``fisher`` can score it.

    Args:
        weight: ``[...]``.
        grad_sq_running: same shape, exponential mean of g² over optimizer steps.

    Source: Theis et al. 2018, arXiv:1801.05787.

    >>> import torch
    >>> fisher_running(torch.tensor([-3.0, 2.0]), torch.tensor([1.0, 0.5]))
    tensor([9., 2.])
    """
    return weight.detach().square() * grad_sq_running
