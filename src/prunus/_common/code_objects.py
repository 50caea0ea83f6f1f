"""The code of a function, and that of the functions inside of it."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions, classes and comprehensions within it.

    >>> def outer():
    ...     return lambda: None
    >>> [code.co_name for code in codes_in(outer.__code__)]
    ['outer', '<lambda>']
    """
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)
