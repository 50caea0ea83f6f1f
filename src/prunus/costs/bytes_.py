"""Bytes of parameters and buffers."""

from __future__ import annotations

from torch import nn


def bytes_(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they stand, tied ones once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
