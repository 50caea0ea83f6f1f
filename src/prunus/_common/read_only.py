"""Lists and dicts that nobody changes any more."""

from __future__ import annotations

from typing import Any, NoReturn

from prunus.errors import InputError


def read_only(value: Any, name: str) -> Any:
    """The same value, in which every list and dict refuses to be changed.

    Args:
        value: of plain values, lists, tuples and dicts.
        name: for the message.

    >>> read_only([1, {"a": 2}], "sizes") == [1, {"a": 2}]
    True
    >>> read_only([1, {"a": 2}], "sizes")[1]["a"] = 3
    Traceback (most recent call last):
    ...
    prunus.errors.InputError: sizes cannot be changed: the compact model is a graph, which has...
    """
    if isinstance(value, dict):
        made: Any = ReadOnlyDict({k: read_only(v, name) for k, v in value.items()})
    elif isinstance(value, list):
        made = ReadOnlyList(read_only(v, name) for v in value)
    else:
        return tuple(read_only(v, name) for v in value) if isinstance(value, tuple) else value
    made.name = name
    return made


class _Refusing:
    name: str

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"{self.name} cannot be changed: the compact model is a graph, which has what it was. "
            "Change it in the dense model, and make that smaller again"
        )

    def __deepcopy__(self, _: Any) -> Any:
        return self

    __setitem__ = __delitem__ = pop = clear = _refuse


class ReadOnlyList(_Refusing, list[Any]):
    """Of :func:`read_only`."""

    append = extend = insert = remove = sort = reverse = __iadd__ = __imul__ = _Refusing._refuse


class ReadOnlyDict(_Refusing, dict[Any, Any]):
    """Of :func:`read_only`."""

    update = setdefault = popitem = __ior__ = _Refusing._refuse
