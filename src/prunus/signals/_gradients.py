"""Gradients of the calibration loss, without touching ``.grad``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunus.errors import InputError, RunError
from prunus.signals import Look


def mean_of(look: Look, statistic: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
    """Mean over calibration batches of a statistic of ∂L/∂w, the model in eval mode.

    Raises:
        InputError: without calibration batches or loss.
        RunError: if a loss is not finite.
    """
    if look.calibration is None or look.loss is None:
        raise InputError(
            "this criterion needs gradients: give calibration (batches) and "
            "loss (a function of model and batch)"
        )
    parameters = list(look.parameters.values())
    frozen = [p for p in parameters if not p.requires_grad]
    modes = [(m, m.training) for m in look.model.modules()]
    total: list[Tensor] | None = None
    count = 0
    try:
        look.model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(look.seed)
            for batch in look.calibration:
                loss = look.loss(look.model, batch)
                if not bool(torch.isfinite(loss)):
                    raise RunError(f"the loss on a calibration batch is {float(loss)}")
                grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                values = [
                    statistic(torch.zeros_like(p) if g is None else g)
                    for p, g in zip(parameters, grads, strict=True)
                ]
                count += 1
                if total is None:
                    total = values
                else:
                    torch._foreach_add_(total, values)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes:
            module.training = training
    if total is None:
        raise InputError("calibration holds no batch (an iterator that was used up? give a list)")
    torch._foreach_div_(total, count)
    return dict(zip(look.parameters, total, strict=True))
