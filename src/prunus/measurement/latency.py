"""Milliseconds of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from prunus._common.inputs import Inputs, called
from prunus._common.nested import own_containers
from prunus._common.timing import Timing, interleaved


def latency(
    models: Mapping[str, nn.Module], inputs: Mapping[int, Inputs], *, seconds: float
) -> dict[str, dict[int, Timing]]:
    """Forward passes of every model at every batch size, in one interleaved run.

    Without autograd (``torch.inference_mode``); in the mode in which the models are.

    Args:
        models: by name, all of them on the same device as the inputs.
        inputs: by batch size.
        seconds: for each model and batch size.

    Returns:
        By model and batch size.

    >>> found = latency({"linear": nn.Linear(3, 2)}, {1: ((torch.ones(1, 3),), {})}, seconds=0.01)
    >>> found["linear"][1].median_ms > 0
    True
    """
    passes = {
        f"{name} {batch}": forward(model, given)
        for batch, given in inputs.items()
        for name, model in models.items()
    }
    with torch.inference_mode():
        found = interleaved(passes, seconds=seconds)
    return {name: {batch: found[f"{name} {batch}"] for batch in inputs} for name in models}


def forward(model: nn.Module, inputs: Inputs) -> Callable[[], object]:
    """A forward pass that can be called."""
    args, kwargs = inputs
    if any(own_containers(part) is not part for part in (*args, *kwargs.values())):
        return lambda: called(model, inputs)
    return lambda: model(*args, **kwargs)
