"""Pictures in one style, as SVG that follows the colors around it, and as PNG."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"  # replaced by currentColor in SVG, so that text is readable on light and dark
SERIES, FAINT, WARM = "#2b8fbd", "#8c9aa6", "#e0662b"  # told apart by color-blind eyes, too
COLORS = (SERIES, WARM, "#1f7a4d", "#7b5ea7", FAINT)
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


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture in the report's style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.grid(visible=True, linewidth=0.5, color=INK, alpha=0.15)
    axes.set_axisbelow(True)
    return figure, axes


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
