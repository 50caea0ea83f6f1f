"""The Hessian of the calibration loss times its gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.methods.signals import SignalContext
from prunus.methods.signals._hessian import products
from prunus.methods.signals.grad import grad

CALIBRATION = True


def hessian_grad(context: SignalContext) -> Mapping[str, Tensor]:
    """H g: the gradient of ½‖g‖² along g = mean over calibration batches of ∂L/∂w.

    H g = ∂/∂w Σ_b (∂L_b/∂w · g) / B with g held constant, by two passes over the batches.

    Raises:
        InputError: without calibration batches or loss.
    """
    (found,) = products(context, [grad(context)])
    return {
        n: found[n].to(torch.promote_types(p.dtype, torch.float32))
        for n, p in context.parameters.items()
    }
