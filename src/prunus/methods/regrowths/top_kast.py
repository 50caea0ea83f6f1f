"""Weights trade places with those that would have grown past them."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from torch import Tensor


def top_kast(latent: Tensor, *, backward: Annotated[float, Interval(ge=0, le=1)] = 0.5) -> Tensor:
    """Top-KAST: |θ| of all weights, those left as they are and the removed ones as they went on.

    A removed weight is zero in the forward pass, and θ behind it goes on from where it was cut:
    θ ← θ − η (∂L/∂w + λ/D · θ), for a share of the removed ones, those of the largest |θ|. η and
    λ are the optimizer's rate and weight decay, D the density. A weight that comes back is θ.

    Args:
        latent: ``[...]``, θ.
        backward: share of the removed weights whose θ goes on; that of the others waits.

    Source: Jayakumar, Pascanu, Rae, Osindero, Elsen 2021, arXiv:2106.03517, whose penalty and
    sets A and B these are; momentum is left out for removed weights.

    >>> import torch
    >>> top_kast(torch.tensor([-0.3, 0.2]))
    tensor([0.3000, 0.2000])
    """
    return latent.abs()
