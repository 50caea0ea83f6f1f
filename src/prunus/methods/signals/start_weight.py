"""The weights before the training that precedes a cut."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunus.methods.signals import SignalContext
from prunus.methods.signals._running import collected

RUNNING = True
BEFORE = "first"


def update(
    running: dict[str, Tensor], parameters: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> None:
    """Keep the weights from before the first step."""
    for name in parameters:
        if name not in running and name in before:
            running[name] = before[name]


def start_weight(context: SignalContext) -> Mapping[str, Tensor]:
    """w₀: the weights before the first optimizer step that was seen.

    Raises:
        InputError: if no step was taken yet.
    """
    return collected(context)
