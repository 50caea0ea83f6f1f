"""What a one-shot cut costs beside choosing alone: peak memory ÷ bytes of the model, and time.

python benchmarks/one_shot.py            # makes benchmarks/one_shot.md
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import prunus
from prunus._common.environment import describe
from prunus.progressive.engine import PruningEngine

HERE = Path(__file__).parent
WIDTH, BLOCKS = 1440, 12
RECIPES: dict[str, dict[str, Any]] = {
    "global": {"target": 0.5},
    "2:4": {"structure": "2:4", "allocation": "uniform"},
    "per neuron": {"target": 0.5, "allocation": "per_neuron"},
    "sensitivity, one batch": {"target": 0.5, "criterion": "sensitivity"},
    "channel, masked": {"target": 0.5, "structure": "channel"},
    "channel, compact": {"target": 0.5, "structure": "channel", "compact": "end"},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        done: torch.Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return done


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(work: Callable[[], Any]) -> tuple[int, float]:
    """Growth of resident memory, sampled, and seconds of processor time."""
    before, ended, most = resident(), threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.005):
            most[0] = max(most[0], resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.process_time()
    work()
    seconds = time.process_time() - began
    ended.set()
    thread.join()
    return most[0], seconds


def cut(model: nn.Module, recipe: dict[str, Any], *, choose: bool) -> Callable[[], Any]:
    example = torch.ones(1, 4, WIDTH)
    hooks: dict[str, Any] = {
        "example": example if recipe.get("structure") == "channel" else None,
        "calibration": [example],
        "loss": lambda m, batch: m(batch).float().square().mean(),
    }
    if choose:
        return lambda: PruningEngine(model, recipe, **hooks).choose(1.0)
    return lambda: prunus.prune(model, recipe, progress=False, **hooks)


def one(name: str, choose: bool) -> tuple[int, float, int]:
    """In a process of its own: memory, seconds, and bytes of the model."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    warm = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 8))
    cut(warm, RECIPES[name], choose=choose)()  # imports what it needs
    model = nn.Sequential(*(Block() for _ in range(BLOCKS)))
    size = sum(p.numel() * p.element_size() for p in model.parameters())  # before it is smaller
    most, seconds = measured(cut(model, RECIPES[name], choose=choose))
    return most, seconds, size


def main() -> None:
    rows = []
    for name in RECIPES:
        found = []
        for choose in (True, False):
            with get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(one, (name, choose)))
        (least, alone, _), (most, whole, size) = found
        rows.append(
            f"| {name} | {least / size:.2f} | {most / size:.2f} | {alone:.1f} | {whole:.1f} | "
            f"{whole / alone:.2f} |"
        )
        print(rows[-1], flush=True)
    about = "; ".join(f"{key} {value}" for key, value in describe().items())
    text = f"""# What a one-shot cut costs

`prunus.prune(model, recipe)` without `train` and `folder` beside choosing the masks alone, of a
model of {size / 2:,.0f} bf16 weights ({size / 2**20:.0f} MiB; a bool mask of all of them is half
of that). Peak: growth of resident memory over the model's, ÷ the model's bytes, masks included;
seconds of processor time on one thread; each in a process of its own. A criterion that reads
gradients holds those of a batch as well, and their sums in float64 if there are several batches.

A compact cut is proved equal to the masked model in float64, in each use of the model (eval and
train mode, with autograd and without, other batch sizes and lengths). A row of numbers that met a
matrix in one use is not multiplied again in the next; what is left are products with all weights
of the dense, the masked and the compact model in float64, and of the latter two in the model's
own type, as users call it, where choosing reads them once. Beside that, weights are counted before
and behind the cut, and what is removed is copied, to be given back if anything fails: half of the
model here. Masks of weights that were zero already take 0.2 twice (bf16 rounds some to zero).

| recipe | peak, choosing | peak, the cut | seconds, choosing | the cut | ratio |
|---|---|---|---|---|---|
{chr(10).join(rows)}

Measured on: {about}.
Made by `make bench-one-shot`.
"""
    (HERE / "one_shot.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
