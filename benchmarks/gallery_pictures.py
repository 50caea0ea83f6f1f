"""The pictures of the gallery's page, of rows that ``gallery.py`` kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus._common.pictures import FAINT, INK, SERIES, WARM, as_png, figure_of
from prunus.progressive.picture import metric_against_sparsity
from prunus.progressive.result import Round

Rows = Sequence[tuple[Any, dict[str, Any]]]
LOWER = ("bits per character", "word error rate", "mean absolute error")
"""Metrics of which less is better."""


def gap(f: dict[str, Any]) -> list[tuple[float, float]]:
    """Of each accepted round what is removed, and how much better training data are."""
    sign = -1 if f["metric_name"] in LOWER else 1
    good = [r for r in f["rounds"] if r["verdict"] != "rejected"]
    return [(r["sparsity"], sign * (r["train_metric"] - r["metric"])) for r in good]


def draw_rounds(f: dict[str, Any], path: Path) -> None:
    """The metric of every round against what is removed."""
    rounds = [
        Round(index=i, step=0, progress=0.0, requested=0.0, achieved=r["sparsity"],
              metric=r["metric"], verdict=r["verdict"], train_metric=r["train_metric"])
        for i, r in enumerate(f["rounds"])
    ]  # fmt: skip
    path.write_bytes(as_png(metric_against_sparsity(rounds, f["metric_name"])))


def draw_gaps(fields: Rows, path: Path) -> None:
    """The gap of every field, as a share of the dense network's metric on validation data."""
    figure, axes = figure_of(6.4, 3.6)
    for row, f in fields:
        points = gap(f)
        scale = 1 / f["dense"]
        axes.plot([x for x, _ in points], [scale * y for _, y in points], "o-", markersize=4,
                  label=row.name)  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("sparsity")
    axes.set_ylabel("training − validation, share of the metric")
    axes.legend(frameon=False, fontsize=8)
    path.write_bytes(as_png(figure))


def draw_shares(shares: Rows, path: Path) -> None:
    """The metric against the part of the data that trained."""
    figure, axes = figure_of(6.4, 3.6)
    x = [float(row.name.rsplit("part_")[-1]) for row, _ in shares]
    axes.plot(x, [f["rounds"][-1]["train_metric"] for _, f in shares], "o-", color=FAINT,
              label="training")  # fmt: skip
    axes.plot(x, [f["metric"] for _, f in shares], "o-", color=SERIES, label="validation")
    axes.plot(x, [f["tested"]["metric"] for _, f in shares], "s-", color=WARM, label="test")
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{v:.0%}" for v in x])
    axes.minorticks_off()
    axes.set_xlabel("part of the training data used to retrain")
    axes.set_ylabel(shares[0][1]["metric_name"])
    axes.legend(frameon=False, fontsize=9)
    path.write_bytes(as_png(figure))
