"""The names that a model's code reads: what is set under one later, a graph does not see."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

from prunus._common.code_objects import codes_in
from prunus._common.former_module import StandIn


def names_read(model: nn.Module) -> frozenset[str]:
    """Names of attributes, and words that may be such, in the code of all of a model's classes.

    Functions that it calls are looked into too, where they are not torch's.

    >>> class Scaled(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x) * self.scale
    >>> "scale" in names_read(nn.Sequential(Scaled(1, 1))), "scale" in names_read(nn.Linear(1, 1))
    (True, False)
    """
    found: set[str] = set()
    seen: set[Any] = set()
    for kind in {type(m) for m in model.modules() if not isinstance(m, StandIn)}:
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            for name, value in vars(base).items():
                if name != "__init__":  # what builds it has run
                    found |= _read_by(value, seen)
    return frozenset(found).union(*(m.fixed for m in model.modules() if isinstance(m, StandIn)))


def _read_by(value: Any, seen: set[Any]) -> set[str]:
    """Names in a function, and in those that it calls by their global names."""
    for wrapped in ("fget", "func", "__func__"):
        value = getattr(value, wrapped, value)
    function = inspect.unwrap(value) if callable(value) else None
    if not isinstance(function, FunctionType) or function in seen:
        return set()
    seen.add(function)
    found = set(_words(function))
    for name in found & function.__globals__.keys():
        called = function.__globals__[name]
        if isinstance(called, FunctionType) and not str(called.__module__).startswith("torch"):
            found |= _read_by(called, seen)
    return found


def _words(function: FunctionType) -> Iterator[str]:
    """Names in a function's code, and words in quotes."""
    for code in codes_in(function.__code__):
        yield from code.co_names
        yield from (c for c in code.co_consts if isinstance(c, str) and c.isidentifier())
