"""One self-contained HTML file about a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from prunus._common import numbers
from prunus._common.files import write_atomically
from prunus._common.metrics import MetricEstimate
from prunus._common.numbers import metric
from prunus._common.pictures import as_png, as_svg
from prunus.costs import THEORETICAL
from prunus.progressive.record import Record
from prunus.progressive.result import Round
from prunus.report.plots import PICTURES, draw

_COUNTED = ("params", "macs", "bytes", "l1")


def write_report(folder: Path) -> Path:
    """Write ``report.html`` and the same pictures as PNG into a run's folder.

    Args:
        folder: of a run, finished or not.

    Returns:
        The path of the HTML file.

    Raises:
        InputError: if the folder holds no run.
    """
    record = Record(folder)
    pictures = []
    for name, (title, _) in PICTURES.items():
        if name in ("metric", "latency") and all(r.metric is None for r in record.rounds):
            continue
        if name == "latency" and not any(r.latency for r in record.rounds):
            continue
        figure = draw(name, record.rounds, record.metric_name)
        write_atomically(folder / f"{name}.png", as_png(figure))
        pictures.append((title, markupsafe.Markup(as_svg(figure, name))))
    html = _template().render(run=record, pictures=pictures, **_texts(record))
    path = folder / "report.html"
    write_atomically(path, html.encode())
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {n: getattr(numbers, n) for n in ("figure", "error", "megabytes")}
    return environment.get_template("page.html.jinja")


def _texts(record: Record) -> dict[str, Any]:
    good, rounds = record.good, record.rounds
    before = record.result.get("cost_before") or (dict(rounds[0].cost) if rounds else {})
    after = record.result.get("cost_after") or (dict(good.cost) if good else {})
    return {
        "dense": rounds[0] if rounds else None,
        "good": good,
        "controls": record.result.get("controls"),
        **_items(good, record),
        "headline": _headline(record),
        "counted": None if good is None else good.counted,
        "any_macs": before.get("macs") is not None or after.get("macs") is not None,
        "costs": [(k, before.get(k), after.get(k)) for k in _COUNTED],
        "theoretical": [(k, before.get(k), after.get(k)) for k in THEORETICAL],
        "densities": sorted(good.densities.items(), key=lambda x: x[1]) if good else [],
        "gone": _gone(before, after),
        "compaction": record.result.get("compaction"),
        "deployment": record.deployment,
        "batches": _batches(record.deployment),
    }


def _items(good: Round | None, record: Record) -> dict[str, Any]:
    """What single items say of the last accepted round: the classes that lost most first."""
    found = {} if good is None else good.evidence
    guard = None if not found else record.recipe.guard
    sign = -1 if guard is not None and guard.better == "lower" else 1
    rows = [(n, old, new, sign * (old - new)) for n, (old, new) in found.get("groups", {}).items()]
    return {
        "evidence": found,
        "groups": sorted(rows, key=lambda row: -row[3]),
        "changed": [
            (f"Items that became {how}", found[how], found[f"{how}_count"])
            for how in ("worse", "better")
            if found.get(how)
        ],
    }


def _batches(deployment: Mapping[str, Any] | None) -> list[str]:
    """Batch sizes that were timed, as the table's JSON names them."""
    rows = deployment["rows"] if deployment else []
    return sorted({b for row in rows for b in row["latency"]}, key=int)


def _gone(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> float | None:
    whole, left = before.get("params"), after.get("nonzero_params")
    return None if not whole or left is None else 1 - left / whole


def _headline(record: Record) -> str:
    good = record.good
    if good is None:
        return "nothing judged yet"
    text = f"{good.counted} {good.achieved:.4g}"
    first = record.rounds[0]
    if good.metric is not None and first.metric is not None:
        text += f", validation {record.metric_name} {metric(good.metric)}"
        text += f" (dense {metric(first.metric)})"
    tested = record.result.get("tested")
    return text if tested is None else f"{text}, test {MetricEstimate.from_dict(tested)}"
