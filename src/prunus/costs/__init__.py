"""What a model costs as it stands: one file a figure, a function of the file's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunus.costs.bytes_ import bytes_
from prunus.costs.l1 import l1
from prunus.costs.macs import macs
from prunus.costs.params import nonzero_params, params
from prunus.types import Masks

THEORETICAL = ("nonzero_params", "macs_if_zeros_skipped")
"""Figures that no ordinary runtime turns into memory or time."""


def measure(
    model: nn.Module, example: Any = None, masks: Masks | None = None
) -> Mapping[str, float | None]:
    """Every figure of a model by name; ``None`` for what needs an example that is not given.

    A masked model costs what the dense one costs; ``nonzero_params`` and
    ``macs_if_zeros_skipped`` say what a runtime that skips every zero would need.

    >>> figures = measure(nn.Linear(3, 2), __import__("torch").ones(1, 3))
    >>> figures["params"], figures["macs"], figures["bytes"]
    (8, 6, 32)
    """
    whole, skipped = (None, None) if example is None else macs(model, example, masks or {})
    return {
        "params": params(model),
        "nonzero_params": nonzero_params(model),
        "macs": whole,
        "macs_if_zeros_skipped": skipped,
        "bytes": bytes_(model),
        "l1": l1(model),
    }
