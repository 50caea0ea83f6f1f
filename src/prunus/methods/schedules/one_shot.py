"""Everything at the first cut."""

from __future__ import annotations


def one_shot(progress: float, start: float, target: float) -> float:
    """One-shot: the target as soon as progress is above 0.

    Source: Han, Pool, Tran, Dally 2015, arXiv:1506.02626.

    >>> one_shot(0.0, 0.0, 0.9), one_shot(0.1, 0.0, 0.9)
    (0.0, 0.9)
    """
    return target if progress > 0 else start
