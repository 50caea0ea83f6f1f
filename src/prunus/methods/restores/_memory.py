"""The earlier states that a restore may return to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunus.types import State


@dataclass(frozen=True)
class Memory:
    """Earlier states, each made when it is asked for.

    Attributes:
        start: before any training.
        rewind: at step k of round 0.
        cut: just before the last cut.
        fresh: newly initialized.
    """

    start: Callable[[], State]
    rewind: Callable[[], State]
    cut: Callable[[], State]
    fresh: Callable[[], State]
