"""A part of a task's training data, and networks that start from given weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.tasks._files import load_weights


def some(task: str, count: int, part: float) -> Tensor:
    """Which of ``count`` items are ``part`` of them, in their order; the same ones every time.

    A smaller part lies inside a larger one.

    Args:
        task: that asks, for messages.
        count: of all items.
        part: above 0 and at most 1.

    Raises:
        InputError: if there is no such part.

    >>> few, more = some("mine", 10, 0.3).tolist(), some("mine", 10, 0.6).tolist()
    >>> len(few), set(few) < set(more), more == sorted(more)
    (3, True, True)
    """
    if not 0 < part <= 1:
        raise InputError(f"task {task}: part is {part}; it must be above 0 and at most 1")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: max(1, round(part * count))].sort().values


def started(
    task: str, make: Callable[[], nn.Module], weights: Path | None
) -> Callable[[], nn.Module]:
    """Makes a network: fresh, or with the weights of a file, ``dense.safetensors`` of a run."""
    if weights is None:
        return make
    return lambda: load_weights(task, make(), weights)
