"""Channels that a batch norm scales down matter least."""

from __future__ import annotations

from torch import Tensor


def bn_scale(unit_scale: Tensor) -> Tensor:
    """Batch-norm scale: |γ| of the batch norm behind a channel; over the network, as |γ| is.

    Training toward small ones (``regularize: {name: l1, of: norms}``) makes it network slimming.

    Args:
        unit_scale: ``[units]``, |γ|.

    Source: Liu, Li, Shen et al. 2017, arXiv:1708.06519.

    >>> import torch
    >>> bn_scale(torch.tensor([-0.5, 2.0]).abs())
    tensor([0.5000, 2.0000])
    """
    return unit_scale
