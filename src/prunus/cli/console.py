"""What a run shows while it goes: bars on a terminal, lines in a log, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from prunus.methods.traits import trait
from prunus.progressive.result import Result, Round
from prunus.runtimes import find

LINE_EVERY = 10.0  # seconds between lines of a log


class Show(Protocol):
    """Something that shows a run."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """One event of the run."""

    def finish(self, result: Result, metric_name: str, report: str | None) -> None:
        """The end."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def choose(*, as_json: bool) -> Show:
    """JSON if asked for, bars on a terminal, lines elsewhere."""
    if as_json:
        return AsJson()
    return Bars() if sys.stdout.isatty() else Lines()


class AsJson:
    """One JSON object a line."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            return
        row = {**event}
        if isinstance(row.get("row"), Round):
            row = {"event": "judged", **row["row"].to_dict()}
        print(json.dumps(row), flush=True)

    def finish(self, result: Result, metric_name: str, report: str | None) -> None:
        values = {
            "event": "result",
            "metric_name": metric_name,
            "metric": result.metric,
            "test": result.test,
            "tested": None if result.test_metric is None else result.test_metric.to_dict(),
            "sparsity": result.sparsity,
            "why": result.reason,
            "folder": None if result.folder is None else str(result.folder),
            "report": report,
        }
        print(json.dumps(values), flush=True)

    def close(self) -> None:
        """Nothing to do."""


class Lines:
    """Plain lines for logs: one a round, and now and then one while training."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._began: tuple[int, float] | None = None
        self._console = Console(width=100, highlight=False)

    def __call__(self, event: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if event["event"] == "step":
            self._step(event, now)
        elif event["event"] == "judged":
            print(round_line(event["row"]), flush=True)
            self._last, self._began = now, None
        elif event["event"] == "note":
            print(event["text"], flush=True)

    def _step(self, event: Mapping[str, Any], now: float) -> None:
        if self._began is None or self._began[0] > event["done"]:
            self._began = (event["done"], now)
        if now - self._last < LINE_EVERY:
            return
        self._last = now
        steps = event["done"] - self._began[0]
        left = (now - self._began[1]) / max(1, steps) * (event["steps"] - event["done"])
        text = f"  round {event['round']}: step {event['done']} of {event['steps']}"
        print(f"{text}, {left:.0f} s left" if steps else text, flush=True)

    def finish(self, result: Result, metric_name: str, report: str | None) -> None:
        summary(self._console, result, metric_name, report)

    def close(self) -> None:
        """Nothing to do."""


class Bars:
    """A bar for each training, a line for each judged round."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._progress.start()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            name = (
                "train dense"
                if event["sparsity"] is None
                else (f"round {event['round']}, sparsity {event['sparsity']:.3f}")
            )
            if self._task is None:
                self._task = self._progress.add_task(name, total=event["steps"])
            self._progress.update(
                self._task, completed=event["done"], total=event["steps"], description=name
            )
        elif event["event"] == "judged":
            if self._task is not None:
                self._progress.remove_task(self._task)
                self._task = None
            self._console.print(round_line(event["row"]))
        elif event["event"] == "note":
            self._console.print(event["text"], markup=False)

    def finish(self, result: Result, metric_name: str, report: str | None) -> None:
        self.close()
        summary(self._console, result, metric_name, report)

    def close(self) -> None:
        self._progress.stop()


def round_line(row: Round) -> str:
    """A judged round in one line."""
    metric = "" if row.metric is None else f"  metric {row.metric:.4f}"
    return f"round {row.index:>2}  {_reached(row)}{metric}  {row.verdict}  {row.seconds:.1f} s"


def _reached(row: Round) -> str:
    if row.target == "sparsity":
        return f"sparsity {row.achieved:.4f} (requested {row.requested:.4f})"
    return f"{row.target} {1 - row.achieved:.4f} of dense (requested {1 - row.requested:.4f})"


def rounds_table(rounds: Sequence[Round], metric_name: str) -> Table:
    """A row a round."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "round",
        "requested",
        "achieved",
        f"validation {metric_name}",
        "train − val",
        "Σ|w|",
    ):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for r in rounds:
        table.add_row(
            str(r.index), f"{r.requested:.4f}", f"{r.achieved:.4f}", number(r.metric),
            number(r.gap), f"{r.l1:.1f}", r.verdict,
        )  # fmt: skip
    return table


def number(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def summary(console: Console, result: Result, metric_name: str, report: str | None) -> None:
    """The end of a run: table, metrics, cost, where the report lies."""
    console.print()
    console.print(rounds_table(result.rounds, metric_name))
    console.print()
    rows = [
        ("ended", result.reason),
        ("sparsity", _sparsity(result)),
        (f"test {metric_name}", "–" if result.test_metric is None else str(result.test_metric)),
        *(_stored(result) if result.compaction is None else _compact(result)),
        *_deployed(result, metric_name),
    ]
    for name, text in rows:
        console.print(f"{name:<13} {text}", markup=False, soft_wrap=True)
    if report is not None:
        console.print(f"{'report':<14}{report}", markup=False, soft_wrap=True)


def _sparsity(result: Result) -> str:
    before, after = result.cost_before, result.cost_after
    fraction = 1 - (after["nonzero_params"] or 0) / (before["params"] or 1)
    what = "zero" if result.compaction is None else "gone"
    part = f"{fraction:.4f} of all parameters are {what}"
    return f"{result.sparsity:.4f} of the weights in scope, {part}"


def _stored(result: Result) -> list[tuple[str, str]]:
    before, after = result.cost_before, result.cost_after
    zeros = "(zeros are stored and multiplied all the same)"
    text = f"{before['params']:,.0f} parameters, {after['nonzero_params']:,.0f} of them not zero"
    return [("stored", f"{text} {zeros}")]


def _deployed(result: Result, metric_name: str) -> list[tuple[str, str]]:
    """Where the artifact runs, how fast, and what it answers there."""
    made = result.deployment
    if made is None:
        return []
    row = made.row()
    text = f"{made.runtime}, {metric_name} {number(row.metric)} there"
    for batch, timing in row.latency.items():
        gain = made.gains.get(batch)
        faster = "" if gain is None else f" ({gain:.2f} times as fast as dense)"
        text += f"; batch {batch}: {timing.median_ms:.3g} ms{faster}"
    place = [("artifact", str(made.path))] if made.path is not None else []
    if made.path is not None and not trait("runtimes", made.runtime, "NEEDS_MODEL"):
        trust = "" if find(made.runtime).SAFE else ", trusted=True"
        place.append(("open it", f"prunus.load('{made.path}'{trust})"))
    return [("runs in", text), *place, *(("note", note) for note in made.advice)]


def _compact(result: Result) -> list[tuple[str, str]]:
    done, before, after = result.compaction, result.cost_before, result.cost_after
    assert done is not None
    costs = [
        f"{before[key]:,.0f} -> {after[key]:,.0f} {key}"
        for key in ("params", "macs", "bytes")
        if before[key] and after[key] is not None
    ]
    text = (
        f"equal to the masked model within {done.error:.1e} in float64; the masks moved its "
        f"outputs by {done.effect:.1e}; route: {done.route}"
    )
    notes = [("note", note) for note in done.notes]
    return [("compact", ", ".join(costs)), ("verified", text), *notes]
