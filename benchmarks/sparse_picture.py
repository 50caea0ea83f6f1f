"""The picture of docs/zeros.md: where zeros begin to pay, by the lines of benchmarks/sparse.jsonl.

python benchmarks/sparse_picture.py benchmarks/sparse.jsonl docs/zeros.png
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus._common.pictures import COLORS, FAINT, as_png, figure_of
from sparse import ROWS, TRAINING
from sparse_opponents import DENSE

LAYERS = ("linear_128", "blocks_4x1", "linear_16", "linear_1", "conv_1x1", "conv_3x3")
MODELS = ("resnet50", "bert", "lstm")
TICKS = (0.5, 1, 2, 4, 8, 16)


def ratios(lines: Sequence[Mapping[str, Any]], row: str) -> dict[float, float]:
    """The fastest dense engine's time ÷ ours, by sparsity: the geometric mean of the cases."""
    found: dict[float, dict[str, float]] = defaultdict(dict)
    for line in lines:
        if line["row"] == row and "sparse" in line["ms"]:
            dense = min(line["ms"][e] for e in DENSE if e in line["ms"])
            found[line["sparsity"]][line["case"]] = dense / line["ms"]["sparse"]
    return {s: statistics.geometric_mean(r.values()) for s, r in sorted(found.items())}


def main() -> None:
    """The command."""
    source, target = map(Path, sys.argv[1:])
    every = [json.loads(text) for text in source.read_text(encoding="utf-8").splitlines()]
    first = every[0]
    lines = [x for x in every if x["threads"] == 1 and x["processor"] == first["processor"]
             and x["instructions"] == first["instructions"]]  # fmt: skip
    figure, axes = figure_of(8.5, 4.8)
    titles = {name: title for name, (title, *_) in ROWS.items()} | TRAINING
    for names, style in ((LAYERS, "o-"), (MODELS, "s--")):
        for name, color in zip(names, (*COLORS, "black"), strict=False):
            points = ratios(lines, name)
            if points:
                axes.plot(
                    list(points), list(points.values()), style, color=color, label=titles[name]
                )
    axes.axhline(1, color=FAINT, linewidth=1.5)
    axes.set_yscale("log", base=2)
    axes.set_yticks(TICKS, [f"{t:g}×" for t in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("zeros ÷ weights")
    axes.set_ylabel("times as fast as the fastest dense engine (float32)")
    axes.set_title(f"{first['processor']}, one thread", loc="left")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    target.write_bytes(as_png(figure))


if __name__ == "__main__":
    main()
