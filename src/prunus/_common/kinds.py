"""What a value is, said for people; without torch."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from prunus.errors import InputError


def kind_of(value: object) -> str:
    """What a value is, for people.

    >>> kind_of(None), kind_of(dict), kind_of(0.5)
    ('None', 'the class dict', 'float 0.5')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    if isinstance(value, (bool, int, float)):
        return f"{name} {value!r}"
    return f"{name} '{value[:40]}'" if isinstance(value, str) else f"a {name}"


def given_path(path: object, name: str) -> Path:
    """A path that a disk can have.

    Raises:
        InputError: for what is none.

    >>> given_path(3, "folder")
    Traceback (most recent call last):
    prunus.errors.InputError: folder is int 3: give a path
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise InputError(f"{name} is {kind_of(path)}: give a path")
    made = Path(path)
    longest = max(map(len, (part.encode(errors="replace") for part in made.parts)), default=0)
    if "\0" in str(made) or longest > 255:
        raise InputError(f"{name} is {str(made)[:60]!r}, which is no name that a disk can have")
    return made


def given_file(path: object, name: str) -> Path:
    """A path that a file can have, or has.

    Raises:
        InputError: for what is none, and for a folder.
    """
    made = given_path(path, name)
    if not made.name or made.is_dir():
        raise InputError(f"{name} is '{made}', which is a folder: name a file")
    return made


def given_number(
    value: object, name: str, *, least: float, above: bool = False, whole: bool = False
) -> None:
    """Refuse what is no number of the kind that is meant.

    Args:
        value: what was given.
        name: of the argument.
        least: the smallest that is taken.
        above: whether it must be larger than that.
        whole: whether it must be a whole number.

    Raises:
        InputError: naming what is expected.

    >>> given_number("a", "seconds", least=0, above=True)
    Traceback (most recent call last):
    prunus.errors.InputError: seconds is 'a'; it must be above 0
    """
    kind = numbers.Integral if whole else numbers.Real
    good = isinstance(value, kind) and not isinstance(value, bool)
    if not good or not (value > least if above else value >= least):  # type: ignore[operator]
        what = "a whole number of " if whole else ""
        bound = "above" if above else "at least"
        raise InputError(f"{name} is {value!r:.80}; it must be {what}{bound} {least:g}")


def given_sizes(sizes: object, name: str) -> tuple[int, ...]:
    """Batch sizes, each once.

    Raises:
        InputError: for none, for what is no whole number above 0.

    >>> given_sizes([1, 16, 1], "batch_sizes")
    (1, 16)
    """
    several = isinstance(sizes, Iterable) and not isinstance(sizes, str)
    several = several and getattr(sizes, "shape", None) != ()  # a tensor of one number
    listed = [*sizes] if several else None  # type: ignore[misc]
    if not listed or not all(isinstance(b, numbers.Integral) and int(b) >= 1 for b in listed):
        shown = sizes if listed is None else listed
        raise InputError(
            f"{name} is {shown!r:.80}: pass one or more whole numbers, each at least 1"
        )
    return tuple(dict.fromkeys(map(int, listed)))


def given_choice(value: object, name: str, choices: Sequence[object]) -> None:
    """Refuse what is none of a few values.

    >>> given_choice("all", "heads", ("whole", "dims"))
    Traceback (most recent call last):
    prunus.errors.InputError: heads is 'all'; it must be 'whole' or 'dims'
    """
    if not any(value is c or (type(value) is type(c) and value == c) for c in choices):
        raise InputError(f"{name} is {value!r:.80}; it must be {' or '.join(map(repr, choices))}")
