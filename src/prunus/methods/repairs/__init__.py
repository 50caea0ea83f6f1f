"""What brings accuracy back after a cut, before any training: one file a repair.

``(context, *, settings) -> None``, a function of the file's name; it changes the context's model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus._common.inputs import Inputs
from prunus.types import Masks


@dataclass(frozen=True)
class RepairContext:
    """What a repair may look at, and what it changes.

    Attributes:
        model: masked; its removed weights stay zero.
        reference: the same model before the cut.
        masks: parameter name to bool, True = kept.
        passes: the inputs of calibration batches, from the start at each call.
        batches: the calibration batches themselves.
        loss: ``(model, batch) -> scalar``; ``None``: a batch is what the model is called with.
        seed: of noise in the model.
    """

    model: nn.Module
    reference: nn.Module | None
    masks: Masks
    passes: Callable[[], Iterable[Inputs]]
    batches: Iterable[Any] = ()
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    seed: int = 0
