"""What blocks that go as a whole may cost, on data that nothing is chosen by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunus.blocks.allowance import allowed, comparable
from prunus.blocks.job import Job
from prunus.blocks.looking import lost
from prunus.blocks.recipe import BlockRecipe


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
        may = allowed(self.how, spent=0)
        if may is not None and self._dense is None:
            self._dense = comparable(self.how, lost(self.walk(()))[0])
        loss, worst = lost(self.walk(gone))
        if guard.max_error is not None and worst > guard.max_error:
            return False
        return may is None or self._dense is None or loss - self._dense <= may
