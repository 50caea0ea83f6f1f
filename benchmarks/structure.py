"""Channels taken out of trained networks: prunus against Torch-Pruning and the dense network.

    make bench-structure            # needs PRUNUS_DATA; the opponent's rows: structure_opponent.py

One row is one run: MNIST SimpleCNN or CIFAR ResNet-20, a bound on the macs, a seed, a method. All
rows of one seed train with the data order, budget, optimizer and learning-rate plan of
``structure_common.py``; cutting shares the budget. Rows are appended to a file, and what is there
is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
import structure_common as common

METHODS = ("one_shot", "progressive", "masked")
ROUNDS = {"cifar": 10, "mnist": 8}
EACH = {"cifar": 12, "mnist": 15}  # steps between two cuts; the rest of the budget follows


def recipe_of(
    task: str, method: str, target: float, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """The recipe of a row."""
    steps = common.STEPS if task == "cifar" else common.MNIST_STEPS
    rounds = 1 if method == "one_shot" else ROUNDS[task]
    each = settings.get("each", EACH[task])
    return {
        "seed": seed,
        "structure": settings.get("structure", "channel"),
        "criterion": settings.get("criterion", "sensitivity"),
        "allocation": settings.get("allocation", "per_cost"),
        "schedule": settings.get("schedule", "geometric"),
        "target": {"max_macs": round(1 - target, 6)},
        "rounds": rounds,
        "retrain": f"{each}it" if rounds > 1 else f"{steps}it",
        "last_retrain": f"{steps - each * (rounds - 1)}it",
        "compact": "end" if method == "masked" else "every_round",
        "snapshot": f"{steps}it",
    }


class Loop:
    """A user's own training loop: one optimizer and one learning-rate plan over all rounds."""

    def __init__(self, task: str, batches: Any, peak: float) -> None:
        self.task, self.batches, self.peak = task, batches, peak
        self.steps = common.STEPS if task == "cifar" else common.MNIST_STEPS
        self.factor: Callable[[float], float] = (
            common.warm_hold_decay if task == "cifar" else common.mnist_decay
        )
        self.loss: Callable[[nn.Module, common.Batch], torch.Tensor] = common.loss_of
        self.taken = 0
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self, model: nn.Module, run: prunus.Run) -> None:
        if self.optimizer is None:
            make = common.sgd if self.task == "cifar" else common.mnist_sgd
            self.optimizer = make(model, self.peak)
        run.attach(self.optimizer)
        model.train()
        for batch in run.batches(self.batches):
            for group in self.optimizer.param_groups:
                group["lr"] = self.peak * self.factor(self.taken / self.steps)
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(model, batch).backward()
            self.optimizer.step()
            self.taken += 1


def run(
    task: str, method: str, target: float, seed: int, data: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """One row."""
    fit = settings.get("fit", "all")
    torch.manual_seed(seed)
    if task == "cifar":
        model: nn.Module = common.resnet20(data)
        parts = common.cifar(data, fit=fit)
        batches: Any = common.Crops(*parts["train"], seed=1000 + seed)
        example = torch.zeros(2, 3, 32, 32)
        peak = settings.get("peak", 0.02)
    else:
        model = common.train_mnist(seed, data)
        parts = common.load_mnist(data)
        batches = common.Shuffled(*parts["train"], seed=2000 + seed)
        example = torch.zeros(2, 1, 28, 28)
        peak = settings.get("peak", common.MNIST_RATE)
    dense = common.macs(model, common.CIFAR_SHAPE if task == "cifar" else common.MNIST_SHAPE)
    judge = common.plain(*parts["validation"]) if "validation" in parts else None
    sample = [b for b, _ in zip(batches, range(settings.get("calibration", 8)), strict=False)]
    recipe = recipe_of(task, method, target, seed, settings)
    began = time.perf_counter()
    result = prunus.prune(
        model,
        recipe,
        train=Loop(task, batches, peak),
        evaluate=None,
        calibration=sample,
        loss=common.loss_of,
        example=example,
    )
    seconds = time.perf_counter() - began
    small = result.model
    shape = common.CIFAR_SHAPE if task == "cifar" else common.MNIST_SHAPE
    row = {
        "task": task, "method": f"prunus-{method}", "target": target, "seed": seed, "fit": fit,
        "settings": settings, "macs": common.macs(small, shape), "dense_macs": dense,
        "params": common.params(small), "seconds": round(seconds, 1),
        "route": result.compaction.route if result.compaction else None,
        "error": result.compaction.error if result.compaction else None,
        "test": common.accuracy(small, common.plain(*parts["test"])),
        "validation": None if judge is None else common.accuracy(small, judge),
        "widths": [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)],
    }  # fmt: skip
    return {**row, "removed": 1 - row["macs"] / dense}


def table(paths: list[Path]) -> str:
    """Test accuracy of every method, mean of the seeds, and the paired difference, in Markdown."""
    rows = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row.get("test") is not None:
                rows[row["task"], row["method"], row["target"], row["seed"]] = row["test"]
    names = ["prunus-one_shot", "prunus-progressive", "tp-oneshot", "tp-iterative"]
    lines = ["| network | fewer macs | dense, fine-tuned | prunus, one cut | prunus, progressive | "
             "Torch-Pruning, one cut | Torch-Pruning, iterative | progressive − best of "
             "Torch-Pruning, paired |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for task in ("cifar", "mnist"):
        dense = _mean([v for k, v in rows.items() if k[:2] == (task, "dense")])
        for target in (0.5, 0.7, 0.9):
            found = {
                m: {k[3]: v for k, v in rows.items() if k[:3] == (task, m, target)} for m in names
            }
            cells = [_mean(list(found[m].values())) for m in names]
            rivals = [m for m in names[2:] if found[m]]
            best = max(rivals, key=lambda m: statistics.mean(found[m].values()), default=None)
            ours = found["prunus-progressive"]
            pairs = [ours[s] - found[best][s] for s in ours if best and s in found[best]]
            lines.append(f"| {task} | {target:.0%} | {dense} | {' | '.join(cells)} | "
                         f"{_mean(pairs, sign='+')} |")  # fmt: skip
    return "\n".join(lines)


def picture(paths: list[Path], out: Path) -> None:
    """CIFAR: test accuracy against the macs that are left, a line a method, the seeds as points."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for p in paths for line in p.read_text().splitlines()]
    rows = [r for r in rows if r["task"] == "cifar" and r.get("test") is not None]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    shown = {
        "prunus-progressive": ("prunus, progressive", "#2b8fbd", "o-"),
        "prunus-one_shot": ("prunus, one cut", "#8cc3dd", "s-"),
        "tp-oneshot": ("Torch-Pruning, one cut", "#e0662b", "^-"),
        "tp-iterative": ("Torch-Pruning, iterative", "#b08968", "v-"),
    }
    for method, (label, color, style) in shown.items():
        own = [r for r in rows if r["method"] == method]
        targets = sorted({r["target"] for r in own})
        means = [statistics.mean(r["test"] for r in own if r["target"] == t) for t in targets]
        if targets:
            axes.plot([1 - t for t in targets], means, style, color=color, label=label)
            axes.plot([1 - r["target"] for r in own], [r["test"] for r in own], ".", color=color,
                      alpha=0.5, markersize=4)  # fmt: skip
    dense = [r["test"] for r in rows if r["method"] == "dense"]
    if dense:
        axes.axhline(statistics.mean(dense), color="#333333", linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate("dense, fine-tuned as long", (0.1, statistics.mean(dense)), xytext=(0, 4),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set_xlabel("macs left (1 = dense)")
    axes.set_ylabel("test accuracy, CIFAR-10")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(visible=True, linewidth=0.5, alpha=0.3)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def _mean(values: list[float], sign: str = "") -> str:
    """Per cent, with the standard error and the number of seeds."""
    if not values:
        return "–"
    mean = f"{100 * statistics.mean(values):{sign}.1f}"
    if len(values) == 1:
        return f"{mean} (1)"
    return f"{mean} ± {100 * statistics.stdev(values) / len(values) ** 0.5:.1f} ({len(values)})"


def main() -> None:
    """Run the rows that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of these files")
    parser.add_argument("--picture", type=Path, help="with --table: draw it into this PNG, too")
    parser.add_argument("--task", choices=["cifar", "mnist"], default=None)
    parser.add_argument("--method", choices=METHODS, default=None)
    parser.add_argument("--target", type=float, default=None)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--settings", type=json.loads, default={})
    chosen = parser.parse_args()
    if chosen.table:
        print(table(chosen.table))
        if chosen.picture:
            picture(chosen.table, chosen.picture)
        return
    if chosen.data is None or chosen.out is None:
        parser.error("give --data and --out, or --table")
    torch.set_num_threads(1)
    done = set()
    if chosen.out.exists():
        rows = [json.loads(line) for line in chosen.out.read_text().splitlines()]
        done = {_key(r) for r in rows}
    for seed in (0, 1, 2) if chosen.seed is None else (chosen.seed,):
        for task in ("cifar", "mnist") if chosen.task is None else (chosen.task,):
            for target in (0.5, 0.7, 0.9) if chosen.target is None else (chosen.target,):
                for method in METHODS[:2] if chosen.method is None else (chosen.method,):
                    job = {"task": task, "method": f"prunus-{method}", "target": target,
                           "seed": seed, "settings": chosen.settings}  # fmt: skip
                    if _key(job) in done:
                        continue
                    row = run(task, method, target, seed, chosen.data, chosen.settings)
                    with chosen.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row[k] for k in ("task", "method", "target", "seed", "settings")])


if __name__ == "__main__":
    main()
