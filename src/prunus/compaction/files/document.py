"""What a document from anyone may say: names, kinds and fields, or an error with the place."""

from __future__ import annotations

import keyword
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from prunus.errors import InputError

_PLAIN = re.compile(r"(?!__\w*__$)[A-Za-z_]\w*", re.ASCII)
_PART = re.compile(r"(?!__\w*__$)[\w +/:-]+", re.ASCII)  # nothing that could end a string


def wrong(where: str, got: Any, allowed: str) -> InputError:
    shown = got[:80] if isinstance(got, str) else reprlib.repr(got)
    return InputError(f"graph file, {where}: {shown} cannot be used; allowed: {allowed}")


def of_kind(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise wrong(where, f"a {type(value).__name__}", f"a {kind.__name__}")
    return value


def fields_of(value: Any, where: str, keys: str) -> list[Any]:
    """The values of an object with exactly these keys."""
    if set(of_kind(Mapping, value, where)) != set(keys.split()):
        raise wrong(where, [*value], f"an object of {keys}")
    return [value[key] for key in keys.split()]


def name_of(value: Any, where: str, *, dotted: bool = False) -> str:
    """A name that may enter generated code."""
    for part in of_kind(str, value, where).split(".") if dotted else [of_kind(str, value, where)]:
        good = (_PART if dotted else _PLAIN).fullmatch(part)
        if not good or keyword.iskeyword(part) or value == "self":
            raise wrong(where, repr(value), "plain ASCII names")
    return str(value)
