"""The built-in training loop, for tasks: nothing that a user's own could not do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from prunus.errors import RunError
from prunus.progressive.phase import Run
from prunus.tasks.base import Task


def trainer(task: Task) -> Callable[[nn.Module, Run], None]:
    """``train(model, run)`` of a task."""

    def train(model: nn.Module, run: Run) -> None:
        optimizer = task.optimizer(model.parameters())
        run.attach(optimizer)
        model.train()
        for batch in run.batches(task.train):
            optimizer.zero_grad()
            loss = run.distill(batch, loss=task.loss)
            if not bool(torch.isfinite(loss)):
                raise RunError(
                    f"the loss became {float(loss.detach())} at step {run.done + 1} of round "
                    f"{run.round}: a lower learning rate or gradient clipping may help"
                )
            loss.backward()
            optimizer.step()

    return train
