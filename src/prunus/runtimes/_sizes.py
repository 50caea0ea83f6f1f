"""The sizes that an artifact takes, beside the number of items in a batch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from prunus.graph.guard import Size, condition, expression

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """What an export left open, and what it took for granted of that.

    Attributes:
        of: each input tensor: numbers, or expressions in the names of open sizes, such as
            ``"s0"``; empty: those that it was built with.
        conditions: comparisons of open sizes, without which the answers would be others.
    """

    of: tuple[tuple[Size, ...], ...] = ()
    conditions: tuple[str, ...] = ()

    def problem(
        self, shapes: Sequence[Shape], built: Sequence[Shape], *, batch: int, count: int
    ) -> int | str | None:
        """What does not go in: the number of an input, or the condition that does not hold.

        Args:
            shapes: of the inputs, as many as it was built with.
            built: those that it was built with.
            batch: their leading size; what has it changes with the batch.
            count: inputs in this batch.

        >>> text = Sizes((("s0", "s1", 8),), ("s1 <= 100",))
        >>> [text.problem([shape], [(2, 5, 8)], batch=2, count=3)
        ...  for shape in ((3, 7, 8), (3, 7, 9), (3, 101, 8))]
        [None, 0, 's1 <= 100']
        >>> twice = Sizes((("s0", "2*s1"), ("s0", "s1")))
        >>> [twice.problem([(3, n), (3, 4)], [(2, 6), (2, 3)], batch=2, count=3) for n in (8, 7)]
        [None, 0]
        >>> [Sizes().problem([shape], [(2, 5)], batch=2, count=3) for shape in ((3, 5), (3, 6))]
        [None, 0]
        """
        known: dict[str, int] = {}  # of all inputs: one may be a sum of what others are
        for given, own in zip(shapes, self.of, strict=False):
            for size, expected in zip(given, own, strict=False):
                if isinstance(expected, str) and expected.isidentifier():
                    known.setdefault(expected, size)
        for number, (given, old) in enumerate(zip(shapes, built, strict=True)):
            wanted: Sequence[Size] = self.of[number] if self.of else old
            if len(given) != len(old) or 0 in given:
                return number
            for d, (size, expected) in enumerate(zip(given, wanted, strict=True)):
                items = d == 0 and old[0] == batch
                if items and (size == count or batch == old[0] == size == 1):
                    continue  # one may be no batch, but something that all items share
                if items or size != _number(expected, known):
                    return number
        return next((text for text in self.conditions if not condition(text)(known)), None)

    @property
    def open(self) -> bool:
        """Whether any size beside the batch's may change."""
        return any(isinstance(size, str) for sizes in self.of for size in sizes[1:])

    def shown(self, number: int, built: Shape) -> str:
        """The sizes that an input may have, beside the leading one, for a message.

        >>> Sizes((("s0", "s1", 8),)).shown(0, (2, 5, 8))
        'any, 8'
        """
        own: Sequence[Size] = self.of[number] if self.of else built
        return ", ".join("any" if isinstance(size, str) else str(size) for size in own[1:])

    def in_words(self, text: str) -> str:
        """A condition with each open size named by the place where it stands first.

        >>> Sizes((("s0", "s1"),)).in_words("s1 <= 100")
        'size 1 of input 0 <= 100'
        """
        for symbol, (number, d) in self.places().items():
            text = re.sub(rf"\b{symbol}\b", f"size {d} of input {number}", text)
        return text

    def places(self) -> Mapping[str, tuple[int, int]]:
        """Where each open size stands first: the number of an input, and a dimension."""
        found: dict[str, tuple[int, int]] = {}
        for number, sizes in enumerate(self.of):
            for d, size in enumerate(sizes):
                if isinstance(size, str) and size.isidentifier():
                    found.setdefault(size, (number, d))
        return found

    def dims(self, *symbols: str) -> list[list[int]] | None:
        """The dimensions of each input that are these open sizes; ``None`` if others hang on one.

        >>> Sizes((("s0", "s1", 8), ("s2",))).dims("s0", "s2")
        [[0], [0]]
        """
        sums = [size for sizes in self.of for size in sizes
                if isinstance(size, str) and not size.isidentifier()]  # fmt: skip
        if any(_about(text, symbols) for text in sums):
            return None
        return [[d for d, size in enumerate(sizes) if size in symbols] for sizes in self.of]

    def or_one(self, *symbols: str) -> Sizes:
        """The same, and these may all be 1 as well, whatever is asked of larger ones.

        >>> Sizes((("s0", 3),), ("s0 >= 2",)).or_one("s0").conditions
        ('s0 == 1 or (s0 >= 2)',)
        """
        ones = " and ".join(f"{symbol} == 1" for symbol in symbols)
        conditions = (f"{ones} or ({text})" if _about(text, symbols) else text
                      for text in self.conditions)  # fmt: skip
        return replace(self, conditions=tuple(conditions))


def _about(text: str, symbols: Collection[str]) -> bool:
    return any(word in symbols for word in re.findall(r"\w+", text))


def _number(wanted: Size, known: Mapping[str, int]) -> int | None:
    """A size; ``None`` where it cannot be computed, of a file that somebody has written."""
    if isinstance(wanted, int):
        return wanted
    try:
        return int(expression(wanted)(known))
    except (ArithmeticError, NameError):
        return None
