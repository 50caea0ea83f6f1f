"""What a sweep leaves for people: a table, a picture, and ``sweep.json`` for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prunus._common.files import write_atomically
from prunus.report import why_not
from prunus.sweep.types import Sweep, Trial

if TYPE_CHECKING:
    from rich.table import Table

_ORDER = ("finished", "stopped", "running", "unfinished", "refused", "failed")


def write_summary(done: Sweep, *, picture: bool) -> None:
    """``sweep.json``, and ``pareto.png`` once a trial is finished."""
    data = json.dumps(done.to_dict(), indent=1).encode()
    write_atomically(done.folder / "sweep.json", data)
    finished = {t.number: t.point for t in done.trials if t.point is not None}
    if not picture or not finished or why_not() is not None:
        return
    from prunus.report.front import draw_front
    from prunus.report.plots import as_png

    stopped = {
        t.number: (t.metric, t.left)
        for t in done.trials
        if t.state == "stopped" and t.metric is not None and t.left is not None
    }
    best = max if done.better == "higher" else min
    figure = draw_front(
        finished,
        done.front,
        stopped=stopped,
        names=(done.metric_name, done.left_name),
        dense=best((t.dense for t in done.trials if t.dense is not None), default=None),
    )
    write_atomically(done.folder / "pareto.png", as_png(figure))


def table(done: Sweep) -> Table:
    """A row a trial, from the least left to the most; a star marks the front."""
    from rich.table import Table

    fields = list(done.trials[0].values) if done.trials else []
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("")
    made.add_column("trial", justify="right")
    for name in (*fields, done.metric_name, "dense", done.left_name, "seconds"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("state", no_wrap=True)
    made.add_column("folder", no_wrap=True)
    for trial in sorted(done.trials, key=_place):
        starred = trial.number in done.front
        made.add_row(
            "*" if starred else "", str(trial.number), *(trial.values[f] for f in fields),
            *(_figure(x) for x in (trial.metric, trial.dense, trial.left)),
            f"{trial.seconds:.0f}" if trial.seconds else "–", trial.state, trial.name or "–",
            style="bold" if starred else None,
        )  # fmt: skip
    return made


def summary(done: Sweep) -> list[str]:
    """The lines below the table: reasons, what the star means, the best one."""
    lines = [f"trial {t.number} {t.state}: {t.reason}" for t in done.trials if t.reason]
    elsewhere = sum(t.state == "running" for t in done.trials)
    if elsewhere:
        lines.append(f"{elsewhere} of the trials run elsewhere; the same command shows them later")
    if done.best is not None:
        lines.append(f"* no other trial has a better {done.metric_name} with as little left")
        lines.append(f"best: trial {done.best.number}, in {done.folder / (done.best.name or '')}")
    if done.command is not None:
        lines.append(f"again: {done.command}")
    return lines


def _place(trial: Trial) -> tuple[int, float, int]:
    left = 1.0 if trial.left is None else trial.left
    return _ORDER.index(trial.state), left, trial.number


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
