"""The same fraction of what is left at every cut."""

from __future__ import annotations


def geometric(progress: float, start: float, target: float) -> float:
    """Geometric: density (1 − start)^(1 − p) · (1 − target)^p.

    With a target of 1, where no fraction leads to nothing, everything goes at the end.

    Source: Frankle & Carbin 2018 (a fixed share of the rest in each round), arXiv:1803.03635.

    >>> geometric(0.5, 0.0, 0.75)
    0.5
    """
    if progress <= 0 or target <= start:
        return start if progress <= 0 else target
    if progress >= 1:
        return target
    density: float = (1 - start) ** (1 - progress) * max(1 - target, 1e-12) ** progress
    return 1 - density
