"""The plain values of a measurement as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunus._common.numbers import count, digits, milliseconds, percent, size, times
from prunus._common.tables import Table
from prunus.costs import THEORETICAL

Row = tuple[str, str, Callable[[float | None], str]]
FIGURES: tuple[Row, ...] = (
    ("params", "parameters", count),
    ("nonzero_params", "  not zero", count),
    ("macs", "MACs of an item", count),
    ("macs_if_zeros_skipped", "  if zeros were skipped", count),
    ("l1", "Σ|w|", digits),
    ("bytes", "bytes in memory", size),
    ("disk_bytes", "bytes on disk", size),
    ("sparse_disk_bytes", "  in the sparse form", size),
)
PASSES: tuple[Row, ...] = (
    ("latency_ms", "batch {}: latency", milliseconds),
    ("latency_p95_ms", "  95 % within", milliseconds),
    ("latency_spread", "  spread", percent),
    ("items_per_second", "  items a second", digits),
    ("peak_bytes", "  memory at the peak", size),
    ("energy_mj", "  energy of an item", lambda v: digits(v) + ("" if v is None else " mJ")),
)
WORDS = {"latency_ms": ("faster", "slower"), "peak_bytes": ("less", "more"),
         "energy_mj": ("less", "more")}  # fmt: skip


def table(measured: Mapping[str, Any]) -> Table:
    """A row a cost: name, (dense,) model, remark.

    Args:
        measured: what :meth:`prunus.Measurement.to_dict` gives and ``measure.json`` holds.
    """
    mine, theirs, ratios = measured["model"], measured["against"], measured["ratios"]
    other = mine if theirs is None else theirs
    rows: list[tuple[str, ...]] = []
    for key, name, form in FIGURES:
        remark = "theoretical" if key in THEORETICAL else _remark(key, ratios.get(key))
        rows.append((name, form(other[key]), form(mine[key]), remark))
    for own, their in zip(mine["passes"], other["passes"], strict=True):
        batch = str(own["batch"])
        for key, name, form in PASSES:
            factor = ratios[key].get(batch) if isinstance(ratios.get(key), Mapping) else None
            remark = _remark(key, factor)
            if key == "latency_ms" and (own["busy"] or their["busy"]):
                remark = f"{remark} (machine busy)".strip()
            if key == "energy_mj" and False in (own["energy_measured"], their["energy_measured"]):
                remark = f"{remark} (estimated)".strip()
            rows.append((name.format(batch), form(their[key]), form(own[key]), remark))
    if theirs is not None:
        return Table(("", "dense", "pruned", ""), rows, left=(0, 3))
    return Table(("", "model", ""), [(n, own, remark) for n, _, own, remark in rows], left=(0, 2))


def _remark(key: str, factor: float | None) -> str:
    """How much less the pruned model costs.

    >>> _remark("params", 4.0), _remark("latency_ms", 0.5), _remark("bytes", 1.001)
    ('4.00× smaller', '2.00× slower', 'the same')
    """
    if factor is None or factor <= 0:
        return ""
    less, more = WORDS.get(key, ("smaller", "larger"))
    if abs(factor - 1) < 0.005:
        return "the same"
    return f"{times(factor)} {less}" if factor > 1 else f"{times(1 / factor)} {more}"


def machine(measured: Mapping[str, Any]) -> str:
    """On what a measurement was made, in a line."""
    threads, where = measured["threads"], measured["environment"]
    on = where["processor"] if measured["device"] == "cpu" else where["accelerator"]
    many = "s" if threads > 1 else ""
    return f"measured on {on}, {threads} thread{many}, torch {where['torch']}"
