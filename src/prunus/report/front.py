"""The picture of a sweep: what each trial keeps of the metric against what it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from prunus._common.pictures import FAINT, INK, SERIES, STYLE, WARM, figure_of

Points = Mapping[int, tuple[float, float]]
"""Metric and part left of trials by their number."""
CLOSE = 22
"""Labels nearer than so many points are written as one."""


def draw_front(
    finished: Points, front: Sequence[int], *, stopped: Points, names: tuple[str, str],
    dense: float | None = None,
) -> Figure:  # fmt: skip
    """All trials as dots, the front as a line with the numbers of its trials.

    Args:
        finished: trials that ended.
        front: numbers of those that no other dominates.
        stopped: hopeless ones, drawn as crosses where they were stopped.
        names: of the metric, and of what is left.
        dense: the best metric of a dense model, drawn as a line.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(6.4, 4.0)
        lefts = [left for _, left in [*finished.values(), *stopped.values()]]
        if dense is not None:
            axes.axhline(dense, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
            axes.annotate("dense", (1.0, dense), xycoords=("axes fraction", "data"), ha="right",
                          xytext=(-3, 4), textcoords="offset points", fontsize=9)  # fmt: skip
        for points, marker, color, name in (
            (finished, "o", FAINT, "finished"),
            (stopped, "x", WARM, "stopped"),
        ):
            if points:
                axes.plot([left for _, left in points.values()], [m for m, _ in points.values()],
                          marker, color=color, markersize=6, label=name)  # fmt: skip
        ends = [finished[number] for number in front]
        axes.plot([left for _, left in ends], [m for m, _ in ends], "o-", color=SERIES,
                  markersize=6, linewidth=1.8, label="Pareto front")  # fmt: skip
        if lefts and 0 < 4 * min(lefts) < max(lefts):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(FuncFormatter(_some))
        axes.margins(0.09)
        axes.set_xlabel(f"{names[1]} (less is better)")
        axes.set_ylabel(names[0])
        axes.legend(frameon=False, fontsize=9, loc="best")
        figure.draw_without_rendering()  # the layout, before places are read off
        _number(axes, {number: finished[number] for number in front})
    return figure


def _some(value: float, _: int) -> str:
    """Of the small ticks of a logarithmic axis, 2 and 5 have room for a text."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _number(axes: Axes, points: Points) -> None:
    """The numbers of trials above their dots; those of dots at one place stand together."""
    groups: list[tuple[tuple[float, float], list[int]]] = []
    scale = 72 / axes.figure.dpi
    for number, (metric, left) in points.items():
        x, y = axes.transData.transform((left, metric)) * scale
        if groups and abs(x - groups[-1][0][0]) < CLOSE and abs(y - groups[-1][0][1]) < CLOSE / 2:
            groups[-1][1].append(number)
        else:
            groups.append(((x, y), [number]))
    for _, numbers in groups:
        metric, left = points[numbers[0]]
        axes.annotate(", ".join(map(str, numbers)), (left, metric), xytext=(-3, 6),
                      textcoords="offset points", ha="right", fontsize=9, color=SERIES)  # fmt: skip
