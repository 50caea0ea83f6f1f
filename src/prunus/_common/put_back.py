"""Weights that a pass writes to, put back behind it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus._common.torch_internals import TorchDispatchMode, schema


class PutBack(TorchDispatchMode):
    """A model runs, and what it wrote to its parameters is undone behind that.

    Args:
        values: the parameters.

    >>> weight = torch.zeros(2)
    >>> with PutBack([weight]):
    ...     weight.add_(1)
    tensor([1., 1.])
    >>> weight
    tensor([0., 0.])
    """

    def __init__(self, values: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._values = {place: t for t in values if (place := _memory(t))}
        self._before: dict[int, Tensor] = {}

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for place, before in self._before.items():
            self._values[place].data.copy_(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func, args)
        return func(*args, **(kwargs or {}))

    def note(self, operator: Any, args: Sequence[Any]) -> None:
        """Keep the values that an operator is about to overwrite."""
        for i in written_arguments(operator):
            place = _memory(args[i]) if i < len(args) else 0
            if place in self._values and place not in self._before:
                self._before[place] = self._values[place].detach().clone()


def _memory(value: Any) -> int:
    """Where a tensor's values lie; 0 for none."""
    held = isinstance(value, Tensor) and not value.is_meta and value.layout is torch.strided
    try:
        return int(value.untyped_storage().data_ptr()) if held else 0
    except (RuntimeError, NotImplementedError):  # a tensor that makes its values when read
        return 0


@functools.cache  # every operator of every pass asks, and schemas are slow
def written_arguments(operator: Any) -> Mapping[int, str]:
    """The places and names of the arguments that an operator writes to, by its schema.

    >>> aten = __import__("torch").ops.aten
    >>> written_arguments(aten.add_.Tensor), written_arguments(aten.add.Tensor)
    ({0: 'self'}, {})
    """
    known = schema(operator)
    places = enumerate(known.arguments if known.is_mutable else ())
    return {i: a.name for i, a in places if a.alias_info and a.alias_info.is_write}
