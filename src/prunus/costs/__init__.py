"""What a model costs as it stands: one file a figure, a function of the file's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunus._common.batch import Batch
from prunus._common.inputs import arguments, shapes
from prunus.costs.bytes_ import bytes_
from prunus.costs.l1 import l1
from prunus.costs.macs import macs, why_unknown
from prunus.costs.params import nonzero_params, params
from prunus.types import Masks

THEORETICAL = ("nonzero_params", "macs_if_zeros_skipped")
"""Figures that no ordinary runtime turns into memory or time."""


def measure(
    model: nn.Module,
    example: Any = None,
    masks: Masks | None = None,
    batch: Batch | None = None,
    *,
    sums: Mapping[str, float] | None = None,
) -> Mapping[str, float | None]:
    """Every figure of a model by name; ``None`` for what :func:`notes` says the reason of.

    ``macs`` are those of one item, of which ``batch`` says how many the example holds; it is found
    where it is not given. A masked model costs what the dense one costs; ``nonzero_params`` and
    ``macs_if_zeros_skipped`` say what a runtime that skips every zero would need. ``sums`` are
    Σ|w| by parameter where they are known.

    >>> figures = measure(nn.Linear(3, 2), __import__("torch").ones(1, 3))
    >>> figures["params"], figures["macs"], figures["bytes"]
    (8, 6, 32)
    """
    whole, skipped = (None, None) if example is None else macs(model, example, masks or {}, batch)
    return {
        "params": params(model),
        "nonzero_params": nonzero_params(model),
        "macs": whole,
        "macs_if_zeros_skipped": skipped,
        "bytes": bytes_(model),
        "l1": l1(model, sums),
    }


def notes(model: nn.Module, example: Any, macs: float | None, batch: Batch) -> tuple[str, ...]:
    """What a reader must know of the MACs: why there are none, or of what they are.

    Args:
        model: that was counted.
        example: ``None`` needs no word.
        macs: as they were counted.
        batch: of the example.

    >>> import torch
    >>> pairs = nn.Bilinear(2, 2, 1)
    >>> notes(pairs, torch.ones(1, 2), None, Batch(1, (0,)))[0][:38]
    'MACs are unknown: Bilinear cannot be c'
    """
    name = type(model).__name__
    if example is None:
        return ()
    if macs is None:
        why = why_unknown(model, arguments(example))
        return (f"MACs are unknown: {name} cannot be counted with this example ({why})",)
    if batch.why:
        what = f"no batch was found in {shapes(arguments(example))}: {batch.why}"
        return (f"MACs are of the whole pass ({what}); give an example of one item to count one",)
    return ()
