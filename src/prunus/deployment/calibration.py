"""The inputs that a model gets while its loss is computed: what a runtime is calibrated on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common import rng as randomness
from prunus._common.inputs import Inputs, arguments, by_name, positional_names
from prunus._common.modules import evaluating
from prunus._common.nested import own_containers
from prunus._common.torch_internals import pytree
from prunus._common.traces import without_trace
from prunus.errors import InputError


def inputs_of(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    limit: int = 8,
) -> list[Any]:
    """What the model is called with, batch by batch, in the form of an example.

    Args:
        model: in any mode, which is left as it is.
        loss: ``(model, batch) -> scalar``; the first call of the model in it counts.
        batches: as many as ``limit`` of them are used.
        limit: of batches.

    Returns:
        For each batch an input, a tuple of inputs, or a mapping of keyword arguments.

    Raises:
        InputError: if there is no batch, or the loss does not call the model.

    >>> squares = lambda model, batch: model(batch).square().mean()
    >>> inputs_of(nn.Linear(2, 1), squares, [torch.ones(1, 2), torch.zeros(1, 2)], limit=1)
    [tensor([[1., 1.]])]
    """
    found: list[Any] = []
    calls: list[Any] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(own_containers(_as_example(module, args, kwargs)))

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with (
            without_trace(model, "loss"),
            evaluating(model),
            torch.no_grad(),
            randomness.preserve_rng(),
        ):
            for batch in islice(batches, limit):
                calls.clear()
                loss(model, own_containers(batch))
                if not calls:
                    raise InputError("loss does not call the model, so its inputs are unknown")
                found.append(calls[0])
    finally:
        hook.remove()
    if not found:
        raise InputError("calibration contains no batch: pass at least one")
    return found


def passes_of(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor] | None, batches: Iterable[Any]
) -> list[Inputs]:
    """The arguments of the calls on all batches: those of the loss, or the batches themselves.

    Raises:
        InputError: if there is no batch, or the loss does not call the model.
    """
    if loss is None:
        found = [arguments(batch) for batch in batches]
        if not found:
            raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
        return found
    return [arguments(one) for one in inputs_of(model, loss, batches, limit=sys.maxsize)]


def _as_example(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One input, a tuple, or a mapping; copies, because a loader may fill its buffers again."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
    if not kwargs:
        plain = len(args) == 1 and not isinstance(args[0], (tuple, list, dict))
        return args[0] if plain else args
    given = by_name(positional_names(module), (args, kwargs))
    unnamed = [name for name in given if name.startswith("args_") and name not in kwargs]
    if unnamed:
        raise InputError(
            f"loss calls the model with both *args and keywords ({', '.join(kwargs)}), which an "
            "example cannot express: call it with keywords only, or with none"
        )
    return given
