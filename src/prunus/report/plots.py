"""The pictures of a report, as SVG that follows the page's colors, and as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from prunus.progressive.result import Round

INK = "#010203"  # replaced by currentColor in SVG, so that text is readable on light and dark
SERIES, FAINT, WARM = "#2b8fbd", "#8c9aa6", "#e0662b"  # told apart by color-blind eyes, too
_COLORS = (SERIES, WARM, "#1f7a4d", "#7b5ea7", FAINT)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "prunus",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Picture = Callable[[Sequence[Round], str], Figure]


def metric_against_sparsity(rounds: Sequence[Round], metric_name: str) -> Figure:
    """Validation (and training) metric of every round; rejected ones as crosses."""
    figure, axes = figure_of(6.4, 3.6)
    judged = [r for r in rounds if r.metric is not None]
    good = sorted((r for r in judged if r.verdict != "rejected"), key=lambda r: r.achieved)
    bad = [r for r in judged if r.verdict == "rejected"]
    seen = [r for r in good if r.train_metric is not None]
    if judged and judged[0].metric is not None:
        axes.axhline(judged[0].metric, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
        axes.annotate("dense", (0.0, judged[0].metric), xytext=(3, 4), textcoords="offset points",
                      fontsize=9)  # fmt: skip
    if seen:
        axes.plot([r.achieved for r in seen], [r.train_metric or 0 for r in seen], "o-",
                  color=FAINT, markersize=3, linewidth=1, label="training")  # fmt: skip
    axes.plot([r.achieved for r in good], [r.metric or 0 for r in good], "o-", color=SERIES,
              markersize=5, linewidth=1.8, label="validation")  # fmt: skip
    if bad:
        axes.plot([r.achieved for r in bad], [r.metric or 0 for r in bad], "x", color=WARM,
                  markersize=8, markeredgewidth=2, label="rejected")  # fmt: skip
    axes.set_xlabel(_counted(rounds))
    axes.set_ylabel(metric_name)
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def density_by_group(rounds: Sequence[Round], metric_name: str) -> Figure:
    """Kept weights of each group of the last accepted round."""
    good = next((r for r in reversed(rounds) if r.verdict != "rejected"), None)
    densities = dict(good.densities) if good is not None else {}
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
    good = sorted((r for r in rounds if r.verdict != "rejected"), key=lambda r: r.achieved)
    axes.plot([r.achieved for r in good], [r.l1 for r in good], "o-", color=SERIES, markersize=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_counted(rounds))
    axes.set_ylabel("Σ|w|")
    return figure


def metric_against_latency(rounds: Sequence[Round], metric_name: str) -> Figure:
    """Validation metric of every accepted round against its measured latency, by runtime."""
    figure, axes = figure_of(6.4, 3.6)
    good = [r for r in rounds if r.latency and r.metric is not None and r.verdict != "rejected"]
    names = list(dict.fromkeys(name for r in good for name in r.latency))
    for number, name in enumerate(names):
        points = [(r.latency[name], r.metric or 0) for r in good if name in r.latency]
        color, marker = _COLORS[number % len(_COLORS)], "osv^D"[number % 5]
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


def _counted(rounds: Sequence[Round]) -> str:
    return rounds[-1].counted if rounds else "sparsity"


PICTURES: dict[str, tuple[str, Picture]] = {
    "metric": ("Metric against what is removed", metric_against_sparsity),
    "latency": ("Metric against measured latency", metric_against_latency),
    "density": ("Density by layer", density_by_group),
    "complexity": ("Complexity Σ|w|", complexity),
}


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture in the report's style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.grid(visible=True, linewidth=0.5, color=INK, alpha=0.15)
    axes.set_axisbelow(True)
    return figure, axes


def draw(name: str, rounds: Sequence[Round], metric_name: str) -> Figure:
    """A picture by its name."""
    with matplotlib.rc_context(STYLE):
        return PICTURES[name][1](rounds, metric_name)


def as_svg(figure: Figure, name: str) -> str:
    """The picture as an SVG element without outside addresses; ids are its own."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', text, count=1)
    return text.replace(INK, "currentColor")


def as_png(figure: Figure) -> bytes:
    """The picture for slides and pages, on white."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()
