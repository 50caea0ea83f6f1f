"""What chooses in each block of a walk."""

from __future__ import annotations

from torch import nn

from prunus.blocks.hidden import Narrow
from prunus.blocks.narrowing import Narrowing
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.sizes import Sizes
from prunus.blocks.solving import Solving
from prunus.blocks.structuring import Structuring


def solving_of(
    model: nn.Module, how: BlockRecipe, sizes: Sizes | Narrow | None, *, masks: bool
) -> Solving:
    """What chooses in each block: zeros, units, or channels."""
    if isinstance(sizes, Narrow):
        return Narrowing(model, how, sizes, masks=masks)
    if sizes is not None:
        return Structuring(model, how, sizes, masks=masks)
    return Solving(model, how, masks=masks)
