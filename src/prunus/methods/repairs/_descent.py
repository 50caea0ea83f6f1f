"""Gradient steps toward what a block gave, over what stays of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from prunus.errors import RunError, first_line


def descend(
    parameters: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
) -> None:
    """Adam, its rate falling linearly to zero; removed weights stay zero.

    Args:
        parameters: that learn, whether they require gradients or not; afterwards they do as before.
        masks: of some of them by the same names, True = kept.
        loss: of a step.
        steps: of Adam.
        rate: at first.

    Raises:
        RunError: if a parameter is not finite in the end, or the code has no backward pass.
    """
    needed = [(p, p.requires_grad) for p in parameters.values()]
    optimizer = torch.optim.Adam(parameters.values(), lr=rate)
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
                grads = _gradients(loss(step), [*parameters.values()])
                for (key, parameter), grad in zip(parameters.items(), grads, strict=True):
                    parameter.grad = grad if grad is None or key not in masks else grad * masks[key]
                optimizer.step()
                for key, mask in masks.items():
                    parameters[key].data.mul_(mask)
    finally:
        for parameter, learned in needed:
            parameter.grad = None
            parameter.requires_grad_(learned)
    if not all(bool(p.isfinite().all()) for p in parameters.values()):
        raise RunError("diverged: a lower rate may help")


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    try:
        found: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of the model's code, such as a write to what autograd reads
        raise RunError(f"cannot learn: {first_line(error)}") from error
    return found
