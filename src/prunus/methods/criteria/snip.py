"""How much the loss depends on a connection that is not trained yet."""

from __future__ import annotations

from torch import Tensor


def snip(weight: Tensor, grad: Tensor) -> Tensor:
    """SNIP: |∂L/∂c| at c = 1 of weights c · w, which is |w · g|, from one or more batches.

    For networks that are pruned before they are trained: ``rounds: 1`` without ``dense``. Of
    trained ones the same formula is ``sensitivity``.

    Args:
        weight: ``[...]``, as initialized.
        grad: same shape, mean of ∂L/∂w over batches.

    Source: Lee, Ajanthan, Torr 2018, arXiv:1810.02340.

    >>> import torch
    >>> snip(torch.tensor([-3.0, 2.0]), torch.tensor([0.5, 1.0]))
    tensor([1.5000, 2.0000])
    """
    return (weight.detach() * grad).abs_()
