"""Σ|w|."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus._common.parts import computable, parts


def l1(model: nn.Module, known: Mapping[str, float] | None = None) -> float:
    """Σ|w| over all parameters, in float64.

    Args:
        model: whose.
        known: what :func:`sums` gave, where it was called already.

    >>> linear = nn.Linear(2, 1, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.5, -2.0]]))
    >>> l1(linear)
    3.5
    """
    return sum((sums(model) if known is None else known).values())


def sums(model: nn.Module) -> dict[str, float]:
    """Σ|w| of each parameter, by name."""
    return {name: l1_of(p) for name, p in model.named_parameters()}


def l1_of(tensor: Tensor) -> float:
    """Σ|w| of one tensor, in float64; a large one in parts that stay in a processor's cache.

    >>> l1_of(torch.full((3, 2**18), -0.5))
    393216.0
    """
    every = parts(tensor.detach())
    return sum(float(computable(part).abs().sum(dtype=torch.float64)) for (part,) in every)
