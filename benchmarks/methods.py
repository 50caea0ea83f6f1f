"""Which method is worth what: MNIST, ResNet-20 and ResNet-56 on CIFAR-10, on one budget each.

    PRUNUS_DATA=~/data python benchmarks/methods.py              all rows (a day of a core)
    PRUNUS_DATA=~/data python benchmarks/methods.py mnist        the rows whose name holds a word
    python benchmarks/methods.py --table                         benchmarks/methods.md again

Every row is a run in a folder of its own (``--out``, by default ``runs/methods``): what is finished
is not run again, and a run that was stopped goes on. Figures are appended to ``methods.jsonl``.
Seed 0 of every row comes first. Within a table all rows of a seed start from the same dense
network, trained once, and take the same number of steps on the same batches.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus._common.environment import describe
from prunus.tasks.base import Task
from prunus.tasks.find import task_of

HERE = Path(__file__).parent
FILE, PAGE = HERE / "methods.jsonl", HERE / "methods.md"
SEEDS = (0, 1, 2)
TAUGHT = {"temperature": 2.0, "weight": 0.9}
MIXED = {"temperature": 2.0, "weight": 1.0, "mix": True}
DENSE = "dense, trained as long"


@dataclass(frozen=True)
class Row:
    """A recipe in a table.

    Attributes:
        table: it belongs to.
        name: of the method.
        column: what is asked of it.
        recipe: its values, without the seed.
        seeds: that it is run with.
        controls: trained beside it on the same budget.
    """

    table: str
    name: str
    column: str
    recipe: dict[str, Any]
    seeds: tuple[int, ...] = SEEDS
    controls: list[str] = field(default_factory=list)

    def folder(self, seed: int) -> str:
        """What its run's folder is called."""
        words = f"{self.table}-{self.name}-{self.column}-{seed}"
        return "".join(c if c.isalnum() or c in "-." else "_" for c in words)


def mnist() -> Iterator[Row]:
    """SimpleCNN: 600 steps dense, 400 of pruning and retraining, zeros."""
    plan = {"task": "mnist", "dense": "600it", "retrain": "400it", "criterion": "fisher_running",
            "learning_rate": {"name": "hold_decay", "tail": 0.4}}  # fmt: skip
    grows = {"name": "rigl", "every": "20it", "end": 0.6, "fraction": 0.2}
    slower = {"schedule": {"name": "cubic", "end": 0.5}, "regrow": grows}
    methods: dict[str, dict[str, Any]] = {
        "default": {},
        "cut over half the steps, regrowing": slower,
        "taught by the dense network": {"teacher": TAUGHT},
    }
    for sparsity in (0.95, 0.98, 0.995):
        for name, more in methods.items():
            controls = ["dense_longer"] if name == "default" and sparsity == 0.95 else []
            yield Row("mnist", name, f"{sparsity:.1%}", {**plan, "target": sparsity, **more},
                      controls=controls)  # fmt: skip


CIFAR = {"name": "cifar10"}
DEEP = {"name": "cifar10", "blocks": 9, "weights": "resnet56.safetensors"}


def guided() -> Iterator[Row]:
    """As sparse as half a point allows, from the dense network that was trained as long as any.

    The guard judges four rounds of 200 steps at most: twice what the fixed schedules above take.
    """
    guard = {"better": "higher", "max_drop": 0.005}
    plan: dict[str, Any] = {"task": "mnist", "dense": "1000it", "criterion": "fisher_running",
                            "target": {"step": 0.75, "adapt": True}, "guard": guard,
                            "learning_rate": {"name": "hold_decay", "tail": 0.4}}  # fmt: skip
    yield Row("guided, mnist", "steps by the verdicts", "within 0.5 points",
              {**plan, "retrain": "200it", "limit": "1800it"})  # fmt: skip


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
    """ResNet-56: fine-tuned for five epochs, then five of pruning and retraining."""
    falls = {"name": "hold_decay", "tail": 0.6}
    plan: dict[str, Any] = {"task": DEEP, "dense": {"length": "5ep", "learning_rate": falls},
                            "learning_rate": falls}  # fmt: skip
    channels = {"structure": "channel", "allocation": "per_cost", "criterion": "fisher",
                "compact": "every_round", "rounds": 2, "schedule": "linear", "retrain": "1ep",
                "last_retrain": "4ep"}  # fmt: skip
    taught = {"taught on mixtures": MIXED, "taught beside labels": TAUGHT}
    wide = {"repair": "batch_norm", "limits": {"*": {"most": 0.85}}}  # of each layer
    ways: dict[str, dict[str, Any]] = {"": wide, ", fitted before": {"repair": "least_squares"}}
    for name, teacher in taught.items():
        for part, column in ((0.5, "50 % of the macs"), (0.25, "25 % of the macs")):
            for how, more in ways.items() if teacher is MIXED else [("", wide)]:
                both = ["dense_longer", "same_shape_from_scratch"]
                controls = both if part == 0.5 and teacher is TAUGHT else []
                values = {**plan, **channels, "teacher": teacher, "target": {"max_macs": part},
                          **more}  # fmt: skip
                yield Row("resnet56", f"channels, {name}{how}", column, values, (0,), controls)
        for sparsity in (0.9, 0.95):
            values = {**plan, "retrain": "5ep", "teacher": teacher, "target": sparsity}
            yield Row("resnet56", f"zeros, {name}", f"{sparsity:.0%} zeros", values, (0,))


ENCODER = f"{HERE / 'encoder.py'}:reviews"


def encoder() -> Iterator[Row]:
    """MiniLM-L6, fine-tuned for two epochs, then three of pruning, taught by the dense network."""
    falls = {"name": "hold_decay", "tail": 0.8}
    plan: dict[str, Any] = {
        "task": {"name": ENCODER, "nets": os.environ.get("PRUNUS_NETS", "nets")},
        "dense": {"length": "2ep", "learning_rate": falls}, "learning_rate": falls,
        "teacher": TAUGHT, "scope": {"exclude": ["bert.embeddings.*", "head"]},
    }  # fmt: skip
    channels = {"structure": "channel", "allocation": "per_cost", "criterion": "taylor",
                "compact": "every_round", "rounds": 1, "retrain": "3ep", "schedule": "one_shot",
                "repair": "least_squares", "target": {"max_macs": 0.5}}  # fmt: skip
    yield Row("encoder", "heads and neurons, repaired, taught", "50 % of the macs",
              {**plan, **channels}, (0,), ["dense_longer"])  # fmt: skip
    for sparsity in (0.8, 0.9):
        yield Row("encoder", "zeros, taught", f"{sparsity:.0%} zeros",
                  {**plan, "retrain": "3ep", "target": sparsity}, (0,))  # fmt: skip


def rows() -> list[Row]:
    """All of them."""
    return [*mnist(), *guided(), *resnet56(), *choosing(), *encoder()]


@functools.cache
def _task(values: str) -> Task:
    return task_of(prunus.Recipe.load(json.loads(values)))


def run(row: Row, seed: int, out: Path) -> dict[str, Any]:
    """Run a row, go on with it, or open what an earlier call left."""

    @contextlib.contextmanager
    def dense(key: str) -> Iterator[Path]:
        (out / "dense").mkdir(parents=True, exist_ok=True)
        yield out / "dense" / key

    recipe = {**row.recipe, "seed": seed, **({"controls": row.controls} if row.controls else {})}
    began = time.process_time()
    made = prunus.Recipe.load(recipe)
    task = _task(json.dumps({"task": recipe["task"], "seed": seed, "target": 0.5}))
    where = out / row.folder(seed)
    result = prunus.prune(task, made, folder=where, progress=False, _dense=dense)
    tested, controls = result.test_metric, result.controls
    return {
        "table": row.table, "name": row.name, "column": row.column, "seed": seed,
        "validation": float(result.metric) if result.metric is not None else None,
        "test": None if tested is None else tested.metric,
        "dense": None if tested is None else tested.dense,
        "sparsity": result.sparsity,
        "macs": (result.cost_after["macs"] or 0) / (result.cost_before["macs"] or 1),
        "steps": result.rounds[-1].step - result.rounds[0].step,
        "dense_steps": result.rounds[0].step,
        "cpu_s": round(time.process_time() - began),
        "controls": [arm.to_dict() for arm in controls],
        "machine": describe()["processor"],
    }  # fmt: skip


def known() -> dict[tuple[str, str, str, int], dict[str, Any]]:
    """What was measured so far."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    found = (json.loads(line) for line in lines)
    return {(x["table"], x["name"], x["column"], x["seed"]): x for x in found}


def mean_of(values: Iterable[float], sign: str = "") -> str:
    """With the standard error of the mean, in percent."""
    every = [100 * x for x in values]
    spread = statistics.stdev(every) / math.sqrt(len(every)) if len(every) > 1 else math.nan
    mean = f"{statistics.mean(every):{sign}.2f}"
    return mean + ("" if math.isnan(spread) else f" ± {spread:.2f}")


def table(name: str, own: dict[tuple[str, str, str, int], dict[str, Any]]) -> Iterator[str]:
    """One table: the arms that stand in it for comparison last."""
    columns = list(dict.fromkeys(k[2] for k in own))
    found: dict[tuple[str, str], dict[int, float]] = {}
    for (_, method, column, seed), value in own.items():
        found.setdefault((method, column), {})[seed] = value["test"]
    for (_, _, column, seed), value in own.items():
        for arm in value["controls"]:
            longer = arm["name"] == "dense_longer"
            for place in columns if longer else (column,):  # dense is dense in every column
                label = DENSE if longer else arm["name"].replace("_", " ")
                found.setdefault((label, place), {})[seed] = arm["metric"]
    methods = list(dict.fromkeys(k[0] for k in found))
    first = DENSE if DENSE in methods else methods[0]
    yield from ("", f"## {name}", "", f"Differences from: {first}.", "",
                f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|")  # fmt: skip
    for method in methods:
        cells = []
        for column in columns:
            these, others = found.get((method, column), {}), found.get((first, column), {})
            text = mean_of(these.values()) if these else ""
            both = [s for s in these if s in others and method != first]
            text += f" ({mean_of((these[s] - others[s] for s in both), '+')})" if both else ""
            cells.append(text)
        yield f"| {method} | {' | '.join(cells)} |"


def arms(own: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The controls, paired item by item."""
    for value in own:
        for arm in value["controls"]:
            mean, low, high = arm["change"] or (arm["pruned"] - arm["metric"], None, None)
            spread = "" if low is None else f" ({100 * low:+.2f} to {100 * high:+.2f})"
            yield (f"- {value['name']}, {value['column']}, seed {value['seed']}, against "
                   f"{arm['name'].replace('_', ' ')} ({arm['steps']} steps): "
                   f"{100 * mean:+.2f}{spread}")  # fmt: skip


def reached(own: Iterable[dict[str, Any]]) -> Iterator[str]:
    """How sparse the guard let it become."""
    yield ""
    for value in own:
        drop = f"{100 * (value['test'] - value['dense']):+.2f} points on the test images"
        yield (f"- seed {value['seed']}: {value['sparsity']:.2%} zeros, {drop} from the dense "
               f"network ({value['dense_steps']} steps), {value['steps']} steps")  # fmt: skip


def page(found: dict[tuple[str, str, str, int], dict[str, Any]]) -> str:
    """The tables: test accuracy, and the paired differences."""
    lines = ["# Which method is worth what", "", str(__doc__).split("\n\n")[-1].strip(), "",
             "Test accuracy in percent, mean ± standard error over seeds (one seed where none is "
             "given); in brackets the mean difference over the seeds that both have. Settings were "
             "chosen on validation data. An accuracy has a standard error of 0.6 on the 2,500 test "
             "images of CIFAR-10, and of 0.1 on the 10,000 of MNIST."]  # fmt: skip
    for name in dict.fromkeys(row.table for row in rows()):
        own = {k: v for k, v in found.items() if k[0] == name}
        if own:
            lines += table(name, own)
            beside = list(arms(own.values()))
            intro = "Image by image, the pruned network's accuracy less the control's (95 %):"
            lines += ["", intro, "", *beside] if beside else []
            lines += reached(own.values()) if name.startswith("guided") else []
    machines = ", ".join(sorted({v["machine"] for v in found.values()}))
    return "\n".join([*lines, "", f"One thread each, {machines}, torch {torch.__version__}.", ""])


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="rows whose table, name or column holds all")
    parser.add_argument("--table", action="store_true", help="write the page alone")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="of the runs")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [r for r in rows()
              if all(word in f"{r.table} {r.name} {r.column}" for word in asked.words)]  # fmt: skip
    for seed in () if asked.table else asked.seeds:
        for row in wanted:
            key = (row.table, row.name, row.column, seed)
            if seed not in row.seeds or key in known():
                continue
            made = run(row, seed, asked.out)
            with FILE.open("a") as file:
                file.write(json.dumps(made) + "\n")
            print(f"{key}: test {made['test']:.4f} in {made['cpu_s']} s", flush=True)
    PAGE.write_text(page(known()))


if __name__ == "__main__":
    main()
