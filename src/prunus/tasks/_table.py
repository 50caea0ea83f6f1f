"""Classification of a table of inputs, with a part of it to validate and as much to test."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunus.tasks.base import Batches, Task, accuracy, classification_loss

Parts = tuple[Tensor, Tensor, Tensor]
"""Numbers of the items to train, to validate and to test."""


def split(count: int, held: int) -> Parts:
    """``held`` items to validate and as many to test, drawn with a fixed seed."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: -2 * held], order[-2 * held : -held], order[-held:]


def classification(
    model: Callable[[], nn.Module],
    inputs: Tensor,
    classes: Tensor,
    parts: Parts,
    *,
    batch: int,
    rate: float,
) -> Task:
    """A task on inputs ``[n, ...]`` and classes ``[n]``: SGD with momentum 0.9."""
    train, validation, test = parts

    def batches(chosen: Tensor, *, shuffle: bool = False) -> Batches:
        return Batches(inputs[chosen], classes[chosen], size=batch, shuffle=shuffle)

    return Task(
        model=model,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
        loss=classification_loss,
        metric=accuracy,
        train=batches(train, shuffle=True),
        validation=batches(validation),
        test=batches(test),
        example=inputs[:1],
        calibration=list(batches(train[:512])),
        train_sample=batches(train[: len(validation)]),
    )
