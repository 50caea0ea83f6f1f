"""The pictures of a report, as SVG that follows the page's colors, and as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from prunus._common.pictures import COLORS, SERIES, STYLE, figure_of
from prunus.progressive.picture import counted, metric_against_sparsity
from prunus.progressive.result import Round, last_accepted

Picture = Callable[[Sequence[Round], str], Figure]


def density_by_group(rounds: Sequence[Round], metric_name: str) -> Figure:
    """Kept weights of each group of the last accepted round."""
    densities = dict(last_accepted(rounds).densities) if rounds else {}
    figure, axes = figure_of(6.4, 0.9 + 0.28 * max(1, len(densities)))
    names = list(densities)
    axes.barh(range(len(names)), [densities[n] for n in names], color=SERIES, height=0.62)
    for i, name in enumerate(names):
        axes.annotate(f"{densities[name]:.3g}", (densities[name], i), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("density (kept ÷ all weights)")
    return figure


def complexity(rounds: Sequence[Round], metric_name: str) -> Figure:
    """Σ|w| against sparsity."""
    figure, axes = figure_of(6.4, 2.6)
    good = sorted((r for r in rounds if r.accepted), key=lambda r: r.achieved)
    axes.plot([r.achieved for r in good], [r.l1 for r in good], "o-", color=SERIES, markersize=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(counted(rounds))
    axes.set_ylabel("Σ|w|")
    return figure


def metric_against_latency(rounds: Sequence[Round], metric_name: str) -> Figure:
    """Validation metric of every accepted round against its measured latency, by runtime."""
    figure, axes = figure_of(6.4, 3.6)
    good = [r for r in rounds if r.latency and r.metric is not None and r.accepted]
    names = list(dict.fromkeys(name for r in good for name in r.latency))
    for number, name in enumerate(names):
        points = [(r.latency[name], r.metric or 0) for r in good if name in r.latency]
        color, marker = COLORS[number % len(COLORS)], "osv^D"[number % 5]
        axes.plot(*zip(*points, strict=True), f"{marker}-", color=color, markersize=4,
                  linewidth=1.3, label=name)  # fmt: skip
        axes.annotate("dense" if good[0].verdict == "dense" else "", points[0], xytext=(4, 5),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    every = [ms for r in good for ms in r.latency.values()]
    if every and max(every) > 4 * min(every):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel("latency, ms (measured; left is faster)")
    axes.set_ylabel(metric_name)
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


PICTURES: dict[str, tuple[str, Picture]] = {
    "metric": ("Metric against what is removed", metric_against_sparsity),
    "latency": ("Metric against measured latency", metric_against_latency),
    "density": ("Density by layer", density_by_group),
    "complexity": ("Complexity Σ|w|", complexity),
}


def draw(name: str, rounds: Sequence[Round], metric_name: str) -> Figure:
    """A picture by its name."""
    with matplotlib.rc_context(STYLE):
        return PICTURES[name][1](rounds, metric_name)
