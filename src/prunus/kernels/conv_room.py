"""Memory that the steps of a sequence share: what dies makes place for what is born."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Room:
    """Gaps in the memory of a thread, and how much of it is used at most.

    >>> room = Room()
    >>> first, second = room.take(10), room.take(5)
    >>> room.give(first, 10)
    >>> (first, second), room.take(3), room.take(20), room.size
    ((0, 10), 0, 15, 35)
    """

    free: list[tuple[int, int]] = field(default_factory=list)
    size: int = 0

    def take(self, count: int) -> int:
        """The lowest gap that is large enough."""
        for i, (begin, end) in enumerate(self.free):
            if end - begin >= count:
                self.free[i] = (begin + count, end)
                return begin
        begin = self.size
        if self.free and self.free[-1][1] == self.size:
            begin = self.free.pop()[0]
        self.size = begin + count
        return begin

    def give(self, begin: int, count: int) -> None:
        """Back, joined with its neighbors."""
        joined: list[tuple[int, int]] = []
        for first, last in sorted([*self.free, (begin, begin + count)]):
            if joined and joined[-1][1] == first:
                joined[-1] = (joined[-1][0], last)
            elif first < last:
                joined.append((first, last))
        self.free = joined
