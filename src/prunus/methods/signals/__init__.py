"""Statistics that criteria read: one file a signal, a function of the file's name.

``(context) -> {parameter name: tensor}``, each of the parameter's shape.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.errors import InputError, did_you_mean
from prunus.methods.catalog import names


@dataclass(frozen=True)
class SignalContext:
    """What a signal may look at.

    Attributes:
        model: in the mode it is in; a signal leaves it and its gradients as they were.
        parameters: the scored parameters by name.
        calibration: batches, iterated from the start by each signal.
        loss: ``(model, batch) -> scalar``.
        seed: of everything random.
        running: means collected while training, by parameter name.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    calibration: Iterable[Any] | None
    loss: Callable[[nn.Module, Any], Tensor] | None
    seed: int
    running: Mapping[str, Tensor] | None


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


def collect(criterion: Callable[..., Tensor], context: SignalContext) -> Callable[[str], Tensor]:
    """The criterion as a function from a parameter's name to its scores, a tensor of their own."""
    wanted = needed(criterion)
    values = {}
    for signal in wanted:
        values[signal] = getattr(
            importlib.import_module(f"prunus.methods.signals.{signal}"), signal
        )(context)

    def score(name: str) -> Tensor:
        given = [values[signal][name] for signal in wanted]
        made: Tensor = criterion(*given)
        shape = context.parameters[name].shape
        if not isinstance(made, Tensor) or made.shape != shape:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InputError(
                f"the criterion returned {got} for '{name}', whose shape is {tuple(shape)}"
            )
        made = made.detach() if made.dtype.itemsize >= 4 else made.detach().float()
        shared = {x.untyped_storage().data_ptr() for x in given}
        return made.clone() if made.untyped_storage().data_ptr() in shared else made

    return score
