"""The same number of weights at every cut."""

from __future__ import annotations


def linear(progress: float, start: float, target: float) -> float:
    """Linear: start + (target − start)·p.

    Source: the first-order case of Zhu & Gupta 2017, arXiv:1710.01878.

    >>> linear(0.5, 0.0, 0.75)
    0.375
    """
    return target if progress >= 1 else start + (target - start) * progress
