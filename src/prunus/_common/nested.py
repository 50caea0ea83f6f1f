"""Nested values: the tensors in lists, mappings and objects, and values made like them."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
)
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.torch_internals import pytree
from prunus.errors import InputError

Parts = list[tuple[str, Any]]


Rebuild = Callable[[list[Any]], Any]


_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
"""Sizes while a model is traced: numbers whose attributes lead through all of the tracing."""


_LEAVES = (
    Tensor,
    nn.Module,
    type,
    Enum,
    FunctionType,
    MethodType,
    ModuleType,
    torch.Size,
    *_SYMBOLS,
    *(type(None), str, bytes, int, float, complex),
)


MOST = 100_000
"""Containers of a value; objects that all refer to each other would have any number of ways."""


class _Way:
    """The way into a value: what it is in, and how many containers were opened in all."""

    __slots__ = ("around", "opened")

    def __init__(self, around: tuple[int, ...] = (), opened: list[int] | None = None) -> None:
        self.around = around
        self.opened = [0] if opened is None else opened

    def into(self, value: Any) -> tuple[Parts, Rebuild] | None:
        """The parts of a value; ``None`` for a leaf, and for what it is in itself.

        Raises:
            InputError: after more containers than any batch or answer has.
        """
        taken = None if id(value) in self.around else _taken_apart(value)
        if taken is not None:
            self.opened[0] += 1
            if self.opened[0] > MOST:
                raise InputError(
                    f"a value of more than {MOST:,} lists, mappings and objects, one of them a "
                    f"{type(value).__name__}: what refers to each other in many ways is no batch "
                    "and no answer; give, and return, what is needed of it"
                )
        return taken

    def behind(self, value: Any) -> _Way:
        """The way to the parts of a value."""
        return _Way((*self.around, id(value)), self.opened)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a nested value, in order.

    It looks into lists, tuples, mappings, dataclasses, whatever torch's pytrees know, and the
    attributes of other objects; modules are not values.

    >>> tensors_of({"a": torch.ones(1), "b": [None, torch.zeros(1)]})
    [tensor([1.]), tensor([0.])]
    """
    return [leaf for _, leaf in leaves_of(value) if isinstance(leaf, Tensor)]


def leaves_of(value: Any, path: str = "", _way: _Way | None = None) -> Iterator[tuple[str, Any]]:
    """Whatever is not made of parts, and where it lies; inside itself, a value counts as such.

    >>> list(leaves_of({"state": [1, (2, None)]}))
    [("['state'][0]", 1), ("['state'][1][0]", 2), ("['state'][1][1]", None)]
    """
    way = _Way() if _way is None else _way
    taken = way.into(value)
    if taken is None:
        yield path, value
        return
    behind = way.behind(value)
    for key, part in taken[0]:
        yield from leaves_of(part, path + key, behind)


def map_tensors(function: Callable[[Tensor], Any], value: Any, _way: _Way | None = None) -> Any:
    """The same nested value with another in place of every tensor.

    >>> map_tensors(lambda t: t.shape, {"a": (torch.ones(1, 2), 3)})
    {'a': (torch.Size([1, 2]), 3)}
    """
    if isinstance(value, Tensor):
        return function(value)
    way = _Way() if _way is None else _way
    taken = way.into(value)
    if taken is None:
        return value
    (parts, rebuild), behind = taken, way.behind(value)
    made = [map_tensors(function, part, behind) for _, part in parts]
    if all(new is old for new, (_, old) in zip(made, parts, strict=True)):
        return value  # as it is: not everything can be made anew
    return rebuild(made)


def with_tensors(value: Any, tensors: Iterable[Tensor]) -> Any:
    """The same nested value with these in place of its tensors, in their order.

    Raises:
        ValueError: for more or fewer than it has.

    >>> with_tensors([torch.ones(1), None], [torch.zeros(1)])
    [tensor([0.]), None]
    """
    given = list(tensors)
    count = len(tensors_of(value))
    if len(given) != count:
        raise ValueError(f"{len(given)} tensors for a value that holds {count}")
    left = iter(given)
    return map_tensors(lambda _: next(left), value)


def own_containers(value: Any, _way: _Way | None = None) -> Any:
    """The same tensors and values in lists, mappings and objects of their own.

    Whoever is given them may take things out, or put others in: a ``forward`` that pops the keys
    of its batch, a loss that pops the labels.

    >>> batch = {"x": torch.ones(1), "more": [1, 2]}
    >>> own_containers(batch)["more"].pop(), batch["more"]
    (2, [1, 2])
    """
    way = _Way() if _way is None else _way
    taken = way.into(value)
    if taken is None:
        return value
    (parts, rebuild), behind = taken, way.behind(value)
    made = [own_containers(part, behind) for _, part in parts]
    changed = any(new is not old for new, (_, old) in zip(made, parts, strict=True))
    holds = not isinstance(value, tuple) and any(isinstance(part, Tensor) for part in made)
    if not (changed or holds or isinstance(value, (MutableSequence, MutableMapping))):
        return value
    try:
        return rebuild(made)
    except Exception:  # of a class that cannot be made anew
        return value


def plain(value: Any) -> Any:
    """The same nested value of lists, tuples, dicts and whatever torch's pytrees know.

    A dataclass or another object becomes the dict of its attributes.

    >>> import types
    >>> plain([types.SimpleNamespace(a=1, b=(2,)), 3])
    [{'a': 1, 'b': (2,)}, 3]
    """
    return _plain(value, _Way())


def _plain(value: Any, way: _Way) -> Any:
    taken = way.into(value)
    if taken is None:
        return value
    (parts, rebuild), behind = taken, way.behind(value)
    made = [_plain(part, behind) for _, part in parts]
    if not _is_plain(value):
        if isinstance(value, (list, tuple)):
            return tuple(made)
        return dict(
            zip([*value] if isinstance(value, Mapping) else _names_of(value), made, strict=True)
        )
    if all(new is old for new, (_, old) in zip(made, parts, strict=True)):
        return value
    return rebuild(made)


def in_form(form: Any, leaves: Iterable[Any]) -> Any:
    """A value of some form around the leaves of a plain one.

    Args:
        form: the value, with anything in place of its tensors.
        leaves: of the :func:`plain` value, as torch's pytrees flatten it; where the form holds a
            constant that no graph can hold, that one stays.

    >>> import types
    >>> in_form(types.SimpleNamespace(a=None, b=(None,)), [1, 2])
    namespace(a=1, b=(2,))
    """
    return _in_form(form, iter(leaves), _Way())


def _in_form(form: Any, leaves: Iterator[Any], way: _Way) -> Any:
    taken = way.into(form)
    if taken is None:
        leaf = next(leaves)
        return form if isinstance(form, CONSTANTS) else leaf
    (parts, rebuild), behind = taken, way.behind(form)
    return rebuild([_in_form(part, leaves, behind) for _, part in parts])


CONSTANTS = (Enum, type, FunctionType, torch.Size, set, frozenset, range, slice)
"""Leaves of answers that are the same in every call, and that no graph can hold."""


def _is_plain(value: Any) -> bool:
    return type(value) in pytree.SUPPORTED_NODES or _is_named_tuple(value)


def _names_of(value: Any) -> list[str]:
    """The names of an object's parts: the fields of a dataclass, else its attributes."""
    if dataclasses.is_dataclass(value):
        return [f.name for f in dataclasses.fields(value) if hasattr(value, f.name)]
    return list(getattr(value, "__dict__", ()))


def _taken_apart(value: Any) -> tuple[Parts, Rebuild] | None:
    """A value's parts by name, and how others are put in their place; ``None`` for a leaf."""
    if isinstance(value, _LEAVES):
        return None
    kind = type(value)
    if kind is tuple or kind is list:  # nearly all are, and pytrees are slow
        return [(f"[{i}]", part) for i, part in enumerate(value)], kind
    if _is_plain(value):
        root = iter([False])
        parts, spec = pytree.tree_flatten(value, is_leaf=lambda _: next(root, True))
        keys = list(value) if isinstance(value, Mapping) else range(len(parts))
        keys = keys if len(keys) == len(parts) else range(len(parts))
        named = [(f"[{key!r}]", part) for key, part in zip(keys, parts, strict=True)]
        return named, lambda made: pytree.tree_unflatten(made, spec)
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()], _remapped(value)
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", p) for i, p in enumerate(value)], lambda made: type(value)(made)
    names = _names_of(value)
    if not names:
        return None
    return [(f".{n}", getattr(value, n)) for n in names], _with_attributes(value, names)


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _remapped(value: Mapping[Any, Any]) -> Rebuild:
    def rebuild(made: list[Any]) -> Any:
        items = dict(zip(value, made, strict=True))
        if not hasattr(value, "update"):  # read only, and not to be made anew
            return items
        changed: Any = copy.copy(value)
        for name, part in vars(changed).items() if hasattr(changed, "__dict__") else ():
            if type(part) in (dict, OrderedDict) and part is vars(value).get(name):
                vars(changed)[name] = copy.copy(part)  # where a class of its own keeps entries
        for key, part in items.items():  # update may do more: a Counter adds
            changed[key] = part
        return changed

    return rebuild


def _with_attributes(value: Any, names: list[str]) -> Rebuild:
    def rebuild(made: list[Any]) -> Any:
        changed = copy.copy(value)
        for name, part in zip(names, made, strict=True):
            object.__setattr__(changed, name, part)  # frozen ones too
        return changed

    return rebuild
