"""Weights grow anywhere."""

from __future__ import annotations

from torch import Tensor


def set(noise: Tensor) -> Tensor:
    """SET: uniform random numbers, so that what grows is drawn at random.

    Args:
        noise: ``[...]``, uniform; others at each step.

    Source: Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta 2018, arXiv:1707.04780.

    >>> import torch
    >>> set(torch.tensor([0.25, 0.75]))
    tensor([0.2500, 0.7500])
    """
    return noise
