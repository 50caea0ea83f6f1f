"""Units whose activation is mostly zero matter least."""

from __future__ import annotations

from torch import Tensor


def apoz(unit_activity: Tensor) -> Tensor:
    """1 − APoZ: the share of a unit's activations that are not zero, over calibration batches.

    Args:
        unit_activity: ``[units]``, that share.

    Source: Hu, Peng, Tai, Tang 2016, arXiv:1607.03250.

    >>> import torch
    >>> seen = torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 3.0], [0.0, 1.0]])  # two units
    >>> apoz((seen != 0).double().mean(0))
    tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    return unit_activity
