"""How much a weight keeps the gradient flowing."""

from __future__ import annotations

from torch import Tensor


def grasp(weight: Tensor, hessian_grad: Tensor) -> Tensor:
    """GraSP: w · (H g), what ½‖g‖² loses to first order when the weight goes.

    For networks that are pruned before they are trained: ``rounds: 1`` without ``dense``.

    Args:
        weight: ``[...]``.
        hessian_grad: same shape, the Hessian of the calibration loss times its gradient.

    Source: Wang, Zhang, Grosse 2020, arXiv:2002.07376.

    >>> import torch
    >>> grasp(torch.tensor([-3.0, 2.0]), torch.tensor([0.5, 1.0]))
    tensor([-1.5000,  2.0000])
    """
    return weight.detach() * hessian_grad
