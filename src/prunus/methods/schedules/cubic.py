"""Fast while many weights are redundant, slow where each one counts."""

from __future__ import annotations


def cubic(progress: float, start: float, target: float) -> float:
    """Cubic: target + (start − target)·(1 − p)³.

    Source: Zhu & Gupta 2017, arXiv:1710.01878.

    >>> cubic(0.5, 0.0, 0.8)
    0.7000000000000001
    """
    return target + (start - target) * (1 - progress) ** 3
