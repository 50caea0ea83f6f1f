"""Σ|w|."""

from __future__ import annotations

import torch
from torch import nn


def l1(model: nn.Module) -> float:
    """Σ|w| over all parameters, in float64.

    >>> linear = nn.Linear(2, 1, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.5, -2.0]]))
    >>> l1(linear)
    3.5
    """
    return sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in model.parameters())
