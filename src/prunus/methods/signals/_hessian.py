"""Products of the calibration loss's Hessian with vectors, by second derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus._common.calibrating import calibrating, learning
from prunus._common.distributed import gather, total
from prunus._common.nested import own_containers
from prunus.errors import InputError
from prunus.methods.signals import SignalContext
from prunus.methods.signals._gradients import scalar

Vector = Mapping[str, Tensor]
"""A number for every element of every parameter."""


def products(context: SignalContext, along: Sequence[Vector]) -> list[dict[str, Tensor]]:
    """H v for vectors v: ∂/∂w Σ_b (∂L_b/∂w · v) / B, the mean over batches b, in float64.

    Args:
        context: the model is in eval mode meanwhile; nothing of it is changed.
        along: the vectors.

    Raises:
        InputError: without calibration batches or loss, or where an operator has no second
            derivative.
    """
    if context.calibration is None or context.loss is None:
        raise InputError(
            "this criterion needs second derivatives: pass calibration (batches) and "
            "loss (a function of model and batch)"
        )
    parameters = list(context.parameters.values())
    sums = [
        {n: torch.zeros_like(p, dtype=torch.float64) for n, p in context.parameters.items()}
        for _ in along
    ]
    count = 0
    given = context.model, context.calibration, context.loss, context.seed
    try:
        with (
            learning(parameters),
            calibrating(*given, gradients=True) as model,
            sdpa_kernel(SDPBackend.MATH),  # fused attention has no second derivative
        ):
            for batch in context.calibration:
                loss = scalar(context.loss(model, own_containers(batch)))
                first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
                count += 1
                for number, vector in enumerate(along):
                    parts = [
                        (g * vector[n].to(g.dtype)).sum()
                        for n, g in zip(context.parameters, first, strict=True)
                        if g is not None and g.requires_grad
                    ]
                    if parts:
                        more = number + 1 < len(along)
                        found = torch.autograd.grad(
                            parts, parameters, allow_unused=True, retain_graph=more
                        )
                        _add(sums[number], found)
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise InputError(
            f"an operator of this model has no second derivative ({error}): use sensitivity or "
            "fisher, which need none"
        ) from error
    batches = sum(gather(count))
    if not batches:
        raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
    for one in sums:
        total(list(one.values()))
        for value in one.values():
            value /= batches
    return sums


def _add(sums: Vector, found: tuple[Tensor | None, ...]) -> None:
    for own, part in zip(sums.values(), found, strict=True):
        if part is not None:
            own += part
