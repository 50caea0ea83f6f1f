"""What blocks that go as a whole may cost, on data that nothing is chosen by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prunus.blocks.job import Job, share_of
from prunus.blocks.looking import lost
from prunus.blocks.recipe import BLOCK, BlockRecipe
from prunus.errors import InputError


class Bound:
    """Says whether a model without some of its blocks is within a recipe's guard.

    Args:
        how: the recipe; without a guard everything is.
        walk: a walk through the model without blocks of these names.
    """

    def __init__(self, how: BlockRecipe, walk: Callable[[Sequence[str]], Job]) -> None:
        self.how, self.walk = how, walk
        self._dense: float | None = None

    @property
    def holds(self) -> bool:
        """Whether there is a guard."""
        return self.how.guard is not None

    def allows(self, gone: Sequence[str]) -> bool:
        """Whether these blocks may go together.

        Raises:
            InputError: if the loss is to be judged, and the model gives none.
        """
        guard = self.how.guard
        if guard is None or not gone:
            return True
        if guard.max_loss is not None and self._dense is None:
            self._dense = lost(self.walk(()))[0]
            if math.isnan(self._dense):
                raise InputError(
                    "guard: max_loss: the model gives no logits of tokens for the held-out data: "
                    "give loss, or max_error"
                )
        loss, worst = lost(self.walk(gone))
        if guard.max_error is not None and worst > guard.max_error:
            return False
        share = share_of(self.how, self.how.parts[BLOCK])
        return self._dense is None or loss - self._dense <= (guard.max_loss or 0.0) * share
