"""Removed weights come back and may train until the next cut."""

from __future__ import annotations

from typing import Literal

import torch

from prunus.methods.restores._memory import Memory
from prunus.types import Masks, State

RELEASES = "{when}"
RECALLS = "{values}"


def revive(
    state: State,
    masks: Masks,
    memory: Memory,
    *,
    values: Literal["zero", "start", "cut"] = "zero",
    when: Literal["before", "after"] = "before",
) -> State:
    """Revive: removed weights return as zero, as at the start, or as before the cut.

    They return before or after retraining. ``zero`` + ``before`` is soft pruning, ``cut`` +
    ``after`` dense–sparse–dense; ``cut`` + ``before`` would undo the cut and is refused.

    Source: He et al. 2018, arXiv:1808.06866; Han et al. 2016, arXiv:1607.04381.
    """
    tensors = dict(state.tensors)
    if values != "zero":
        past = memory.start() if values == "start" else memory.cut()
        for name, mask in masks.items():
            tensors[name] = torch.where(mask, tensors[name], past.tensors[name])
    return State(tensors, state.optimizer)
