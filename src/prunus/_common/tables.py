"""Costs as people read them: the plain values of a measurement as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def count(value: float) -> str:
    """A number with its thousands apart.

    >>> count(38282), count(1234567.0)
    ('38,282', '1,234,567')
    """
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in decimal units, three digits.

    >>> size(153), size(153128), size(25.6e6)
    ('153 B', '153 kB', '25.6 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1e3
    return f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """Three digits that count, never an exponent.

    >>> digits(0.02134), digits(2.0), digits(153.128), digits(12345.6)
    ('0.0213', '2.00', '153', '12,346')
    """
    if value == 0 or value >= 99.95:
        return f"{value:,.0f}"
    places = 2
    while abs(value) * 10**places < 99.5 and places < 12:
        places += 1
    return f"{value:.{places if abs(value) < 9.995 else 1}f}"


FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("params", "parameters", count),
    ("nonzero_params", "  not zero", count),
    ("macs", "MACs of an item", count),
    ("macs_if_zeros_skipped", "  if zeros were skipped", count),
    ("l1", "Σ|w|", digits),
    ("bytes", "bytes in memory", size),
    ("disk_bytes", "bytes on disk", size),
    ("sparse_disk_bytes", "  in the sparse form", size),
)
PASSES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("latency_ms", "batch {}: latency", lambda v: f"{digits(v)} ms"),
    ("latency_p95_ms", "  95 % within", lambda v: f"{digits(v)} ms"),
    ("latency_spread", "  spread", lambda v: f"{100 * v:.0f} %"),
    ("items_per_second", "  items a second", digits),
    ("peak_bytes", "  memory at the peak", size),
    ("energy_mj", "  energy of an item", lambda v: f"{digits(v)} mJ"),
)
WORDS = {"latency_ms": ("faster", "slower"), "peak_bytes": ("less", "more"),
         "energy_mj": ("less", "more")}  # fmt: skip
THEORETICAL = ("nonzero_params", "macs_if_zeros_skipped")


def rows(measured: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A table: name, (dense,) model, remark; the head first.

    Args:
        measured: what :meth:`prunus.Measured.plain` gives and ``measure.json`` holds.
    """
    mine, theirs, ratios = measured["model"], measured["against"], measured["ratios"]
    other = mine if theirs is None else theirs
    found: list[tuple[str, ...]] = [("", "dense", "pruned", "")]
    for key, name, form in FIGURES:
        remark = "theoretical" if key in THEORETICAL else _remark(key, ratios.get(key))
        found.append((name, _cell(other, key, form), _cell(mine, key, form), remark))
    for own, their in zip(mine["passes"], other["passes"], strict=True):
        batch = str(own["batch"])
        for key, name, form in PASSES:
            factor = ratios[key].get(batch) if isinstance(ratios.get(key), Mapping) else None
            remark = _remark(key, factor)
            if key == "latency_ms" and (own["busy"] or their["busy"]):
                remark = f"{remark} (machine busy)".strip()
            if key == "energy_mj" and False in (own["energy_measured"], their["energy_measured"]):
                remark = f"{remark} (estimated)".strip()
            cells = (_cell(their, key, form), _cell(own, key, form))
            found.append((name.format(batch), *cells, remark))
    if theirs is not None:
        return found
    return [("", "model", ""), *((name, cell, remark) for name, _, cell, remark in found[1:])]


def _cell(values: Mapping[str, Any], key: str, form: Callable[[float], str]) -> str:
    return "–" if values[key] is None else form(values[key])


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
    return f"{digits(factor)}× {less}" if factor > 1 else f"{digits(1 / factor)}× {more}"


def machine(measured: Mapping[str, Any]) -> str:
    """On what a measurement was made, in a line."""
    threads, where = measured["threads"], measured["environment"]
    on = where["processor"] if measured["device"] == "cpu" else where["accelerator"]
    many = "s" if threads > 1 else ""
    return f"measured on {on}, {threads} thread{many}, torch {where['torch']}"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of text: numbers to the right, names and remarks to the left.

    >>> aligned([("", "model", ""), ("bytes", "32 B", "the same")])
    ['       model', 'bytes   32 B  the same']
    """
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    last = len(widths) - 1
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
