"""What a sweep varies: ``field=a,b,c`` and ``field=low..high``; everything else stays."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus._common.kinds import kind_of
from prunus.errors import InputError

MOST = 10_000
"""Combinations of a grid."""
WIDE = 100
"""A range that spans more than this factor is sampled on a logarithmic scale."""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})([a-z]*)\.\.({_NUMBER})([a-z]*)(?::(log|linear))?")


@dataclass(frozen=True)
class Fixed:
    """A field with one value for all trials."""

    field: str
    text: str


@dataclass(frozen=True)
class Choices:
    """A field with a list of values, as they are written on the command line."""

    field: str
    texts: tuple[str, ...]

    def text(self, value: Any) -> str:
        """A value as it is written."""
        return str(value)


@dataclass(frozen=True)
class Range:
    """A field between two numbers, both included; ``unit`` follows each (``ep``)."""

    field: str
    low: float
    high: float
    unit: str = ""
    whole: bool = False
    log: bool = False

    def text(self, value: Any) -> str:
        """A value as it is written, with six digits."""
        return f"{int(value) if self.whole else f'{value:.6g}'}{self.unit}"

    @property
    def ends(self) -> tuple[str, str]:
        """Both ends as they are written."""
        return self.text(self.low), self.text(self.high)


@dataclass(frozen=True)
class Space:
    """Everything that a sweep's words say, in their order."""

    items: tuple[Fixed | Choices | Range, ...]

    @property
    def axes(self) -> tuple[Choices | Range, ...]:
        """What varies."""
        return tuple(x for x in self.items if not isinstance(x, Fixed))

    @property
    def grid(self) -> bool:
        """Whether each combination is tried once; with a range a sampler proposes trials."""
        return not any(isinstance(x, Range) for x in self.axes)

    def changes(self, texts: Mapping[str, str]) -> list[str]:
        """The words that ``prunus run`` takes for these values."""
        return [f"{x.field}={x.text if isinstance(x, Fixed) else texts[x.field]}"
                for x in self.items]  # fmt: skip

    def texts(self, values: Mapping[str, Any]) -> dict[str, str]:
        """A trial's values as they are written."""
        return {x.field: x.text(values[x.field]) for x in self.axes}

    def corners(self, limit: int | None = None) -> list[dict[str, str]]:
        """Every combination of the choices and of the ends of ranges; of a grid, all there is.

        Args:
            limit: at most so many, drawn at random; a higher limit adds to what a lower one drew.

        Raises:
            InputError: if a grid has too many to try.
        """
        values = [x.texts if isinstance(x, Choices) else x.ends for x in self.axes]
        names, count = [x.field for x in self.axes], math.prod(len(v) for v in values)
        drawn = random.Random(0)
        if count > MOST and not self.grid:
            every = [tuple(drawn.choice(v) for v in values) for _ in range(limit or MOST)]
        elif count > MOST:
            raise InputError(
                f"these are {count:,} combinations, and a grid has at most {MOST:,}: name fewer "
                "values, or ranges (field=low..high) with --trials"
            )
        else:
            every = list(itertools.product(*values))
            if limit is not None and limit < count:
                drawn.shuffle(every)
        return [dict(zip(names, v, strict=True)) for v in every[:limit]]


def parse(words: Sequence[str]) -> Space:
    """A space from the words of a command line.

    A comma list is a choice (commas in brackets and quotes do not count), ``low..high`` a range,
    anything else a fixed value. A range of whole numbers gives whole numbers. It is logarithmic
    where it spans more than a factor of 100, or as its end says: ``0.1..0.9:log``, ``:linear``.

    Raises:
        InputError: for a word that is none of these, an empty list, a field named twice.

    >>> [x.field for x in parse(["target=0.5,0.9", "retrain=1ep..9ep", "rounds=3"]).axes]
    ['target', 'retrain']
    """
    items: list[Fixed | Choices | Range] = []
    if not isinstance(words, (list, tuple)) or not all(isinstance(w, str) for w in words):
        raise InputError(
            f"the space is {kind_of(words)}: give a mapping of fields to values, or a list of "
            "texts such as 'target=0.8,0.9'"
        )
    for word in words:
        field, equals, text = word.partition("=")
        if not equals or not field:
            raise InputError(
                f"'{word}' varies nothing: write field=a,b,c, field=low..high or field=value"
            )
        if field in {x.field for x in items}:
            raise InputError(f"{field} is named twice: put all its values into one list")
        items.append(_item(field, text))
    space = Space(tuple(items))
    if not space.axes:
        raise InputError(
            "nothing varies: give a field several values, for example target=0.8,0.9,0.95 or "
            "target=0.5..0.99 (for one run: prunus run)"
        )
    return space


def from_mapping(values: Mapping[str, Any]) -> Space:
    """A space from Python: a list is a choice, a text is read as on the command line.

    >>> from_mapping({"target": [0.5, 0.9], "guard": {"max_drop": 0.02}}).items[1].text
    '{"max_drop": 0.02}'
    """
    return parse([f"{field}={_written(value)}" for field, value in values.items()])


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_plain, value))
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise InputError(
            f"{kind_of(value)} is no value of a recipe: give numbers, texts, lists and mappings"
        ) from None


def _item(field: str, text: str) -> Fixed | Choices | Range:
    found = _RANGE.fullmatch(text.strip())
    if found is not None:
        return _range(field, text, *found.groups())
    parts = split(text)
    if any(not part for part in parts):
        raise InputError(f"{field}: '{text}' holds an empty value: write field=a,b,c")
    if len(parts) == 1:
        return Fixed(field, parts[0])
    if len(set(parts)) < len(parts):
        raise InputError(f"{field}: '{text}' names a value twice")
    return Choices(field, tuple(parts))


def _range(field: str, text: str, *found: str | None) -> Range:
    first, unit, last, unit_too, scale = found
    low, high = float(first or 0), float(last or 0)
    if unit and unit != unit_too:
        raise InputError(f"{field}: '{text}': both ends need the same unit, such as 1ep..9ep")
    if not low < high < math.inf:
        raise InputError(f"{field}: '{text}': the lower end comes first: low..high")
    if scale == "log" and low <= 0:
        raise InputError(f"{field}: '{text}': a logarithmic range begins above 0")
    log = scale == "log" or (scale is None and low > 0 and high / low > WIDE)
    whole = all(re.fullmatch(r"[+-]?\d+", x or "") for x in (first, last))
    return Range(field, low, high, unit_too or "", whole, log)


def split(text: str) -> list[str]:
    """At commas outside brackets and quotes.

    >>> split("{max_drop: 0.1, better: lower}, null")
    ['{max_drop: 0.1, better: lower}', 'null']
    """
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "[{(":
            depth += 1
        elif sign in ")}]":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += sign
    return [part.strip() for part in parts]
