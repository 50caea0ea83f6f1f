"""The optimizer's own rate throughout."""

from __future__ import annotations

from collections.abc import Callable

CONSTANT = True


def constant(progress: float, dense: Callable[[float], float]) -> float:
    """Constant: the optimizer's rate, unchanged.

    Source: Han, Pool, Tran, Dally 2015, arXiv:1506.02626.

    >>> constant(0.9, lambda p: 1.0)
    1.0
    """
    return 1.0
