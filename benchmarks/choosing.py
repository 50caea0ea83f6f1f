"""Choosing a global mask over 100 million weights, exact count: prunus beside torch.nn.utils.prune.

python benchmarks/choosing.py            # makes benchmarks/choosing.md
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from prunus._common.environment import describe
from prunus.progressive.engine import PruningEngine

HERE = Path(__file__).parent
LAYERS, WIDTH, SPARSITY = 24, 2048, 0.9


def model_of_100_million() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for _ in range(LAYERS)]
    model = nn.Sequential(*layers).to_empty(device="cpu")
    for layer in model:
        nn.init.normal_(layer.weight)
    return model


def ours(model: nn.Module) -> Callable[[], Any]:
    pruner = PruningEngine(model, {"target": SPARSITY})
    return lambda: pruner.choose(1.0)


def theirs(model: nn.Module) -> Callable[[], Any]:
    places = [(layer, "weight") for layer in model]
    return lambda: torch_prune.global_unstructured(
        places, pruning_method=torch_prune.L1Unstructured, amount=SPARSITY
    )


def partition(model: nn.Module) -> Callable[[], Any]:
    """The plain way with numpy: one copy of |w|, partitioned, then compared."""

    def choose() -> list[torch.Tensor]:
        every = torch.cat([layer.weight.detach().abs().flatten() for layer in model]).numpy()
        place = round(SPARSITY * len(every))
        every.partition(place)
        return [layer.weight.detach().abs() >= float(every[place]) for layer in model]

    return choose


WAYS = {"prunus": ours, "torch.nn.utils.prune.global_unstructured": theirs,
        "numpy partition of one copy": partition}  # fmt: skip


def peak() -> int:
    """Bytes of the process's largest resident size so far, in a Linux system."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith("VmHWM")).split()[1])


def measure(way: str) -> tuple[float, int, int]:
    """Seconds of the first call in a fresh process, extra memory, weights removed."""
    torch.set_num_threads(1)
    model = model_of_100_million()
    work = WAYS[way](model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, began = peak(), time.perf_counter()
    chosen = work()
    seconds, extra = time.perf_counter() - began, peak() - before
    if isinstance(chosen, dict):
        gone = sum(int((~m).sum()) for m in chosen.values())
    elif isinstance(chosen, list):
        gone = sum(int((~m).sum()) for m in chosen)
    else:
        gone = sum(int((layer.weight == 0).sum()) for layer in model)
    return seconds, extra, gone


def main() -> None:
    rows: list[tuple[str, float, int, int]] = []
    asked = round(SPARSITY * LAYERS * WIDTH * WIDTH)
    repeats = {"torch.nn.utils.prune.global_unstructured": 1}
    for way in WAYS:
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            runs = [pool.apply(measure, (way,)) for _ in range(repeats.get(way, 5))]
        rows.append((way, statistics.median(r[0] for r in runs), runs[0][1], runs[0][2]))
        print(rows[-1], flush=True)
    own = rows[0][1]
    lines = [
        f"| {way} | {seconds:.3f} | {seconds / own:.1f} | {extra / 2**20:,.0f} "
        f"| {gone - asked:+,} |"
        for way, seconds, extra, gone in rows
    ]
    machine = ", ".join(f"{k} {v}" for k, v in {**describe(), "threads": "1"}.items())
    (HERE / "choosing.md").write_text(
        f"""# Choosing a global mask

{LAYERS} layers of {WIDTH}×{WIDTH}, {LAYERS * WIDTH**2:,} weights
({4 * LAYERS * WIDTH**2 / 2**20:,.0f} MiB), {100 * SPARSITY:g} % to remove; each way in a fresh
process, its first call (median of five processes; torch.nn.utils.prune one). Extra memory:
growth of the peak, masks included ({LAYERS * WIDTH**2 / 2**20:,.0f} MiB).

| | seconds | times prunus | extra MiB | weights removed beyond those asked |
|---|---|---|---|---|
{chr(10).join(lines)}

`python benchmarks/choosing.py` · {machine}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
