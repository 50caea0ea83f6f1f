"""Parameters, tied ones once."""

from __future__ import annotations

from torch import nn

from prunus._common.parts import count_nonzero


def params(model: nn.Module) -> int:
    """Numbers in all parameters."""
    return sum(p.numel() for p in model.parameters())


def nonzero_params(model: nn.Module) -> int:
    """Those that are not zero (theoretical: zeros are stored and multiplied all the same)."""
    return sum(map(count_nonzero, model.parameters()))
