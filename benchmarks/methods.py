"""Which method is worth what: MNIST, ResNet-20 and ResNet-56 on CIFAR-10, on one budget each.

    PRUNUS_DATA=~/data python benchmarks/methods.py              all rows (a day of a core)
    PRUNUS_DATA=~/data python benchmarks/methods.py mnist        the rows whose name holds a word
    python benchmarks/methods.py --table                         benchmarks/methods.md again

Every row is a run in a folder of its own (``runs/methods``): what is finished is not run again, and
a run that was stopped goes on. Figures are appended to ``methods.jsonl``. Within a table all rows
of a seed start from the same dense network and take the same number of steps on the same batches.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus._common.environment import describe
from prunus.tasks.find import task_of

HERE = Path(__file__).parent
FILE, PAGE, RUNS = HERE / "methods.jsonl", HERE / "methods.md", Path("runs/methods")
SEEDS = (0, 1, 2)
TAUGHT = {"temperature": 2.0, "weight": 0.9}
MIXED = {"temperature": 2.0, "weight": 1.0, "mix": True}


@dataclass(frozen=True)
class Row:
    """A recipe in a table.

    Attributes:
        table: it belongs to.
        name: of the method.
        column: what is asked of it.
        recipe: its values, without the seed.
        seeds: that it is run with.
    """

    table: str
    name: str
    column: str
    recipe: dict[str, Any]
    seeds: tuple[int, ...] = SEEDS
    controls: list[str] = field(default_factory=list)

    def folder(self, seed: int) -> Path:
        """Where its run lies."""
        words = f"{self.table}-{self.name}-{self.column}-{seed}"
        return RUNS / "".join(c if c.isalnum() or c in "-." else "_" for c in words)


def mnist() -> Iterator[Row]:
    """SimpleCNN: 600 steps dense, 400 of pruning and retraining, zeros."""
    plan = {"task": "mnist", "dense": "600it", "retrain": "400it", "criterion": "fisher_running",
            "learning_rate": {"name": "hold_decay", "tail": 0.4}}  # fmt: skip
    methods: dict[str, dict[str, Any]] = {
        "default": {},
        "taught by the dense network": {"teacher": TAUGHT},
        "taught on mixtures": {"teacher": MIXED},
        "taught, magnitude": {"teacher": TAUGHT, "criterion": "magnitude"},
    }
    for sparsity in (0.95, 0.98, 0.995):
        for name, more in methods.items():
            controls = ["dense_longer"] if name == "default" and sparsity == 0.95 else []
            yield Row("mnist", name, f"{sparsity:.1%}", {**plan, "target": sparsity, **more},
                      controls=controls)  # fmt: skip


CIFAR = {"name": "cifar10"}
DEEP = {"name": "cifar10", "blocks": 9, "weights": "resnet56.safetensors"}


def choosing() -> Iterator[Row]:
    """ResNet-20: criterion and allocation, one cut and 100 steps of retraining."""
    plan = {"task": CIFAR, "retrain": "100it", "rounds": 1, "schedule": "one_shot",
            "learning_rate": {"name": "hold_decay", "tail": 0.4}}  # fmt: skip
    criteria = ("magnitude", "fisher", "taylor", "snip", "woodfisher", "random")
    allocations = ("global", "uniform", "erk", "lamp", "measured")
    for sparsity in (0.9, 0.95):
        for criterion in criteria:
            yield Row("criteria, resnet20", criterion, f"{sparsity:.0%}",
                      {**plan, "target": sparsity, "criterion": criterion})  # fmt: skip
        for allocation in allocations:
            yield Row("allocations, resnet20", allocation, f"{sparsity:.0%}",
                      {**plan, "target": sparsity, "allocation": allocation})  # fmt: skip


def resnet56() -> Iterator[Row]:
    """ResNet-56: channels and zeros, six epochs, the dense network's answers to mixtures."""
    rate = {"name": "hold_decay", "tail": 0.6}
    plan: dict[str, Any] = {"task": DEEP, "learning_rate": rate, "repair": "least_squares",
                            "teacher": MIXED}  # fmt: skip
    channels = {"structure": "channel", "allocation": "per_cost", "criterion": "fisher",
                "compact": "every_round", "rounds": 3, "retrain": "1ep",
                "last_retrain": "4ep"}  # fmt: skip
    for part, column in ((0.5, "50 % of the macs"), (0.25, "25 % of the macs")):
        bound = {"max_macs": part}
        controls = ["dense_longer", "same_shape_from_scratch"] if part == 0.5 else []
        yield Row("resnet56", "channels, taught on mixtures", column,
                  {**plan, **channels, "target": bound}, (0,), controls)  # fmt: skip
    zeros = {**plan, "criterion": "fisher_running", "retrain": "6ep"}
    zeros.pop("repair")
    for sparsity in (0.9, 0.95):
        yield Row("resnet56", "zeros, taught on mixtures", f"{sparsity:.0%} zeros",
                  {**zeros, "target": sparsity, "criterion": "magnitude"}, (0,))  # fmt: skip


def rows() -> list[Row]:
    """All of them."""
    return [*mnist(), *choosing(), *resnet56()]


def run(row: Row, seed: int) -> dict[str, Any]:
    """Run a row, go on with it, or open what an earlier call left."""
    recipe = {**row.recipe, "seed": seed, **({"controls": row.controls} if row.controls else {})}
    began = time.process_time()
    made = prunus.Recipe.load(recipe)
    result = prunus.prune(task_of(made), made, folder=row.folder(seed), progress=False)
    tested = result.test_metric
    return {
        "table": row.table, "name": row.name, "column": row.column, "seed": seed,
        "test": None if tested is None else tested.metric,
        "dense": None if tested is None else tested.dense,
        "sparsity": result.sparsity,
        "macs": (result.cost_after["macs"] or 0) / (result.cost_before["macs"] or 1),
        "steps": result.rounds[-1].step,
        "cpu_s": round(time.process_time() - began),
        "controls": [arm.to_dict() for arm in result.controls],
        "machine": describe()["processor"],
    }  # fmt: skip


def known() -> dict[tuple[str, str, str, int], dict[str, Any]]:
    """What was measured so far."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    found = (json.loads(line) for line in lines)
    return {(x["table"], x["name"], x["column"], x["seed"]): x for x in found}


def mean_of(values: Iterable[float]) -> str:
    """With the standard error of the mean, in percent."""
    every = [100 * x for x in values]
    spread = statistics.stdev(every) / math.sqrt(len(every)) if len(every) > 1 else math.nan
    return f"{statistics.mean(every):.2f}" + ("" if math.isnan(spread) else f" ± {spread:.2f}")


def page(found: dict[tuple[str, str, str, int], dict[str, Any]]) -> str:
    """The tables: test accuracy, and the paired difference from the first row of each."""
    lines = ["# Which method is worth what", "", str(__doc__).split("\n\n")[-1].strip(), "",
             "Test accuracy in percent, mean ± standard error over seeds (one seed where none is "
             "given); in brackets the mean paired difference from the first row."]  # fmt: skip
    for table in dict.fromkeys(row.table for row in rows()):
        own = {k: v for k, v in found.items() if k[0] == table}
        columns = list(dict.fromkeys(k[2] for k in own))
        names = list(dict.fromkeys(k[1] for k in own))
        if not own:
            continue
        lines += [
            "",
            f"## {table}",
            "",
            f"| | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for name in names:
            cells = []
            for column in columns:
                these = {k[3]: v["test"] for k, v in own.items() if k[1:3] == (name, column)}
                first = {k[3]: v["test"] for k, v in own.items() if k[1:3] == (names[0], column)}
                text = mean_of(these.values()) if these else ""
                both = [s for s in these if s in first and name != names[0]]
                text += f" ({mean_of(these[s] - first[s] for s in both)})" if both else ""
                cells.append(text)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        for value in own.values():
            for arm in value["controls"]:
                words = f"{arm['name'].replace('_', ' ')}, seed {value['seed']}, beside "
                words += f"{value['name']} at {value['column']}: {100 * arm['metric']:.2f}"
                lines.append(f"\n{words}, pruned {100 * arm['pruned']:.2f}")
    machines = ", ".join(sorted({v["machine"] for v in found.values()}))
    return "\n".join([*lines, "", f"One thread each, {machines}, torch {torch.__version__}.", ""])


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="rows whose table, name or column holds all")
    parser.add_argument("--table", action="store_true", help="write the page alone")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for row in [] if asked.table else rows():
        text = f"{row.table} {row.name} {row.column}"
        for seed in row.seeds if all(word in text for word in asked.words) else ():
            if (row.table, row.name, row.column, seed) in known():
                continue
            made = run(row, seed)
            with FILE.open("a") as file:
                file.write(json.dumps(made) + "\n")
            print(f"{text}, seed {seed}: test {made['test']:.4f} in {made['cpu_s']} s", flush=True)
    PAGE.write_text(page(known()))


if __name__ == "__main__":
    main()
