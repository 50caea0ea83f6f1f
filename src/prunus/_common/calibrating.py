"""Calibration batches on their way through a model: what stays as it was, whoever looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common import loaders
from prunus._common.modules import evaluating
from prunus._common.names import unwrapped
from prunus._common.rng import preserve_rng
from prunus._common.traces import without_trace


@contextmanager
def calibrating(
    model: nn.Module,
    calibration: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    seed: int,
    *,
    gradients: bool = False,
) -> Iterator[nn.Module]:
    """The model in eval mode, unwrapped, for a loss on batches that begin anew.

    Whatever draws inside draws the same each time: torch's generator and those that batches and
    loss hold are seeded, and go on afterwards as if nothing had been drawn. Weights, statistics
    and frozen parameters are as they were.

    Args:
        model: that the loss is given.
        calibration: batches.
        loss: ``(model, batch) -> scalar``.
        seed: of everything random.
        gradients: whether autograd is on.

    >>> with calibrating(nn.Dropout(0.5), [], lambda m, b: m(b), 0) as model:
    ...     model.training
    False
    """
    with (
        without_trace(model, "loss"),
        evaluating(model),
        torch.set_grad_enabled(gradients),
        preserve_rng(),
        loaders.keeping_generators(calibration, loss),
    ):
        torch.manual_seed(seed)
        loaders.restart((calibration, loss), seed)
        yield unwrapped(model)


@contextmanager
def learning(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Parameters that require gradients inside, the frozen ones too."""
    frozen = [p for p in parameters if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
