"""A narrower stream under a guard: it has one width, so that the walk as a whole is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

from prunus.blocks.hidden import Narrow
from prunus.blocks.recipe import HIDDEN, BlockRecipe, BlockResult
from prunus.blocks.sizes import Sizes
from prunus.errors import InputError

HALVINGS = 3
"""Parts that are tried behind the one that was asked for: a half, a quarter, an eighth."""


def tries(
    how: BlockRecipe, sizes_of: Callable[[BlockRecipe], Sizes | Narrow | None]
) -> Iterator[tuple[BlockRecipe, Sizes | Narrow | None]]:
    """What goes at the part of channels that is asked for, and at those behind it if it may not.

    Args:
        how: the recipe; of one that no guard judges as a whole there is one try.
        sizes_of: what goes at a part. Widths that no configuration says are passed over.
    """
    yield how, (first := sizes_of(how))
    if not judged_as_a_whole(how):
        return
    seen = width_of(first)
    for part in halves(how.parts[HIDDEN]):
        less = how.model_copy(update={"structure": {HIDDEN: part}})
        with suppress(InputError):
            sizes = sizes_of(less)
            if width_of(sizes) != seen:
                seen = width_of(sizes)
                yield less, sizes


def halves(part: float) -> list[float]:
    """The parts that are tried behind one.

    >>> halves(0.4)
    [0.2, 0.1, 0.05]
    """
    return [part * 0.5**number for number in range(1, HALVINGS + 1)]


def width_of(sizes: Sizes | Narrow | None) -> int:
    """Channels that stay; 0 where no channels go."""
    return len(sizes.kept) if isinstance(sizes, Narrow) else 0


def judged_as_a_whole(how: BlockRecipe) -> bool:
    """Whether a guard judges the walk, and not its parts."""
    return HIDDEN in how.parts and how.guard is not None


def too_much(how: BlockRecipe, result: BlockResult) -> str:
    """What a walk cost that is more than its guard allows, if anything is."""
    if how.guard is None or not judged_as_a_whole(how):
        return ""
    bound, worst = how.guard.max_error, max(result.errors.values(), default=0.0)
    if bound is not None and not worst <= bound:
        return f"a block's error is {worst:.3g}"
    bound, (before, after) = how.guard.max_loss, result.loss or (math.nan, math.nan)
    if bound is not None and not after - before <= bound:
        return f"the loss grew by {after - before:.3g}"
    return ""


def none_within(why: str, sizes: Sizes | Narrow | None) -> str:
    """The sentence where not even the least that was tried is within the guard."""
    width = width_of(sizes)
    return (
        f"guard: with {width} channels {why}, and no narrower stream that was tried costs less: "
        "allow more, add repair: {fit: true} or more calibration, or take out neurons and heads"
    )
