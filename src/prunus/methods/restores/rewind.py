"""The lottery ticket: back to an early state, under the mask."""

from __future__ import annotations

from prunus.methods.restores._memory import Memory
from prunus.types import Masks, State

NEEDS_ROUNDS = True
REWINDS_TO = "{k}"


def rewind(state: State, masks: Masks, memory: Memory, *, k: str | int | float = 0) -> State:
    """Rewind: parameters, buffers and optimizer state return to step k of round 0.

    Args:
        state: as it is after the cut.
        masks: of the cut.
        memory: holds the state at step k.
        k: a length (``"500it"``, ``"1ep"``) or a part of round 0; 0 is the lottery ticket.

    Source: Frankle et al. 2019, arXiv:1903.01611; k = 0: Frankle & Carbin 2018, arXiv:1803.03635.
    """
    return memory.rewind()
