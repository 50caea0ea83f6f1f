"""Does the mask alone carry the knowledge?"""

from __future__ import annotations

from prunus.methods.restores._memory import Memory
from prunus.types import Masks, State

NEEDS_ROUNDS = True


def reinitialize(state: State, masks: Masks, memory: Memory) -> State:
    """Reinitialize: fresh values for every parameter and buffer, under the mask.

    Source: Liu et al. 2018 (Rethinking the value of network pruning), arXiv:1810.05270.
    """
    return memory.fresh()
