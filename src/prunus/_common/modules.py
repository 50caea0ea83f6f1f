"""Modules as such: modes, copies, names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in its own mode again.

    A module with a ``train()`` of its own is told its mode by that method: a graph switches its
    operators there, and adapters take their weights out of others again.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(model):
    ...     [m.training for m in model]
    [False, False]
    >>> [m.training for m in model]
    [True, False]
    """
    with keeping_modes(model):
        model.eval()
        yield


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, afterwards every module is in the mode that it had before.

    One that has taken another's place inside gets the mode of that one.
    """
    modes = [(module, module.training) for module in model.modules()]
    places = {name: module.training for name, module in model.named_modules()}
    try:
        yield
    finally:
        known = {id(module) for module, _ in modes}
        added = [(n, m) for n, m in model.named_modules() if id(m) not in known]
        modes += [(module, _nearest(places, name)) for name, module in added]
        for module, mode in modes:  # what encloses others comes first
            if type(module).train is not nn.Module.train:
                module.train(mode)
        for module, mode in modes:
            module.training = mode


def take_mode(module: nn.Module, of: nn.Module) -> None:
    """Put a module into the mode of the one whose place it takes."""
    if module.training is not of.training:
        module.train(of.training)


def _nearest(places: dict[str, bool], name: str) -> bool:
    """The mode at a path, or of the innermost module around it that was there."""
    while name not in places:
        name = name.rpartition(".")[0]
    return places[name]
