"""Lengths of training: the one place where epochs and steps meet."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunus.errors import InputError

_FORM = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(ep|it|min|h|s)?\s*")
_MINUTES = {"s": 1 / 60, "min": 1.0, "h": 60.0}


@dataclass(frozen=True)
class Duration:
    """A length: ``unit`` is ``ep`` (epochs), ``it`` (optimizer steps), ``min`` or ``part``."""

    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.value:g}{'' if self.unit == 'part' else self.unit}"

    def steps(self, *, per_epoch: int | None = None, whole: int | None = None) -> int:
        """The length in optimizer steps, rounded to the nearest.

        Args:
            per_epoch: optimizer steps in an epoch; needed by ``3ep``.
            whole: the length of which ``0.2`` is a part, in steps.

        >>> parse("3ep").steps(per_epoch=100), parse("500it").steps(), parse(0.2).steps(whole=50)
        (300, 500, 10)
        """
        if self.unit == "it":
            return int(self.value)
        if self.unit == "ep":
            if per_epoch is None:
                raise InputError(
                    f"'{self}' is in epochs, but the number of steps in an epoch is unknown here: "
                    "give the length in steps, for example '500it', or a loader that has a len()"
                )
            return round(self.value * per_epoch)
        if self.unit == "part" and whole is not None:
            return round(self.value * whole)
        raise InputError(
            f"'{self}' is not a length of training: write epochs ('3ep') or steps ('500it')"
        )


def parse(text: str | int | float) -> Duration:
    """``"3ep"``, ``"500it"``, ``"20min"`` or a part from 0 to 1.

    Raises:
        InputError: for anything else.

    >>> parse("2.5ep")
    Duration(value=2.5, unit='ep')
    >>> parse("90s")
    Duration(value=1.5, unit='min')
    """
    if isinstance(text, bool):
        raise InputError(f"a length cannot be {text}: write, for example, '3ep', '500it' or 0.2")
    match = _FORM.fullmatch(str(text))
    if match is None:
        raise InputError(
            f"'{text}' is not a length: write epochs ('3ep'), steps ('500it'), "
            "minutes ('20min') or a part from 0 to 1"
        )
    value, unit = float(match[1]), match[2] or "part"
    if value > 1e9:
        raise InputError(f"'{text}' is longer than anyone can train (at most 1e9)")
    if unit == "it" and value != int(value):
        raise InputError(f"'{text}': steps are whole numbers")
    if unit in _MINUTES:
        return Duration(value * _MINUTES[unit], "min")
    if unit == "part" and value > 1:
        raise InputError(f"'{text}' has no unit: write '{text}ep' or '{text}it', or a part up to 1")
    return Duration(value, unit)
