"""What a run shows while it goes: bars on a terminal, lines in a log, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from prunus._common.numbers import NONE, count, error, metric
from prunus.cli.shared import show
from prunus.methods.traits import trait
from prunus.progressive import progress
from prunus.progressive.result import Result, last_accepted, rounds_table

LINE_EVERY = 10.0  # seconds between lines of a log


class Show:
    """Something that shows a run, event by event."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """One event of the run."""

    def finish(self, result: Result, metric_name: str, report: str | None) -> None:
        """The end."""
        self.close()
        summary(result, metric_name, report)

    def close(self) -> None:
        """Leave the terminal as it was."""


def choose(*, as_json: bool) -> Show:
    """JSON if asked for, bars on a terminal, lines elsewhere."""
    if as_json:
        return AsJson()
    if not sys.stdout.isatty():
        return Lines()
    from rich.console import Console

    return Bars(Console(highlight=False))


class AsJson(Show):
    """One JSON object a line."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            return
        judged = event["event"] == "judged"
        row = {"event": "judged", **event["row"].to_dict()} if judged else event
        print(json.dumps(row), flush=True)

    def finish(self, result: Result, metric_name: str, report: str | None) -> None:
        values = {
            "event": "result",
            **result.figures(metric_name),
            "folder": None if result.folder is None else str(result.folder),
            "report": report,
        }
        print(json.dumps(values), flush=True)


class Lines(Show):
    """Plain lines for logs: one a round, and now and then one while training."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._began: tuple[int, float] | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if event["event"] == "step":
            self._step(event, now)
        elif event["event"] == "judged":
            print(progress.round_line(event["row"]), flush=True)
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


class Bars(progress.Bars, Show):
    """A bar for each training, a line for each judged round."""


def summary(result: Result, metric_name: str, report: str | None) -> None:
    """The end of a run: table, metrics, cost, where the report lies."""
    click.echo()
    show(rounds_table(result.rounds, metric_name))
    click.echo()
    rows = [
        ("ended", result.reason),
        ("sparsity", _sparsity(result)),
        *_bounded(result),
        (f"test {metric_name}", NONE if result.test_metric is None else str(result.test_metric)),
        *(_stored(result) if result.compaction is None else _compact(result)),
        *_deployed(result, metric_name),
        *(("control", str(arm)) for arm in result.controls),
        *((("worth", result.worth),) if result.worth else ()),
    ]
    for name, text in rows:
        click.echo(f"{name:<13} {text}")
    if report is not None:
        click.echo(f"{'report':<14}{report}")


def _sparsity(result: Result) -> str:
    before, after = result.cost_before, result.cost_after
    fraction = 1 - (after["nonzero_params"] or 0) / (before["params"] or 1)
    what = "zero" if result.compaction is None else "gone"
    part = f"{metric(fraction)} of all parameters are {what}"
    return f"{metric(result.sparsity)} of the weights in scope, {part}"


def _bounded(result: Result) -> list[tuple[str, str]]:
    """What the target counts, where that is no sparsity."""
    last = last_accepted(result.rounds)
    if last.target == "sparsity":
        return []
    gone, left = metric(last.achieved), metric(1 - last.achieved)
    return [(last.target, f"{gone} of the dense model's are gone, {left} left")]


def _stored(result: Result) -> list[tuple[str, str]]:
    before, after = result.cost_before, result.cost_after
    zeros = "(zeros are stored and multiplied all the same)"
    text = (
        f"{count(before['params'])} parameters, {count(after['nonzero_params'])} of them not zero"
    )
    return [("stored", f"{text} {zeros}")]


def _deployed(result: Result, metric_name: str) -> list[tuple[str, str]]:
    """Where the artifact runs, how fast, and what it answers there."""
    made = result.deployment
    if made is None:
        return []
    row = made.row()
    text = f"{made.runtime}, {metric_name} {metric(row.metric)} there"
    for batch, timing in row.latency.items():
        gain = made.gains.get(batch)
        faster = "" if gain is None else f" ({gain:.2f} times as fast as dense)"
        text += f"; batch {batch}: {timing.median_ms:.3g} ms{faster}"
    place = [("artifact", str(made.path))] if made.path is not None else []
    if made.path is not None and not trait("runtimes", made.runtime, "NEEDS_MODEL"):
        place.append(("open it", made.opened_by))
    return [("runs in", text), *place, *(("note", note) for note in made.advice)]


def _compact(result: Result) -> list[tuple[str, str]]:
    done, before, after = result.compaction, result.cost_before, result.cost_after
    assert done is not None
    costs = [
        f"{count(before[key])} -> {count(after[key])} {key}"
        for key in ("params", "macs", "bytes")
        if before[key] and after[key] is not None
    ]
    text = (
        f"equal to the masked model within {error(done.error)} in float64; the masks moved its "
        f"outputs by {error(done.effect)}; route: {done.route}"
    )
    notes = [("note", note) for note in done.notes]
    return [("compact", ", ".join(costs)), ("verified", text), *notes]
