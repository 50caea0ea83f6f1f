"""Which optimizer steps cut, where a schedule runs inside one training."""

from __future__ import annotations

from dataclasses import dataclass

from prunus.errors import InputError
from prunus.methods.restores._memory import Memory
from prunus.recipe import duration
from prunus.recipe.specs import Schedule
from prunus.types import State

CUTS = 100
"""Cuts of a gradual run over its whole length, where the recipe does not space them."""


@dataclass
class Gradual:
    """The steps of a schedule, and how many were taken.

    Attributes:
        first: the step of the first cut.
        last: of the last one; before ``first`` where nothing is cut between steps.
        every: steps between cuts.
        step: optimizer steps so far.
    """

    first: int = 0
    last: int = -1
    every: int = 1
    step: int = 0

    @classmethod
    def over(cls, steps: int, schedule: Schedule, per_epoch: int | None = None) -> Gradual:
        """A schedule over so many optimizer steps.

        Raises:
            InputError: if it begins or ends outside of them.

        >>> Gradual.over(100, Schedule(name="cubic", start="10it", end="60it", every="5it"))
        Gradual(first=10, last=60, every=5, step=0)
        """
        first, last = (
            duration.parse(d).steps(per_epoch=per_epoch, whole=steps)
            for d in (schedule.start, schedule.end)
        )
        every = max(1, steps // CUTS)
        if schedule.every is not None:
            every = max(1, duration.parse(schedule.every).steps(per_epoch=per_epoch, whole=steps))
        if not 0 <= first <= last <= steps:
            raise InputError(
                f"schedule: start {schedule.start} and end {schedule.end} are steps {first} and "
                f"{last} of {steps}: 0 ≤ start ≤ end ≤ {steps} is needed"
            )
        return cls(first, max(last, 1), every)

    @property
    def goes_on(self) -> bool:
        """Whether cuts were begun and are still to come."""
        return 0 < self.step < self.last

    def advance(self) -> float | None:
        """Count a step; the schedule's progress, 0 to 1, if that step cuts.

        >>> gradual = Gradual(first=1, last=3, every=1)
        >>> [gradual.advance() for _ in range(4)]
        [0.0, 0.5, 1.0, None]
        """
        self.step += 1
        inside = self.first <= self.step <= self.last
        due = self.step == self.last or (self.step - self.first) % self.every == 0
        if not (inside and due):
            return None
        length = self.last - self.first
        return (self.step - self.first) / length if length else 1.0


def gradual_memory(start: State, cut: State) -> Memory:
    """What a restore may return to between the cuts of one training."""

    def unavailable() -> State:
        raise InputError("restore: gradual pruning keeps no earlier state to return to")

    return Memory(lambda: start, unavailable, lambda: cut, unavailable)
