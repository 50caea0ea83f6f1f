"""What of a guard's ``max_loss`` may have been used at a point of the way."""

from __future__ import annotations

import math

from prunus.blocks.recipe import BLOCK, BlockRecipe
from prunus.errors import InputError


def allowed(how: BlockRecipe, spent: float) -> float | None:
    """max_loss · (f + (1 − f) · spent), f the share of blocks in all that is to go; or no bound.

    f is their share as the recipe asks for it, whether the guard lets as many go or not: what they
    do not use, units inside of the others may, and what was allowed to them is not taken back.

    Args:
        how: the recipe.
        spent: the part of the weights of blocks that stay which the walk has come through.

    Raises:
        AssertionError: without a guard.

    >>> from prunus.blocks.recipe import block_recipe
    >>> blocks, both = {"block": 0.2}, {"block": 0.2, "neuron": 0.25}
    >>> guard = {"max_loss": 0.5}
    >>> allowed(block_recipe({"structure": blocks, "guard": guard}), 0)
    0.5
    >>> [allowed(block_recipe({"structure": both, "guard": guard}), spent) for spent in (0, 1)]
    [0.25, 0.5]
    """
    assert how.guard is not None
    if how.guard.max_loss is None:
        return None
    gone = how.parts.get(BLOCK, 0.0)
    inside = (1 - gone) * how.asked if set(how.parts) != {BLOCK} else 0.0
    first = gone / (gone + inside) if gone else 0.0
    return how.guard.max_loss * (first + (1 - first) * spent)


def comparable(how: BlockRecipe, loss: float) -> float:
    """The dense model's loss, which a guard compares with.

    Raises:
        InputError: if it is to be compared with, and the model gives none.
    """
    if how.guard is not None and how.guard.max_loss is not None and math.isnan(loss):
        raise InputError(
            "guard: max_loss: the model gives no logits of tokens for the held-out data: "
            "give loss, or max_error"
        )
    return loss
