"""The same of every block."""

from __future__ import annotations

from collections.abc import Sequence

FLAT = True


def uniform(target: float, sizes: Sequence[int]) -> list[float]:
    """Each block loses the target.

    Source: Frantar & Alistarh 2023, arXiv:2301.00774.

    >>> uniform(0.5, [10, 20])
    [0.5, 0.5]
    """
    return [target for _ in sizes]
