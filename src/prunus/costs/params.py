"""Parameters, tied ones once."""

from __future__ import annotations

import torch
from torch import nn


def params(model: nn.Module) -> int:
    """Numbers in all parameters."""
    return sum(p.numel() for p in model.parameters())


def nonzero_params(model: nn.Module) -> int:
    """Those that are not zero (theoretical: zeros are stored and multiplied all the same)."""
    return sum(int(torch.count_nonzero(p.detach())) for p in model.parameters())
