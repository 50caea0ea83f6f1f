"""Runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus.progressive.record import Record


def compare(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A row a run: sparsity, metrics, cost as it stands, effort.

    Raises:
        InputError: if a folder holds no run.
    """
    return [_row(Record(folder)) for folder in folders]


def _row(record: Record) -> dict[str, Any]:
    good = record.good
    first = record.rounds[0] if record.rounds else None
    cost = record.result.get("cost_after") or (dict(good.cost) if good else {})
    dense = None if first is None else first.metric
    metric = None if good is None else good.metric
    return {
        "name": record.name,
        "state": record.result.get("why", "not finished"),
        "sparsity": None if good is None else good.removed,
        "dense_metric": dense,
        "metric": metric,
        "metric_minus_dense": None if metric is None or dense is None else metric - dense,
        "test": record.result.get("test"),
        "params": cost.get("params"),
        "nonzero_params (theoretical)": cost.get("nonzero_params"),
        "macs": cost.get("macs"),
        "bytes": cost.get("bytes"),
        "rounds": max(0, len(record.rounds) - 1),
        "rejected": sum(not r.accepted for r in record.rounds),
        "steps": record.rounds[-1].step if record.rounds else 0,
        "seconds": sum(r.seconds for r in record.rounds),
    }
