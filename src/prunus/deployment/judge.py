"""What artifacts are worth: the metric of each, and how long each takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from prunus._common import rng as randomness
from prunus._common.metrics import Metric, number
from prunus._common.nested import tensors_of
from prunus._common.random_inputs import random_inputs
from prunus._common.timing import interleaved
from prunus._common.traces import without_trace
from prunus.deployment.build import Built
from prunus.errors import InputError, first_line


@dataclass(frozen=True)
class Judge:
    """Compares an artifact's metric with the model's.

    Attributes:
        evaluate: ``evaluate(model) -> float``; without it nothing is judged.
        right: the model's own metric in PyTorch.
        better: ``higher`` or ``lower``.
        max_drop: how much worse a quantized artifact may be.
        on_event: told what is done.
    """

    evaluate: Metric | None
    right: float
    better: str
    max_drop: float
    on_event: Callable[[str], None]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        evaluate: Metric | None,
        *,
        better: str,
        max_drop: float,
        on_event: Callable[[str], None],
    ) -> Judge:
        """With the model's own metric.

        Raises:
            InputError: if ``evaluate`` returns no number, or one that is not finite.
        """
        if not isinstance(better, str) or better not in ("higher", "lower"):
            raise InputError(f"better is '{better}'; it must be higher or lower")
        if evaluate is None:
            return cls(None, 0.0, better, max_drop, on_event)
        on_event("evaluating the model")
        right = metric_of(evaluate, model)
        if not abs(right) < float("inf"):
            raise InputError(
                f"evaluate returned {right} for the model itself: the metric must be finite"
            )
        return cls(evaluate, right, better, max_drop, on_event)

    def worse(self, metric: float) -> bool:
        """Whether a metric is too far below the model's; one that is not a number is."""
        drop = self.right - metric if self.better == "higher" else metric - self.right
        return not drop <= self.max_drop


def metric_of(evaluate: Metric, model: nn.Module) -> float:
    """A metric, computed without gradients and with the random state put back.

    Raises:
        InputError: if what comes back is no number.
    """
    with without_trace(model, "evaluate"), torch.no_grad(), randomness.preserve_rng():
        return number(evaluate(model), "evaluate")


def measured(built: Sequence[Built], judge: Judge) -> list[Built]:
    """With the metric of every artifact of the pruned model, computed in its runtime."""
    return [
        b
        if judge.evaluate is None or b.served is None or b.row.model != "pruned"
        else Built(_judged(b, judge), b.served)
        for b in built
    ]


def _judged(b: Built, judge: Judge) -> Any:
    """The row; where its answers are known to be right, a failing ``evaluate`` is only noted."""
    assert judge.evaluate is not None
    judge.on_event(f"{b.row.runtime}, pruned: evaluating")
    try:
        metric = metric_of(judge.evaluate, b.served)  # type: ignore[arg-type]
    except Exception as error:  # of the user's code, which may ask for parameters
        why = f"evaluate fails on it: {first_line(error)}"
        if b.row.exact:
            return replace(b.row, notes=(*b.row.notes, why))
        return replace(b.row, refused=why)
    row = replace(b.row, metric=metric)
    if not row.exact and judge.worse(metric):
        far = "below" if judge.better == "higher" else "above"
        why = f"metric {metric:.4f}, more than {judge.max_drop:g} {far} {judge.right:.4f}"
        return replace(row, refused=why)
    return row


def timed(
    built: Sequence[Built], example: Any, sizes: Sequence[int], *, seconds: float
) -> list[Built]:
    """With latencies, all artifacts in turn, one batch size after the other.

    All of the pruned model, then all of the dense one: in a runtime that has just run, caches are
    warm, and the second of two neighbors would look faster.
    """
    rows = [b.row for b in built]
    turns = sorted(enumerate(built), key=lambda pair: pair[1].row.model != "pruned")
    for size in sizes:
        inputs = tensors_of(random_inputs(example, batch=size))
        calls = {}
        for i, b in turns:
            if b.served is None or (b.row.good and not rows[i].good):
                continue
            call = partial(b.served.compute, inputs)
            try:
                call()
            except Exception as error:  # an engine's own failure is a row, not the end
                why = f"fails on a batch of {size}: {first_line(error, kind=False)}"
                rows[i] = replace(rows[i], refused=why)
            else:
                calls[str(i)] = call
        for key, timing in (interleaved(calls, seconds=seconds) if calls else {}).items():
            row = rows[int(key)]
            rows[int(key)] = replace(row, latency={**row.latency, size: timing})
    return [Built(row, b.served) for row, b in zip(rows, built, strict=True)]
