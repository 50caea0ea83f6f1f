"""Gradients of the calibration loss, without touching ``.grad``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prunus._common.calibrating import calibrating, learning
from prunus._common.distributed import gather, total, world_size
from prunus._common.kinds import kind_of
from prunus._common.nested import own_containers
from prunus.errors import InputError, RunError
from prunus.methods.signals import SignalContext

Note = Callable[[list[Tensor], int], None]
"""Gets the gradients of a batch, in the order of the parameters, and the number of those before."""


def mean_of(context: SignalContext, statistic: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
    """Mean over calibration batches of a statistic of ∂L/∂w, the model in eval mode.

    Of several ranks, over the batches of all: Σ over ranks ÷ their number. Summed in float64, so
    that it does not depend on who had which.

    Raises:
        InputError: without calibration batches or loss.
        RunError: if a loss is not finite.
    """
    parameters = list(context.parameters.values())
    sums: list[Tensor] = []
    batches = visit(context, lambda grads, before: _add(sums, grads, statistic, before))
    if world_size() > 1:
        sums = sums or [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        sums = [x.double() for x in sums]
        total(sums)
    types = [torch.promote_types(p.dtype, torch.float32) for p in parameters]
    made = zip(sums, types, strict=True)
    return _Means(dict(zip(context.parameters, made, strict=True)), batches)


def visit(context: SignalContext, note: Note) -> int:
    """Let something see the gradients of every calibration batch of this rank.

    Args:
        context: the model is in eval mode meanwhile; nothing of it is changed.
        note: gets them; it may empty the list.

    Returns:
        The number of batches of all ranks.

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
    count, problem = 0, ""
    given = context.model, context.calibration, context.loss, context.seed
    with learning(parameters), calibrating(*given, gradients=True) as model:
        for batch in context.calibration:
            loss = scalar(context.loss(model, own_containers(batch)))
            for parameter in parameters:  # the loss may have frozen some
                parameter.requires_grad_(True)
            if not bool(torch.isfinite(loss)):
                problem = f"the loss on a calibration batch is {float(loss.detach())}"
                break
            note(list(_gradients(loss, parameters)), count)
            count += 1
            del loss
    ranks = gather((count, problem))
    for _, problem in ranks:
        if problem:
            raise RunError(problem)
    batches = sum(count for count, _ in ranks)
    if batches == 0:
        raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
    return batches


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    """Zeros, without memory, for what the loss does not depend on."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, grad in zip(parameters, found, strict=True):
        yield parameter.new_zeros(()).expand_as(parameter) if grad is None else grad


def scalar(loss: object) -> Tensor:
    """A loss that has a gradient, or what is wrong with it."""
    if not isinstance(loss, Tensor):
        wrong = f"returned {kind_of(loss)}"
    elif loss.numel() != 1:
        wrong = f"returned {loss.numel()} values, of shape {tuple(loss.shape)}"
    elif not loss.requires_grad:
        wrong = "returned a tensor without a gradient (detached, or made under no_grad)"
    else:
        return loss.reshape(())
    raise InputError(
        f"loss {wrong}: return one number that depends on the model's weights, such as "
        "cross_entropy(model(x), y), which is the mean over the batch"
    )


def _add(
    sums: list[Tensor], grads: list[Tensor], statistic: Callable[[Tensor], Tensor], before: int
) -> None:
    """The first batch's statistics as they are, which may be views; in float64 if more follow."""
    for i in range(len(grads)):
        grad, grads[i] = statistic(grads[i]), grads[i].new_empty(0)
        if before == 0:
            sums.append(grad)
        elif before == 1:
            sums[i] = sums[i].double() + grad
        else:
            sums[i] += grad


class _Means(Mapping[str, Tensor]):
    """Sums ÷ batches, each made when it is read and let go behind the criterion."""

    def __init__(self, sums: Mapping[str, tuple[Tensor, torch.dtype]], batches: int) -> None:
        self._sums, self._batches = sums, batches

    def __getitem__(self, name: str) -> Tensor:
        value, wide = self._sums[name]
        if self._batches > 1:
            value = value.double() / self._batches
        return value.to(wide).add(0.0)  # −0 is 0, as of any sum

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)
