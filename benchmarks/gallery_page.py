"""The page of the gallery, and its pictures, from the rows that ``gallery.py`` kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gallery_pictures import Rows, draw_gaps, draw_rounds, draw_shares, gap

HEAD = """# Gallery

Each row is one command. It trains (or loads) a network, prunes until it would lose more than 1 % of
the metric on validation data (or its rounds are at their end), proves the smaller network equal to
the masked one, builds it in the fastest runtime installed, and judges it there. Start at the row
nearest to your problem: its task and its recipes are a folder of [`examples`](../examples), found
by name inside a checkout; [your own](#your-own-model-and-data) is a copy of both.

`PRUNUS_DATA` (or `--data`) names the folder that holds `cifar10`, `movie-reviews`, `speech-digits`
and so on; what each must contain is said in the page of its example and in the error message. A row
that is in [`gallery_rows.py`](../benchmarks/gallery_rows.py) and not here was not run to its end.
Every task of the examples takes `task.part`, of its training data, and `task.weights`, a file to
start from: the `dense.safetensors` of a run.
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
        draw_rounds(found, pictures / f"{row.name}.png")
        parts.append(_section(row, found, pictures.name))
    seeds = [(r, f) for r, f in rows if r.part == "seed"]
    if seeds:
        parts.append(_seeds(fields, seeds))
    language = [(r, f) for r, f in rows if r.part == "language"]
    if language:
        parts.append(_language(language))
    draw_gaps(fields, pictures / "gap.png")
    parts.append(_gaps(fields, f"{pictures.name}/gap.png"))
    shares = [(r, f) for r, f in rows if r.part == "data"]
    if shares:
        parts.append(_data(shares, pictures))
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
        "network in its own fastest runtime, both in float32 (rows of the edge: int8 against\n"
        "float32). The interval is that of the change\n"
        "from dense to pruned over the test items (95 %, bootstrap). The last column but one is\n"
        "the wall time of all rounds, judging included and the last building of artifacts not,\n"
        "against that of training the dense network; the last is what the run took: processor\n"
        "time of rows of one thread, which shared the machine with other processes, so that\n"
        "their latencies say little, and wall time of the others.\n"
    )


def _digits(found: dict[str, Any]) -> tuple[int, int]:
    """By what a metric is multiplied, and the digits behind its point."""
    return {"accuracy": (100, 1), "BLEU": (1, 1)}.get(found["metric_name"], (1, 3))


def _points(found: dict[str, Any], value: float) -> str:
    scale, digits = _digits(found)
    unit = " %" if found["metric_name"] == "accuracy" else ""
    return f"{scale * value:.{digits}f}{unit}"


def _spread(found: dict[str, Any], values: Sequence[float]) -> str:
    """A change and its interval."""
    scale, digits = _digits(found)
    return "{:+.{d}f} ({:+.{d}f} to {:+.{d}f})".format(*(scale * v for v in values), d=digits)


def _tested(found: dict[str, Any]) -> str:
    """The pruned network on test items, with its interval."""
    scale, digits = _digits(found)
    low, high = (f"{scale * v:.{digits}f}" for v in found["tested"]["interval"])
    return f"{_points(found, found['tested']['metric'])} ({low} to {high})"


def _change(found: dict[str, Any]) -> str:
    tested = found["tested"]
    if not tested or not tested["change"]:
        return "–"
    return _spread(found, tested["change"])


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
            "run ÷ dense training", "took")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row, f in fields:
        cells = (
            f"[{row.title}](#{row.name})", _points(f, f["tested"]["dense"]),
            _tested(f), _change(f), f"{f['sparsity']:.3f}",
            _left(f, "params"), _left(f, "macs"), _bytes(f), _speed(f),
            "–" if "dense=0" in f["words"] else f"{f['seconds'] / f['dense_s']:.1f}",
            f"{_minutes(f):.0f} min",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _section(row: Any, f: dict[str, Any], pictures: str) -> str:
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
        f"## {row.name}\n\n{row.title}.\n\n    prunus run {' '.join(_quoted(f['words']))}\n\n"
        f"![{f['metric_name']} against what is removed]({pictures}/{row.name}.png)\n\n"
        f"Validation: dense {_points(f, f['dense'])}, pruned {_points(f, f['metric'])}; ended: "
        f"{f['why']}. {proof}{served} {_took(f)}{_dense_part(f)}.\n"
        f"{_controls(f)}{_examples(f, pictures)}"
    )


def _minutes(f: dict[str, Any]) -> float:
    seconds = f["wall_s"] if f["threads"] > 1 else f["processor_s"] or f["wall_s"]
    return float(seconds) / 60


def _took(f: dict[str, Any]) -> str:
    if f["threads"] > 1:
        return f"The whole run took {_minutes(f):.0f} minutes on {f['threads']} threads"
    of = "of one processor core" if f["processor_s"] else "by the clock, on a shared core"
    return f"The whole run took {_minutes(f):.0f} minutes {of}"


def _dense_part(f: dict[str, Any]) -> str:
    if "dense=0" in f["words"]:
        return ", beside the dense network's, which was trained before"
    return f", {f['dense_s'] / f['seconds']:.0%} of its rounds' time for dense training"


def _controls(f: dict[str, Any]) -> str:
    """What the same training gives without this pruning."""
    if not f.get("controls"):
        return "\nIts controls were not trained.\n"
    lines = ["\n| control, on the test items | steps | it | pruned minus it |", "|---|---|---|---|"]
    for arm in f["controls"]["arms"]:
        change = "–" if arm["change"] is None else _spread(f, arm["change"])
        name = arm["name"].replace("_", " ")
        lines.append(f"| {name} | {arm['steps']:,} | {_points(f, arm['metric'])} | {change} |")
    return "\n".join(lines) + "\n"


def _examples(f: dict[str, Any], pictures: str) -> str:
    """What both networks say to some examples, where that was kept."""
    if f.get("picture"):
        return f"\n![what the dense and the pruned network say]({pictures}/{f['picture']})\n"
    said = [f"    {line}".rstrip() for line in f.get("said", "").strip().splitlines()]
    return "\n" + "\n".join(said) + "\n" if said else ""


def _seeds(fields: Rows, seeds: Rows) -> str:
    """Every field again from other seeds."""
    lines = ["## The same from other seeds\n",
             "| row | seed | dense, test | pruned, test | change | macs left |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    again = {row.field for row, _ in seeds}
    every = [(row, f, row.name, "0") for row, f in fields if row.name in again]
    every += [(row, f, row.field, row.title.removeprefix("seed ")) for row, f in seeds]
    for _, f, name, seed in sorted(every, key=lambda one: one[2:]):
        lines.append(f"| {name} | {seed} | {_points(f, f['tested']['dense'])} | {_tested(f)} | "
                     f"{_change(f)} | {_left(f, 'macs')} |")  # fmt: skip
    return "\n".join(lines) + "\n"


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
        words = " ".join(_quoted(f["words"]))
        lines.append(f"| {row.title} | {f['dense']:.3f} | {f['metric']:.3f} | {_change(f)} | "
                     f"`prunus run {words}` |")  # fmt: skip
    return "\n".join(lines) + "\n"


def _gaps(fields: Rows, picture: str) -> str:
    lines = ["## Does pruning generalize better?\n",
             "The gap between the metric on training and on validation data, of every accepted "
             "round, in the metric's own\nunits; above zero training data are answered better:\n",
             f"![gap against what is removed]({picture})\n",
             "| row | dense | pruned |", "|---|---|---|"]  # fmt: skip
    for row, f in fields:
        gaps = [g for _, g in gap(f)]
        lines.append(f"| {row.name} | {_points(f, gaps[0])} | {_points(f, gaps[-1])} |")
    fell = sum(points[-1][1] < points[0][1] for points in (gap(f) for _, f in fields))
    lines.append(f"\nThe gap became smaller in {fell} of {len(fields)} rows.")
    return "\n".join(lines) + "\n"


def _data(shares: Rows, pictures: Path) -> str:
    """What a part of the training data gives, field by field."""
    lines = ["## How much data does retraining need?\n",
             "The trained network of each field, cut once and retrained for as many steps on a\n"
             "part of its training data:\n"]  # fmt: skip
    for field in dict.fromkeys(row.field for row, _ in shares):
        own = [(row, f) for row, f in shares if row.field == field]
        picture = pictures / f"data_{field}.png"
        draw_shares(own, picture)
        words = " ".join(_quoted(own[0][1]["words"]))
        lines += [f"### {field}, by the part of its data\n", f"    prunus run {words}\n",
                  f"![metric against the part of the data]({pictures.name}/{picture.name})\n",
                  "| part | validation | test | on training data | gap | macs left |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for row, f in own:
            values = (f["metric"], f["tested"]["metric"], f["rounds"][-1]["train_metric"])
            cells = " | ".join(_points(f, v) for v in (*values, gap(f)[-1][1]))
            lines.append(f"| {row.title} | {cells} | {_left(f, 'macs')} |")
        lines.append("")
    return "\n".join(lines)
