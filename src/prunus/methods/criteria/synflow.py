"""How much flows through a weight; no data is looked at."""

from __future__ import annotations

from torch import Tensor


def synflow(weight: Tensor, flow_grad: Tensor) -> Tensor:
    """SynFlow: ∂R/∂w · w with R = 1ᵀ (∏ |W|) 1, in float64.

    Cut in many rounds without training between them (``rounds: 100``, ``schedule: geometric``), no
    layer is emptied before the others: what flows into a layer flows out of it.

    Args:
        weight: ``[...]``.
        flow_grad: same shape, ∂R/∂|w|.

    Source: Tanaka, Kunin, Yamins, Ganguli 2020, arXiv:2006.05467.

    >>> import torch
    >>> first, last = torch.tensor([[1.0], [-2.0]]), torch.tensor([[3.0, 4.0]])
    >>> synflow(first, last.abs().T)  # R = |1·3| + |−2·4|
    tensor([[3.],
            [8.]])
    """
    return weight.detach().abs() * flow_grad
