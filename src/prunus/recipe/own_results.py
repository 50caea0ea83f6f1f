"""Methods of a user's own: what they take is looked at before work starts, then what they give."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from prunus._common.kinds import kind_of
from prunus.errors import InputError
from prunus.types import State

CALLED_WITH = {
    "schedules": ("progress", "start", "target"),
    "allocations": ("units", "cost", "target", "limits"),
    "restore": ("state", "masks", "memory"),
}
"""What methods of an axis are called with, in this order."""


def watched(axis: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A schedule, an allocation or a restore of a user's own, whose results are looked at.

    Args:
        axis: its folder among the methods; others come back as they are.
        name: ``path/to/file.py:function``.
        function: with its settings.

    Raises:
        InputError: if it cannot be called as it will be; from its calls, if what it returns
            is of no use.

    >>> watched("schedules", "mine.py:half", lambda progress, start, target: 0.5)(0.0, 0.0, 0.9)
    0.5
    """
    if axis not in CALLED_WITH:
        return function
    words = CALLED_WITH[axis]
    try:
        inspect.signature(function).bind(*words)
    except TypeError as error:
        raise InputError(f"{name}: it is called with {', '.join(words)}: {error}") from None

    @functools.wraps(function)
    def called(*args: Any) -> Any:
        found = function(*args)
        problem = _PROBLEMS[axis](found, *args)
        if problem:
            raise InputError(f"{name} returned {problem}")
        return found

    return called


def _of_schedule(found: Any, *_: Any) -> str:
    if isinstance(found, (int, float)) and math.isfinite(found):
        return ""
    return f"{kind_of(found)}: give the sparsity that is due, a number"


def _of_restore(found: Any, *_: Any) -> str:
    return "" if isinstance(found, State) else f"{kind_of(found)}: give a prunus.types.State"


def _of_allocation(found: Any, units: Mapping[Any, Any], *_: Any) -> str:
    says = "give the units that each group keeps, {group: number}"
    if not isinstance(found, Mapping):
        return f"{kind_of(found)}: {says}"
    for group in units:
        if group not in found:
            return f"nothing for {group.name}: {says}"
        if not _counts(found[group], group.units):
            return f"{found[group]!r:.60} for {group.name}: a whole number from 0 to {group.units}"
    return ""


def _counts(kept: Any, most: int) -> bool:
    if isinstance(kept, Tensor):  # run by run
        return not kept.is_floating_point() and not kept.is_complex()
    try:
        return 0 <= operator.index(kept) <= most
    except TypeError:
        return False


_PROBLEMS: dict[str, Callable[..., str]] = {
    "schedules": _of_schedule,
    "allocations": _of_allocation,
    "restore": _of_restore,
}
