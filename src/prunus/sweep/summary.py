"""What a sweep leaves for people: a table, a picture, and ``sweep.json`` for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunus._common.files import write_atomically, write_json
from prunus._common.numbers import NONE, count, metric
from prunus._common.tables import Table, page
from prunus.report import why_not
from prunus.sweep.types import Sweep, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ORDER = ("finished", "stopped", "running", "unfinished", "refused", "failed")


def write_summary(done: Sweep, *, picture: bool) -> None:
    """``sweep.json``, and ``pareto.png`` once a trial is finished."""
    write_json(done.folder / "sweep.json", done.to_dict())
    if picture and _drawn(done):
        from prunus._common.pictures import as_png

        write_atomically(done.folder / "pareto.png", as_png(_picture(done)))


def notebook_page(done: Sweep) -> str:
    """What a notebook shows."""
    pictures = []
    if _drawn(done):
        from prunus._common.pictures import as_svg

        pictures = [as_svg(_picture(done), "pareto")]
    return page("\n".join(summary(done)), table(done).html(), *pictures)


def _drawn(done: Sweep) -> bool:
    """Whether there is a picture: of a finished trial, where matplotlib is installed."""
    return why_not() is None and any(t.point is not None for t in done.trials)


def _picture(done: Sweep) -> Figure:
    from prunus.report.front import draw_front

    stopped = {
        t.number: (t.metric, t.left)
        for t in done.trials
        if t.state == "stopped" and t.metric is not None and t.left is not None
    }
    best = max if done.better == "higher" else min
    return draw_front(
        {t.number: t.point for t in done.trials if t.point is not None},
        done.front,
        stopped=stopped,
        names=(done.metric_name, done.left_name),
        dense=best((t.dense for t in done.trials if t.dense is not None), default=None),
    )


def table(done: Sweep) -> Table:
    """A row a trial, from the least left to the most; a star marks the front."""
    fields = list(done.trials[0].values) if done.trials else []
    trials = sorted(done.trials, key=_place)
    head = ("", "trial", *fields, done.metric_name, "dense", done.left_name, "seconds", "state",
            "folder")  # fmt: skip
    return Table(
        head,
        [
            (
                "*" if t.number in done.front else "", str(t.number),
                *(t.values[f] for f in fields), metric(t.metric), metric(t.dense), metric(t.left),
                count(t.seconds or None), t.state, t.name or NONE,
            )
            for t in trials
        ],
        left=(0, len(head) - 2, len(head) - 1),
        strong=[i for i, t in enumerate(trials) if t.number in done.front],
    )  # fmt: skip


def summary(done: Sweep) -> list[str]:
    """The lines below the table: reasons, what the star means, the best one."""
    lines = [f"trial {t.number} {t.state}: {t.reason}" for t in done.trials if t.reason]
    elsewhere = sum(t.state == "running" for t in done.trials)
    if elsewhere:
        lines.append(
            f"{elsewhere} trials are running elsewhere; run the same command again to see them"
        )
    if done.best is not None:
        lines.append(f"* no other trial has a better {done.metric_name} with as little left")
        lines.append(f"best: trial {done.best.number}, in {done.folder / (done.best.name or '')}")
    if done.command is not None:
        lines.append(f"again: {done.command}")
    return lines


def _place(trial: Trial) -> tuple[int, float, int]:
    left = 1.0 if trial.left is None else trial.left
    return _ORDER.index(trial.state), left, trial.number
