"""The weights themselves."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunus.methods.signals import SignalContext


def weight(context: SignalContext) -> Mapping[str, Tensor]:
    """w."""
    return {name: value.detach() for name, value in context.parameters.items()}
