"""Filters near the middle of their layer can be replaced by the others."""

from __future__ import annotations

from torch import Tensor


def fpgm(unit_distance: Tensor) -> Tensor:
    """Geometric median: Σ_j ‖F_i − F_j‖₂ over the filters of a layer; the nearest to all go first.

    Distances are of one layer, so share out by layer: ``allocation: uniform``.

    Args:
        unit_distance: ``[units]``, sums of distances.

    Source: He, Liu, Wang, Hu, Yang 2019, arXiv:1811.00250.

    >>> import torch
    >>> filters = torch.tensor([[0.0], [1.0], [4.0]])
    >>> fpgm(torch.cdist(filters, filters).sum(1))
    tensor([5., 4., 7.])
    """
    return unit_distance
