"""What removed weights would be by now, had their gradients moved them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunus._common.topk import keep_largest
from prunus.errors import InputError
from prunus.methods.signals import SignalContext

LATENT = True


@torch.no_grad()
def follow(
    behind: Tensor, gradient: Tensor, mask: Tensor, *, rate: float, decay: float, **settings: Any
) -> Tensor:
    """A step of the values behind removed weights: θ − η (g + λ/D · θ); 0 at those left.

    Args:
        behind: θ, ``[...]``.
        gradient: of the step, ``[...]``, with respect to the weights as they were, zeros included.
        mask: True = left, broadcastable.
        rate: η, of the optimizer.
        decay: λ, of the optimizer.
        settings: of the regrowth; ``backward`` is the share of removed weights that goes on, those
            of the largest abs(θ).

    >>> behind, mask = torch.tensor([0.0, 0.5, 0.1]), torch.tensor([True, False, False])
    >>> follow(behind, torch.tensor([9.0, 1.0, 1.0]), mask, rate=0.1, decay=0.0, backward=0.5)
    tensor([0.0000, 0.4000, 0.1000])
    """
    mask = mask.to(behind.device).expand(behind.shape)
    density = float(mask.double().mean())
    goes = ~mask
    count = round(settings.get("backward", 1.0) * int(goes.sum()))
    if count < int(goes.sum()):
        size = behind.abs().masked_fill(mask, -torch.inf).flatten()
        goes = keep_largest(size, count)[0].view(behind.shape)
    step = rate * (gradient + decay / max(density, 1e-12) * behind)
    return torch.where(goes, behind - step, behind).masked_fill_(mask, 0)


def latent(context: SignalContext) -> Mapping[str, Tensor]:
    """θ of all weights: those left, and what is behind those removed.

    Raises:
        InputError: where nothing was kept: that is done for regrowth alone.
    """
    if context.running is None or not context.running.keys() >= context.parameters.keys():
        raise InputError(
            "the values behind removed weights are kept for regrowth alone (regrow: top_kast): a "
            "criterion reads weight"
        )
    every = context.parameters.items()
    return {name: weight.detach() + context.running[name] for name, weight in every}
