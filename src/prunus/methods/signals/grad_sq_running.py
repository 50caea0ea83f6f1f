"""Running mean of squared gradients, collected at every optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.methods.signals import SignalContext
from prunus.methods.signals._running import collected

RUNNING = True

DECAY = 0.99
"""Weight of the past in the running mean: the last hundred steps count."""


def update(
    running: dict[str, Tensor], parameters: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> None:
    """Take in the gradients of a step, after it.

    Where a closure computes them (Lightning), they are those of the step before until then.
    """
    with torch.no_grad():
        for name, weight in parameters.items():
            if weight.grad is None:
                continue
            square = weight.grad.detach().float().square()
            past = running.get(name)
            running[name] = square if past is None else past.lerp_(square, 1 - DECAY)


def grad_sq_running(context: SignalContext) -> Mapping[str, Tensor]:
    """Exponential mean of g² over the optimizer steps so far, and over the ranks.

    Raises:
        InputError: if no step was taken yet, or none gave some weight in scope a gradient: a mean
            of nothing is not zero, and zeros would remove that weight first.
    """
    return collected(context)
