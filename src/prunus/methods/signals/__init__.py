"""Statistics that criteria read: one file a signal, a function of the file's name.

``(context) -> {parameter name: tensor}``, each of the parameter's shape; one whose file declares
``BY_UNIT`` (``methods/traits.py``) gives ``{group: tensor}``, a number for each unit.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from prunus.errors import InputError, did_you_mean
from prunus.methods.catalog import names
from prunus.types import Group


@dataclass(frozen=True)
class SignalContext:
    """What a signal may look at.

    Attributes:
        model: in the mode it is in; a signal leaves it and its gradients as they were.
        parameters: the scored parameters by name.
        calibration: batches, iterated from the start by each signal.
        loss: ``(model, batch) -> scalar``.
        seed: of everything random.
        running: what was collected while training, by parameter name.
        groups: whose units are to be scored.
        example: an input of the model.
        settings: of the criterion that asks.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    calibration: Iterable[Any] | None
    loss: Callable[[nn.Module, Any], Tensor] | None
    seed: int
    running: Mapping[str, Tensor] | None
    groups: Sequence[Group] = ()
    example: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def needed(criterion: Callable[..., Tensor]) -> list[str]:
    """The signals that a criterion names: its positional parameters.

    Raises:
        InputError: if one is no signal.

    >>> def snip(weight, grad, *, scale=1.0): ...
    >>> needed(snip)
    ['weight', 'grad']
    """
    wanted = [
        p.name
        for p in inspect.signature(criterion).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    for signal in wanted:
        if signal not in names("signals"):
            known = did_you_mean(signal, names("signals"))
            name = getattr(criterion, "__name__", "?")
            raise InputError(f"criterion {name} asks for an unknown signal '{signal}'; {known}")
    return wanted


def by_unit(criterion: Callable[..., Tensor]) -> bool:
    """Whether a criterion scores whole units, since a signal that it reads is of whole units.

    >>> from prunus.methods.criteria.taylor import taylor
    >>> by_unit(taylor)
    True
    """
    return any(getattr(_module(signal), "BY_UNIT", False) for signal in needed(criterion))


def updates(criterion: Callable[..., Tensor]) -> list[Callable[..., None]]:
    """What takes in the gradients of a step, for a criterion that reads the training."""
    modules = [_module(signal) for signal in needed(criterion)]
    return [module.update for module in modules if getattr(module, "RUNNING", False)]


def collect(criterion: Callable[..., Tensor], context: SignalContext) -> Callable[[Any], Tensor]:
    """The criterion as a function from a parameter's name to its scores, a tensor of their own.

    Of one that scores whole units, from a group to ``[units]``.
    """
    wanted = needed(criterion)
    context = replace(context, settings=settings_of(criterion))
    values = {signal: getattr(_module(signal), signal)(context) for signal in wanted}

    def score(of: str | Group) -> Tensor:
        given = [values[signal][of] for signal in wanted]
        made: Tensor = criterion(*given)
        shape = (of.units,) if isinstance(of, Group) else tuple(context.parameters[of].shape)
        if not isinstance(made, Tensor) or made.shape != shape:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            place = of.name if isinstance(of, Group) else of
            raise InputError(f"the criterion returned {got} for '{place}', whose shape is {shape}")
        made = made.detach() if made.dtype.itemsize >= 4 else made.detach().float()
        shared = {x.untyped_storage().data_ptr() for x in given}
        return made.clone() if made.untyped_storage().data_ptr() in shared else made

    return score


def settings_of(criterion: Callable[..., Any]) -> dict[str, Any]:
    """Its settings, as they are bound.

    >>> def magnitude(weight, *, p=1.0): ...
    >>> settings_of(magnitude)
    {'p': 1.0}
    """
    keywords = inspect.signature(criterion).parameters.values()
    return {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}


def _module(signal: str) -> ModuleType:
    return importlib.import_module(f"prunus.methods.signals.{signal}")
