"""Less of blocks with outliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval

from prunus.methods.block_rates import leveled


def owl(
    target: float,
    sizes: Sequence[int],
    outliers: Sequence[float],
    *,
    spread: Annotated[float, Interval(ge=0, le=0.5)] = 0.08,
) -> list[float]:
    """OWL: rates within ``target ± spread``, the lower, the more outliers a block has.

    With D_l the part of a block's \\|w_ij\\| ‖x_j‖ that are above five times their mean,
    r_l ∝ 2λ (max D − D_l)/(max D − min D), shifted so that the target goes.

    Args:
        target: of all weights.
        sizes: weights of each block.
        outliers: D_l.
        spread: λ.

    Source: Yin et al. 2024, Outlier weighed layerwise sparsity, arXiv:2310.05175.

    >>> [round(r, 3) for r in owl(0.5, [1, 1], [0.02, 0.01], spread=0.1)]
    [0.4, 0.6]
    """
    low, high = min(outliers), max(outliers)
    width = max(high - low, 1e-12)
    return leveled([2 * spread * (high - d) / width for d in outliers], sizes, target)
