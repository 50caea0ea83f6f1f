"""Gradients of the calibration loss, without touching ``.grad``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from prunus._common.distributed import gather, total, unwrapped
from prunus._common.modules import evaluating
from prunus.errors import InputError, RunError
from prunus.methods.signals import SignalContext


def mean_of(context: SignalContext, statistic: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
    """Mean over calibration batches of a statistic of ∂L/∂w, the model in eval mode.

    Of several ranks, over the batches of all: Σ over ranks ÷ their number. Summed in float64, so
    that it does not depend on who had which.

    Raises:
        InputError: without calibration batches or loss.
        RunError: if a loss is not finite.
    """
    if context.calibration is None or context.loss is None:
        raise InputError(
            "this criterion needs gradients: pass calibration (batches) and "
            "loss (a function of model and batch)"
        )
    parameters = list(context.parameters.values())
    frozen = [p for p in parameters if not p.requires_grad]
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    count, problem = 0, ""
    model = unwrapped(context.model)
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with evaluating(context.model), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            for batch in context.calibration:
                loss = context.loss(model, batch)
                if not bool(torch.isfinite(loss)):
                    problem = f"the loss on a calibration batch is {float(loss.detach())}"
                    break
                _add(sums, torch.autograd.grad(loss, parameters, allow_unused=True), statistic)
                count += 1
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    ranks = gather((count, problem))
    for _, problem in ranks:
        if problem:
            raise RunError(problem)
    batches = sum(count for count, _ in ranks)
    if batches == 0:
        raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
    total(sums)
    return {
        name: sums.pop(0).div_(batches).to(torch.promote_types(p.dtype, torch.float32))
        for name, p in context.parameters.items()
    }


def _add(
    sums: Sequence[Tensor], grads: Sequence[Tensor | None], statistic: Callable[[Tensor], Tensor]
) -> None:
    for sum_, grad in zip(sums, grads, strict=True):
        if grad is not None:
            sum_ += statistic(grad)
