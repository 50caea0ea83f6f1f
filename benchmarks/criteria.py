"""What a criterion costs: the processor time of one cut, in training steps of the same network.

    PRUNUS_DATA=~/data python benchmarks/criteria.py         (ten minutes; makes criteria.md)

ResNet-20 on CIFAR-10, batches of 128, eight of them for calibration; the median of three cuts
against the median of five training steps. A criterion that reads the training before a cut is not
here: it costs what its signal adds to each step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus._common.environment import describe
from prunus.methods.catalog import names
from prunus.methods.traits import trait
from prunus.progressive.engine import PruningEngine
from prunus.tasks.find import task_of

PAGE = Path(__file__).with_suffix(".md")


def seconds(work: Callable[[], Any], times: int) -> float:
    """The median processor time."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def rows() -> Iterator[tuple[str, str, float]]:
    """Criterion, structure, and its cost in training steps."""
    recipe = prunus.Recipe.load({"task": "cifar10", "target": 0.5})
    task = task_of(recipe)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    batch = next(iter(task.train))

    def step() -> None:
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()

    unit = seconds(step, 5)
    for criterion in names("criteria"):
        if trait("criteria", criterion, "RUNNING"):
            continue
        structure = "channel" if trait("criteria", criterion, "BY_UNIT") else "weight"
        fresh = task.model()
        asked = {"criterion": criterion, "structure": structure, "target": 0.3, "rounds": 4}
        engine = PruningEngine(
            fresh, asked, calibration=task.calibration, loss=task.loss, example=task.example
        )
        rises = iter((0.1, 0.2, 0.3))
        yield criterion, structure, seconds(lambda e=engine, r=rises: e.cut(1.0, next(r)), 3) / unit


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    lines = ["# What a criterion costs", "", str(__doc__).split("\n\n")[-1].strip(), "",
             "| criterion | of | training steps for a cut |", "|---|---|---|"]  # fmt: skip
    for criterion, structure, cost in rows():
        lines.append(f"| `{criterion}` | {structure}s | {cost:.1f} |")
        print(lines[-1], flush=True)
    where = f"{describe()['processor']}, one thread, torch {torch.__version__}."
    PAGE.write_text("\n".join([*lines, "", where, ""]))


if __name__ == "__main__":
    main()
