"""LightningModules without a ``forward``: their ``training_step`` is what is traced."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, ParamSpec, TypeGuard, TypeVar

from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def through_training_step(model: nn.Module, example: Any) -> Iterator[Any]:
    """Let a LightningModule that has no ``forward`` be called with a batch.

    Inside, its ``forward`` is ``training_step(batch, 0)``; other models stay as they are.

    Args:
        model: any.
        example: for such a module a batch, as its loader gives it.

    Yields:
        The example in the form of others: the batch is the only argument.
    """
    if not lacks_forward(model):
        yield example
        return
    vars(model)["forward"] = MethodType(_step, model)
    try:
        yield example if example is None else (example,)
    finally:
        vars(model).pop("forward", None)


def lacks_forward(model: object) -> TypeGuard[nn.Module]:
    """Whether a module is a LightningModule whose class defines no ``forward``."""
    kind = type(model)
    step = getattr(kind, "training_step", None)
    if not isinstance(model, nn.Module) or not callable(step) or "forward" in vars(model):
        return False
    owner = next((c for c in kind.__mro__ if "forward" in vars(c)), nn.Module)
    return owner is nn.Module or owner.__module__.startswith(("lightning.", "pytorch_lightning."))


def without_step(model: nn.Module) -> None:
    """Take such a ``forward`` off a copy that was made inside."""
    own = vars(model).get("forward")
    if isinstance(own, MethodType) and own.__func__ is _step:
        del vars(model)["forward"]


def _step(self: Any, batch: Any) -> Any:
    """``training_step`` on a batch; nothing is logged, since no step of a training is taken."""
    parameters = list(inspect.signature(self.training_step).parameters.values())
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    own, silent = vars(self), dict.fromkeys(("log", "log_dict"), _nothing)
    kept = {name: own[name] for name in silent if name in own}
    own.update(silent)
    try:
        found = self.training_step(batch, *([0] * (len(required) - 1)))
    finally:
        for name in silent:
            own.pop(name, None)
        own.update(kept)
    if isinstance(found, dict):
        return {key: value for key, value in found.items() if isinstance(value, Tensor)}
    return found


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what logs."""


def takes_steps(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of a model and an ``example=`` take such modules, the example a batch."""

    @functools.wraps(function)
    def taking(*args: P.args, **kwargs: P.kwargs) -> R:
        model = args[0] if args else next(iter(kwargs.values()), None)
        if not lacks_forward(model):
            return function(*args, **kwargs)
        bound = inspect.signature(function).bind(*args, **kwargs)
        with through_training_step(model, bound.arguments.get("example")) as example:
            bound.arguments["example"] = example
            found: R = function(*bound.args, **bound.kwargs)
        made = getattr(found, "model", None)
        if isinstance(made, nn.Module):
            without_step(made)
        return found

    return taking
