"""Running sum of gradient times weight, collected at every optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.methods.signals import SignalContext
from prunus.methods.signals._running import collected

RUNNING = True
BEFORE = "every"


def update(
    running: dict[str, Tensor], parameters: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> None:
    """Take in a step: its gradients times the weights for which they were computed."""
    with torch.no_grad():
        for name, weight in parameters.items():
            if weight.grad is None or name not in before:
                continue
            part = (weight.grad.detach() * before[name]).float()
            past = running.get(name)
            running[name] = part if past is None else past.add_(part)


def grad_weight_running(context: SignalContext) -> Mapping[str, Tensor]:
    """Σ over the optimizer steps so far of g · w, the mean over the ranks.

    Raises:
        InputError: if no step was taken yet, or none gave some weight in scope a gradient.
    """
    return collected(context)
