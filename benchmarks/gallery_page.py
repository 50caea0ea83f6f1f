"""The page of the gallery, and its pictures, from the rows that ``gallery.py`` kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus._common.pictures import FAINT, INK, SERIES, WARM, as_png, figure_of
from prunus.progressive.picture import metric_against_sparsity
from prunus.progressive.result import Round

Rows = Sequence[tuple[Any, dict[str, Any]]]

HEAD = """# Gallery

Each row is one command. It trains (or loads) a network, prunes until it would lose more than 1 % of
the metric on validation data (or its rounds are at their end), proves the smaller network equal to
the masked one, builds it in the fastest runtime installed, and judges it there. Start at the row
nearest to your problem: its task and its recipes are a folder of [`examples`](../examples), found
by name inside a checkout; [your own](#your-own-model-and-data) is a copy of both.

`PRUNUS_DATA` (or `--data`) names the folder that holds `cifar10`, `movie-reviews`, `speech-digits`
and `shakespeare`; what each must contain is said in the task's file and in the error message.
"""
OWN = """
## Your own model and data

    prunus init my_project      # a task and a recipe to edit
    prunus plan my_project/recipe.yaml
    prunus run my_project/recipe.yaml

A task is one function that returns `prunus.Task(model, optimizer, loss, metric, train, validation,
test, example)`. Let `metric` return a value for each item (`prunus.tasks.base.hits` does) and the
test metric gets an interval, beside the dense model's.
"""


def write(rows: Rows, page: Path, pictures: Path) -> None:
    """Write page and pictures."""
    pictures.mkdir(parents=True, exist_ok=True)
    fields = [(r, f) for r, f in rows if r.part == "field"]
    parts = [HEAD, _machine(rows), _table(fields)]
    for row, found in fields:
        picture = pictures / f"{row.name}.png"
        _draw_rounds(found, picture)
        parts.append(_section(row, found, f"{pictures.name}/{picture.name}"))
    language = [(r, f) for r, f in rows if r.part == "language"]
    if language:
        parts.append(_language(language))
    _draw_gaps(fields, pictures / "gap.png")
    parts.append(_gaps(fields, f"{pictures.name}/gap.png"))
    shares = [(r, f) for r, f in rows if r.part == "data"]
    if shares:
        _draw_shares(shares, pictures / "data.png")
        parts.append(_data(shares, f"{pictures.name}/data.png"))
    parts.append(OWN)
    page.write_text("\n".join(parts))


def _machine(rows: Rows) -> str:
    found = rows[0][1]
    where = found["environment"]
    threads = {f["threads"] for _, f in rows}
    return (
        f"Measured on {where.get('processor') or where.get('machine')}, torch "
        f"{where['torch']}, {'/'.join(map(str, sorted(threads)))} thread(s) for training and one "
        "for latency, by\n\n    python benchmarks/gallery.py --data $PRUNUS_DATA\n\n"
        "Latency is per pass of one and of sixteen items, of the artifact against the dense\n"
        "network in its own fastest runtime, both in float32. The interval is that of the change\n"
        "from dense to pruned over the test items (95 %, bootstrap). The last column is the wall\n"
        "time of all rounds, judging included and the last building of artifacts not, against\n"
        "that of training the dense network. Rows trained on one thread shared the machine with\n"
        "another process.\n"
    )


def _points(found: dict[str, Any], value: float) -> str:
    return f"{100 * value:.1f} %" if found["metric_name"] == "accuracy" else f"{value:.3f}"


def _change(found: dict[str, Any]) -> str:
    tested = found["tested"]
    if not tested or not tested["change"]:
        return "–"
    scale, digits = (100, 1) if found["metric_name"] == "accuracy" else (1, 3)
    return "{:+.{d}f} ({:+.{d}f} to {:+.{d}f})".format(
        *(scale * v for v in tested["change"]), d=digits
    )


def _left(found: dict[str, Any], key: str) -> str:
    before, after = found["before"][key], found["after"][key]
    return "–" if not before or after is None else f"{after / before:.3f}"


def _speed(found: dict[str, Any]) -> str:
    made = found["deployment"]
    if made is None:
        return "–"
    gains = [f"{g:.1f}×" for g in made["gains"].values()]
    return f"{made['runtime']}: {made['ms']['1']:.2f} ms; {', '.join(gains)}"


def _bytes(found: dict[str, Any]) -> str:
    made = found["deployment"]
    if made is None or not made["dense_bytes"]:
        return "–"
    times = made["dense_bytes"] / made["bytes"]
    return f"{made['bytes'] / 1000:,.0f} kB ({times:.1f}× smaller)"


def _table(fields: Rows) -> str:
    head = ("row", "dense, test", "pruned, test", "change", "weights removed", "params left",
            "macs left", "artifact", "fastest runtime; faster at batch 1, 16",
            "run ÷ dense training")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row, f in fields:
        cells = (
            f"[{row.title}](#{row.name})", _points(f, f["tested"]["dense"]),
            _points(f, f["tested"]["metric"]), _change(f), f"{f['sparsity']:.3f}",
            _left(f, "params"), _left(f, "macs"), _bytes(f), _speed(f),
            f"{f['seconds'] / f['dense_s']:.1f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _section(row: Any, f: dict[str, Any], picture: str) -> str:
    small = f["compaction"]
    proof = (
        "The weights that are zero are still stored and multiplied: this row says how many weights "
        "can go, not how fast it gets."
        if small is None
        else f"Compact, and equal to the masked network within {small['error']:.0e} in float64 "
        f"(the masks moved its outputs by {small['effect']:.0e}); route: {small['route']}."
    )
    made = f["deployment"]
    served = "" if made is None else (
        f" In {made['runtime']} its validation metric is {_points(f, made['metric'])}."
    )  # fmt: skip
    return (
        f"## {row.name}\n\n{row.title}.\n\n    prunus run {' '.join(_quoted(row.words))}\n\n"
        f"![{f['metric_name']} against what is removed]({picture})\n\n"
        f"Validation: dense {_points(f, f['dense'])}, pruned {_points(f, f['metric'])}; ended: "
        f"{f['why']}. {proof}{served} {_took(f)}, {f['dense_s'] / f['seconds']:.0%} of its rounds' "
        "time for dense training.\n"
    )


def _took(f: dict[str, Any]) -> str:
    if f["threads"] > 1:
        return f"The whole run took {f['wall_s'] / 60:.0f} minutes on {f['threads']} threads"
    return f"The whole run took {f['processor_s'] / 60:.0f} minutes of one processor core"


def _quoted(words: Sequence[str]) -> list[str]:
    return [f"'{w}'" if set(w) & set(" {}[]*") else w for w in words]


def _language(rows: Rows) -> str:
    lines = ["## How to remove half of a language model's weights\n",
             "The same criterion (magnitude) and budget, 400 steps after a dense training of\n"
             "1,600: the row of which next to nothing is removed shows what more training alone\n"
             "gives. (Their dense network was trained on one thread, that of the table on two.)\n"
             "For scale: the README of nanoGPT names a loss of 1.88 nats, 2.71 bits, for a small\n"
             "run on a processor (0.8 million parameters), and 1.47, 2.12 bits, for 10.6 million\n"
             "on a GPU.\n",
             "| | dense, bits per character, validation | pruned | change on test | command |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row, f in rows:
        words = " ".join(_quoted(row.words))
        lines.append(f"| {row.title} | {f['dense']:.3f} | {f['metric']:.3f} | {_change(f)} | "
                     f"`prunus run {words}` |")  # fmt: skip
    return "\n".join(lines) + "\n"


def _gaps(fields: Rows, picture: str) -> str:
    lines = ["## Does pruning generalize better?\n",
             "The gap between the metric on training and on validation data, of every accepted "
             "round (for bits per\ncharacter validation minus training):\n",
             f"![gap against what is removed]({picture})\n",
             "| row | dense | pruned |", "|---|---|---|"]  # fmt: skip
    for row, f in fields:
        gaps = [g for _, g in _gap(f)]
        lines.append(f"| {row.name} | {_points(f, gaps[0])} | {_points(f, gaps[-1])} |")
    fell = sum(points[-1][1] < points[0][1] for points in (_gap(f) for _, f in fields))
    lines.append(f"\nThe gap became smaller in {fell} of {len(fields)} rows.")
    return "\n".join(lines) + "\n"


def _gap(f: dict[str, Any]) -> list[tuple[float, float]]:
    sign = 1 if f["metric_name"] == "accuracy" else -1
    good = [r for r in f["rounds"] if r["verdict"] != "rejected"]
    return [(r["sparsity"], sign * (r["train_metric"] - r["metric"])) for r in good]


def _data(shares: Rows, picture: str) -> str:
    lines = ["## How much data does retraining need?\n",
             "ResNet-20 with its given weights, half of the macs taken out in one cut, 315 steps\n"
             "of retraining on a part of the 15,000 training images:\n",
             f"![metric against the part of the data]({picture})\n",
             "| images | validation | test | on training data |", "|---|---|---|---|"]  # fmt: skip
    for row, f in shares:
        values = (f["metric"], f["tested"]["metric"], f["rounds"][-1]["train_metric"])
        cells = " | ".join(_points(f, v) for v in values)
        lines.append(f"| {row.title.split(' ')[0]} | {cells} |")
    words = " ".join(_quoted(shares[0][0].words))
    return "\n".join(lines) + f"\n\n    prunus run {words}\n"


def _draw_rounds(f: dict[str, Any], path: Path) -> None:
    rounds = [
        Round(index=i, step=0, progress=0.0, requested=0.0, achieved=r["sparsity"],
              metric=r["metric"], verdict=r["verdict"], train_metric=r["train_metric"])
        for i, r in enumerate(f["rounds"])
    ]  # fmt: skip
    path.write_bytes(as_png(metric_against_sparsity(rounds, f["metric_name"])))


def _draw_gaps(fields: Rows, path: Path) -> None:
    figure, axes = figure_of(6.4, 3.6)
    for row, f in fields:
        points = _gap(f)
        scale = 1 if f["metric_name"] == "accuracy" else 1 / f["dense"]
        axes.plot([x for x, _ in points], [scale * y for _, y in points], "o-", markersize=4,
                  label=row.name)  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("sparsity")
    axes.set_ylabel("training − validation")
    axes.legend(frameon=False, fontsize=8)
    path.write_bytes(as_png(figure))


def _draw_shares(shares: Rows, path: Path) -> None:
    figure, axes = figure_of(6.4, 3.6)
    x = [float(row.name.removeprefix("part_")) for row, _ in shares]
    axes.plot(x, [f["rounds"][-1]["train_metric"] for _, f in shares], "o-", color=FAINT,
              label="training")  # fmt: skip
    axes.plot(x, [f["metric"] for _, f in shares], "o-", color=SERIES, label="validation")
    axes.plot(x, [f["tested"]["metric"] for _, f in shares], "s-", color=WARM, label="test")
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{v:.0%}" for v in x])
    axes.minorticks_off()
    axes.set_xlabel("part of the training images used to retrain")
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False, fontsize=9)
    path.write_bytes(as_png(figure))
