"""What goes wrong, in two kinds: the input (exit code 2) and a run (exit code 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrunusError(Exception):
    """Every error that prunus raises on purpose."""

    exit_code = 1


class InputError(PrunusError, ValueError):
    """Something given to prunus cannot be used; nothing was changed."""

    exit_code = 2


class RefusedError(InputError):
    """Settings that are right, each for itself, and cannot go together."""


class MissingError(InputError, AttributeError):
    """Something that a dense model has, and that its graph does not."""


class RunError(PrunusError, RuntimeError):
    """A run could not go on; what was finished before is kept."""


class Interrupted(PrunusError):  # noqa: N818 (nothing went wrong)
    """The user asked a run to stop; its state was saved."""

    exit_code = 130


def first_line(error: BaseException, *, kind: bool = True) -> str:
    """An error in one line: its kind, unless that is not wanted, and what it says first.

    >>> first_line(ValueError("no such size\\nat 3")), first_line(KeyError(), kind=False)
    ('ValueError: no such size', 'KeyError')
    """
    said = next((line for line in map(str.strip, str(error).splitlines()) if line), "")
    if not kind:
        return said or type(error).__name__
    return f"{type(error).__name__}: {said or 'no message'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest ones, or all.

    >>> did_you_mean("magnitud", ["fisher", "magnitude"])
    "did you mean 'magnitude'?"
    >>> did_you_mean("x", ["fisher", "magnitude"])
    'known: fisher, magnitude'
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + ", ".join(names)
