"""Gradient steps toward what a block gave, over what stays of it, which leave it no worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from prunus.errors import RunError, first_line

LOOKS = 8
"""How often the error is measured on the way."""
RISE = 8
"""The rate rises in one of so many steps: Adam's first ones go as far as the rate lets them."""
ASIDE = 8
"""One of so many batches says which weights are best, where there are half as many."""


def descend(
    parameters: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    loss: Callable[[int], Tensor],
    *,
    error: Callable[[], float],
    steps: int,
    rates: Mapping[str, float],
) -> None:
    """Adam, with the weights of the lowest error that was met in the end; those at first count.

    The rate rises in the first eighth of the steps, and falls linearly to zero over all of them.
    Removed weights stay zero.

    Args:
        parameters: that learn, whether they require gradients or not; afterwards they do as before.
        masks: of some of them by the same names, True = kept.
        loss: of a step.
        error: of the parameters as they are, on batches that lie :func:`aside`.
        steps: of Adam.
        rates: of each parameter, at its highest.

    Raises:
        RunError: if a parameter is not finite after the steps, or the code has no backward pass.
    """
    needed = [(p, p.requires_grad) for p in parameters.values()]
    groups = [{"params": [p], "lr": rates[name]} for name, p in parameters.items()]
    optimizer = torch.optim.Adam(groups)
    best = _Best(parameters, error)
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for step in range(steps):
            for name, group in zip(parameters, optimizer.param_groups, strict=True):
                group["lr"] = rates[name] * share(step, steps)
            _step(optimizer, parameters, masks, partial(loss, step))
            if (step + 1) * LOOKS // steps > step * LOOKS // steps:
                best.look()
    finally:
        for parameter, learned in needed:
            parameter.grad = None
            parameter.requires_grad_(learned)
    if not all(bool(p.isfinite().all()) for p in parameters.values()):
        raise RunError("diverged: a lower rate may help")
    best.put_back()


def share(step: int, steps: int) -> float:
    """The part of its highest value that the rate has in a step.

    >>> [round(share(step, 16), 2) for step in (0, 1, 8, 15)]
    [0.5, 0.94, 0.5, 0.06]
    """
    return min(1.0, (step + 1) * RISE / steps) * (1 - step / steps)


def aside(batches: int) -> tuple[range, range]:
    """The batches that are learned from, and those that say which weights are best.

    Of fewer than four all do both.

    >>> aside(8), aside(3)
    ((range(0, 7), range(7, 8)), (range(0, 3), range(0, 3)))
    """
    if batches < ASIDE // 2:
        return range(batches), range(batches)
    learned = batches - max(1, batches // ASIDE)
    return range(learned), range(learned, batches)


def _step(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    loss: Callable[[], Tensor],
) -> None:
    with torch.enable_grad():
        grads = _gradients(loss(), [*parameters.values()])
    for (key, parameter), grad in zip(parameters.items(), grads, strict=True):
        parameter.grad = grad if grad is None or key not in masks else grad * masks[key]
    optimizer.step()
    for key, mask in masks.items():
        parameters[key].data.mul_(mask)


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    try:
        found: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of the model's code, such as a write to what autograd reads
        raise RunError(f"cannot learn: {first_line(error)}") from error
    return found


class _Best:
    """The parameters of the lowest error so far."""

    def __init__(self, parameters: Mapping[str, Tensor], error: Callable[[], float]) -> None:
        self._parameters, self._error = parameters, error
        self._lowest = math.inf
        self._kept = [p.detach().clone() for p in parameters.values()]
        self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Keep the parameters as they are, if their error is the lowest."""
        error = self._error()
        if error < self._lowest:
            self._lowest = error
            for kept, parameter in zip(self._kept, self._parameters.values(), strict=True):
                kept.copy_(parameter)

    @torch.no_grad()
    def put_back(self) -> None:
        """Set the parameters to those that were kept."""
        for kept, parameter in zip(self._kept, self._parameters.values(), strict=True):
            parameter.copy_(kept)
