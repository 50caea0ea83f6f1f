"""Fine-tuning."""

from __future__ import annotations

from prunus.methods.restores._memory import Memory
from prunus.types import Masks, State

CHANGES = False


def keep(state: State, masks: Masks, memory: Memory) -> State:
    """Keep: survivors stay as they are, the removed stay zero.

    Source: Han, Pool, Tran, Dally 2015, arXiv:1506.02626.
    """
    return state
