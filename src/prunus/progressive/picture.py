"""The picture of a run: the metric against what is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from prunus._common.pictures import COLORS, FAINT, INK, SERIES, STYLE, WARM, as_svg, figure_of
from prunus.progressive.result import Round


def metric_against_sparsity(rounds: Sequence[Round], metric_name: str) -> Figure:
    """Validation (and training) metric of every round; rejected ones as crosses."""
    figure, axes = figure_of(6.4, 3.6)
    judged = [r for r in rounds if r.metric is not None]
    good = sorted((r for r in judged if r.accepted), key=lambda r: r.achieved)
    bad = [r for r in judged if not r.accepted]
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
    axes.set_xlabel(counted(rounds))
    axes.set_ylabel(metric_name)
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def counted(rounds: Sequence[Round]) -> str:
    """What the rounds count, as an axis says it."""
    return rounds[-1].counted if rounds else "sparsity"


def metric_svg(rounds: Sequence[Round], metric_name: str) -> str:
    """The same as an SVG element."""
    with matplotlib.rc_context(STYLE):
        return as_svg(metric_against_sparsity(rounds, metric_name), "metric")


def scan_curves(loss: float, groups: Mapping[str, tuple[int, Mapping[float, float]]]) -> Figure:
    """The loss against the part of one group that is removed; the tenderest groups in color."""
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(6.4, 4.0)
        tender = sorted(groups, key=lambda n: -max(groups[n][1].values(), default=loss))
        for place, name in reversed(list(enumerate(tender))):
            parts = {0.0: loss, **groups[name][1]}
            named = place < len(COLORS) - 1
            how: dict[str, Any] = {"color": FAINT, "linewidth": 1, "alpha": 0.5}
            if named:
                how = {"color": COLORS[place], "linewidth": 1.6, "label": name}
            axes.plot([*parts], [*parts.values()], "o-", markersize=3, **how)
        axes.set_xlabel("part removed of one group, all others whole")
        axes.set_ylabel("loss on calibration data")
        axes.legend(frameon=False, fontsize=9, loc="best")
    return figure
