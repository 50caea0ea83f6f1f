"""A state that was saved of a model with other wrappers around it, under this model's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from prunus._common.names import matched, plain_names
from prunus.errors import InputError


def renamed(saved: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The state of a pruner with every name of a parameter as this model has it.

    Args:
        saved: plain values and tensors; names are keys of the mappings in it.
        model: wrapped (``module.``, ``_orig_mod.``) or not.

    Raises:
        InputError: for the state of a model that became smaller, which says its names elsewhere.

    >>> renamed({"masks": {"module.weight": 1}, "step": 2}, nn.Linear(1, 1))
    {'masks': {'weight': 1}, 'step': 2}
    >>> renamed({"masks": {"weight": 1}, "step": 2}, nn.DataParallel(nn.Linear(1, 1)))
    {'masks': {'module.weight': 1}, 'step': 2}
    """
    own = plain_names(model)
    said = {key for value in saved.values() for key in _keys(value) if key not in own}
    foreign = {key for key in said if "." in key or key in own.values()}
    other = {name: new for name, new in matched(sorted(foreign), own).items() if new is not None}
    if not other:
        return saved
    if saved.get("shrinks"):
        raise InputError(
            f"this state names '{min(other)}', which here is '{other[min(other)]}': wrap the model "
            "as it was when it was saved (DataParallel, torch.compile), since it became smaller"
        )
    return {key: _with(value, other) for key, value in saved.items()}


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield key
            yield from _keys(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _keys(inner)


def _with(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {names.get(k, k): _with(v, names) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with(v, names) for v in value)
    return value
