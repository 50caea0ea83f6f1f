"""An optimizer copied along with its model, so that both pairs can go on."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunus.errors import InputError, first_line
from prunus.pruning.optimizers import parameters_of, real_optimizer


def refuse_stranger(optimizer: object, model: nn.Module) -> None:
    """An error for an optimizer that trains nothing of a model.

    Raises:
        InputError: for it, and for what is no optimizer.
    """
    real = real_optimizer(optimizer)
    if not parameters_of(real) & {id(p) for p in model.parameters()}:
        raise InputError(
            f"optimizer: this {type(real).__name__} holds no parameter of the model: pass the one "
            "that trains it, or none"
        )


def optimizer_copy(optimizer: object, model: nn.Module, twin: nn.Module) -> Optimizer:
    """A copy of a model's optimizer that trains a copy of the model.

    Groups, settings and state are copied; parameters of other models stay the very same. Hooks,
    and a step that a scheduler has wrapped, belong to the optimizer that was given.

    Args:
        optimizer: of the model; of wrappers that only pass calls on, the one inside is copied.
        model: with the parameters that it holds.
        twin: a deep copy of the model.

    Raises:
        InputError: if something that it holds cannot be copied.

    >>> model = nn.Linear(1, 1)
    >>> twin = copy.deepcopy(model)
    >>> made = optimizer_copy(Optimizer(model.parameters(), {"lr": 0.1}), model, twin)
    >>> made.param_groups[0]["params"][0] is twin.weight, made.param_groups[0]["lr"]
    (True, 0.1)
    """
    real = real_optimizer(optimizer)
    memo: dict[int, Any] = {id(p): p for group in real.param_groups for p in group["params"]}
    memo |= {id(old): new for old, new in zip(_parameters(model), _parameters(twin), strict=True)}
    try:
        return _copied(real, memo)
    except Exception as error:  # copying calls the code of whatever the optimizer holds
        raise InputError(
            f"{type(real).__name__} cannot be copied ({first_line(error)}): leave optimizer out, "
            "and build a new one for the smaller model"
        ) from error


def _parameters(model: nn.Module) -> Iterable[nn.Parameter]:
    return (p for _, p in model.named_parameters(remove_duplicate=False))


def _copied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """All attributes: ``copy.deepcopy`` takes three of them, and drops what subclasses add."""
    made = type(optimizer).__new__(type(optimizer))
    memo[id(optimizer)] = made
    for key, value in vars(optimizer).items():
        if key.startswith("_optimizer_") and key.endswith("_hooks"):
            vars(made)[key] = OrderedDict()
        elif isinstance(value, Optimizer):
            vars(made)[key] = memo.get(id(value)) or _copied(value, memo)
        elif not callable(getattr(type(optimizer), key, None)):
            vars(made)[key] = copy.deepcopy(value, memo)
    return made
