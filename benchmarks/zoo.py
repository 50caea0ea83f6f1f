"""Every model of the tests' zoo in every use, and the table of it in docs/structure.md.

    make test-zoo-all       # an hour or two of a core; stopped, it goes on where it was

One row of the file is one model: half of its units go by ``prunus.prune`` and ``prunus.compact``,
then the smaller model is compared with the original whose weights were multiplied by the masks, in
all the uses of ``tests/zoo/uses.py``. A model that is in the file is not run again; delete the
file to start anew. The exit code is 1 if any use is wrong or crashes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from zoo import FAMILIES, Entry
from zoo.uses import made_smaller, model_of, tried, uses_of

PAGE = Path(__file__).parents[1] / "docs" / "structure.md"
START, END = "<!-- zoo: written by make test-zoo-all -->", "<!-- zoo: end -->"
KINDS = ("equal", "refused", "skipped", "wrong", "crash")

NATURAL = (
    "input", "the model's output", "of size 1", "positions", "rows are looked up",
    "looks at every index", "go by another factor", "read by position", "real and imaginary",
    "layers, directions and batch", "which of the stacked",
)  # fmt: skip
"""Reasons for which an index stays in any smaller model."""


def cause(why: str) -> str | None:
    """Why a dimension stays that could be smaller; ``None`` if it could not.

    >>> cause("layer_norm in norm: its variance counts every index")
    'a norm counts every index of the width'
    >>> cause("conv2d in a: positions in space")
    """
    if any(reason in why for reason in NATURAL):
        return None
    if "variance counts" in why or "statistics count" in why:
        return "a norm counts every index of the width"
    operator, _, text = why.partition(": ")
    return f"{text} ({operator.split(' in ')[0]})" if text else operator


def row_of(entry: Entry) -> dict[str, Any]:
    """One model: what became of it, and of each use."""
    row: dict[str, Any] = {"name": entry.name}
    start = time.process_time()
    try:
        small = made_smaller(entry)
    except prunus.PrunusError as error:
        return row | {"outcome": "refused", "why": str(error).splitlines()[0][:300]}
    except Exception as error:  # of the model's code: prunus should have said so
        return row | {"outcome": "crash", "why": f"{type(error).__name__}: {error}"[:300]}
    row["seconds"] = round(time.process_time() - start, 2)
    dense = model_of(entry)
    stays = {cause(p.why) for p in prunus.units(dense, entry.example()).pinned} - {None}
    row["outcome"], row["causes"] = ("partial" if stays else "full"), sorted(map(str, stays))
    row["route"] = small.route
    row["kept"] = round(_parameters(small.model) / _parameters(dense), 4)
    row["uses"] = {}
    for use in uses_of(entry, small.masked):
        with tempfile.TemporaryDirectory() as folder:
            found = tried(small, use, Path(folder))
        row["uses"][use.name] = [found.kind, found.detail[:300]]
    return row


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def page_of(rows: dict[str, dict[str, Any]]) -> str:
    """The tables, from what was run of the zoo."""
    found = {family: [rows[e.name] for e in entries if e.name in rows]
             for family, entries in FAMILIES.items()}  # fmt: skip
    lines = [
        f"{len(rows)} of the zoo's {sum(map(len, FAMILIES.values()))} models were run.",
        "",
        "| models | number | full | partial | refused | uses: equal | refused "
        "| the original cannot either | wrong | crash | seconds |",
        "|---|" + "--:|" * 10,
        *(_line(family, of) for family, of in found.items() if of),
        _line("**all**", list(rows.values())),
        "",
        "*Full*: what stays would stay in any smaller model. *Partial*: more stays, by cause:",
        "",
        "| what stays, and why | models |",
        "|---|--:|",
    ]
    causes = Counter(c for row in rows.values() for c in row.get("causes", ()))
    lines += [f"| {text} | {number} |" for text, number in causes.most_common()]
    bad = [
        f"- {row['name']}, {use}: {kind}, {text}"
        for row in rows.values()
        for use, (kind, text) in row.get("uses", {}).items()
        if kind in ("wrong", "crash")
    ]
    bad += [f"- {r['name']}: {r['why']}" for r in rows.values() if r["outcome"] == "crash"]
    no = [f"- {r['name']}: {r['why']}" for r in rows.values() if r["outcome"] == "refused"]
    for title, text in (("Refused", no), ("Wrong, or an error that was not meant", bad)):
        lines += ["", f"{title}:", "", *text] if text else []
    return "\n".join(lines)


def _line(family: str, rows: Sequence[dict[str, Any]]) -> str:
    outcomes = Counter(row["outcome"] for row in rows)
    uses = Counter(kind for row in rows for kind, _ in row.get("uses", {}).values())
    numbers = [len(rows), *(outcomes[k] for k in ("full", "partial", "refused"))]
    numbers += [uses[kind] for kind in KINDS]
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    return f"| {family} | " + " | ".join(map(str, numbers)) + f" | {seconds:.0f} |"


def write(text: str) -> None:
    """Put the tables between their marks."""
    page = PAGE.read_text()
    before, rest = page.split(START)
    PAGE.write_text(f"{before}{START}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("zoo.jsonl"))
    parser.add_argument("--only", nargs="*", help="names of models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the models' own code
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = {row["name"]: row for row in map(json.loads, lines)}
    for entry in (entry for entries in FAMILIES.values() for entry in entries):
        if entry.name in rows or (options.only and entry.name not in options.only):
            continue
        rows[entry.name] = row_of(entry)
        with options.out.open("a") as file:
            file.write(json.dumps(rows[entry.name]) + "\n")
        uses = Counter(kind for kind, _ in rows[entry.name].get("uses", {}).values())
        print(entry.name, rows[entry.name]["outcome"], dict(uses), flush=True)
    write(page_of(rows))
    bad = {kind for row in rows.values() for kind, _ in row.get("uses", {}).values()}
    return int(bool(bad & {"wrong", "crash"}))


if __name__ == "__main__":
    sys.exit(main())
