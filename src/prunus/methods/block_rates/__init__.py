"""How much of each block goes, so that of all together the target does.

``(target, sizes, …, *, settings) -> rates``, a function of the file's name: ``sizes`` are the
weights of each block, ``outliers`` the part of them that are outliers, ``damage`` the error of a
block's answer when the target of it alone goes; a rate for each block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from prunus.errors import InputError

FACTS = ("outliers", "damage")
MOST = 0.98
"""No block loses more."""


def facts_of(rates: Callable[..., Any]) -> set[str]:
    """What a rule asks of the blocks.

    >>> facts_of(lambda target, sizes, damage: None)
    {'damage'}
    """
    return set(inspect.signature(rates).parameters) & set(FACTS)


def leveled(rates: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """Shift rates, none below 0 or above :data:`MOST`, until their weighted mean is the target.

    Args:
        rates: of blocks.
        sizes: their weights.
        target: the mean.

    Raises:
        InputError: if it cannot be.

    >>> [round(r, 3) for r in leveled([0.2, 0.9], [1, 1], 0.6)]
    [0.25, 0.95]
    """
    if not 0 <= target <= MOST:
        raise InputError(f"target {target}: at most {MOST} of every block goes")
    low, high = -1.0 - max(rates, default=0), 1.0 - min(rates, default=0)
    for _ in range(100):
        shift = (low + high) / 2
        found = [min(max(r + shift, 0.0), MOST) for r in rates]
        mean = sum(r * n for r, n in zip(found, sizes, strict=True)) / max(1, sum(sizes))
        low, high = (shift, high) if mean < target else (low, shift)
    return found
