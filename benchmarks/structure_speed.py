"""How fast: compact ResNet-20 in eager PyTorch, shrinking while training, analyzing large models.

    python benchmarks/structure_speed.py --data $PRUNUS_DATA        (half an hour, one thread)

Every ratio is of two things measured in turn in this process: medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
import structure_common as common
from prunus._common.environment import describe
from structure import Loop, recipe_of

ANALYZED = ("resnet50", "vit_b", "llama_24", "llama_8b_meta")
STEADY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""glibc keeps what it frees. Left alone it returns activations of megabytes to the system or not,
process by process: the same pass of 64 images takes 44 or 68 ms."""


def medians(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 2):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if number >= 2:  # warm-up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(t) for name, t in times.items()}


def latency(data: Path) -> list[str]:
    """Eager latency of the dense network and of three with 75 % fewer macs."""
    dense = common.resnet20(data)
    example = torch.randn(2, 3, 32, 32)
    channels = partial(_thinner, dense=dense, example=example)
    models = {"dense": dense, "channels": channels(copy.deepcopy(dense))}
    for name, target in BLOCKS.items():
        recipe = {**SHORTER, "target": target, "rounds": 1}
        shorter = prunus.prune(copy.deepcopy(dense), recipe, example=example).model
        models[f"{name}, then channels"] = channels(shorter)
    rows = ["| batch | layout | network | part of the macs | ms | times faster |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    for batch, rounds in ((1, 500), (64, 45)):
        best: dict[str, float] = {}
        for layout, order in layouts.items():
            x = torch.randn(batch, 3, 32, 32).to(memory_format=order)
            own = {k: copy.deepcopy(m).eval().to(memory_format=order) for k, m in models.items()}
            with torch.inference_mode():
                found = medians({k: partial(m, x) for k, m in own.items()}, rounds)
            ms = {k: 1000 * v for k, v in found.items()}
            best = {k: min(v, best.get(k, v)) for k, v in ms.items()}
            rows += _lines(batch, layout, models, ms)
        rows += _lines(batch, "best of each", models, best)
    return rows


BLOCKS = {"two blocks": 0.77, "four blocks": 0.96}
"""Parts of the weights of the blocks that keep their shape; the largest have the least values."""
SHORTER = {"structure": {"name": "layer", "modules": ["layer?.[12]"]}, "criterion": "magnitude",
           "compact": "end"}  # fmt: skip


def _thinner(model: nn.Module, dense: nn.Module, example: torch.Tensor) -> nn.Module:
    """Channels taken out of it until 75 % of the dense network's macs are gone."""
    left = 0.25 * common.macs(dense) / common.macs(model)
    recipe = {"structure": {"name": "channel", "multiple_of": 8}, "allocation": "uniform",
              "target": {"max_macs": left}, "compact": "end"}  # fmt: skip
    return prunus.prune(model, recipe, example=example).model.eval()


def _lines(
    batch: int, layout: str, models: dict[str, nn.Module], ms: dict[str, float]
) -> list[str]:
    whole = common.macs(models["dense"])
    return [
        f"| {batch} | {layout} | {k} | {common.macs(m) / whole:.1%} | {ms[k]:.2f} | "
        f"{ms['dense'] / ms[k]:.2f} |"
        for k, m in models.items()
    ]


def depth(data: Path, steps: int) -> list[str]:
    """Accuracy with 75 % fewer macs: channels alone, or blocks first; as many steps each."""
    parts, base = common.cifar(data), common.resnet20(data)
    test, batches = common.plain(*parts["test"]), common.Crops(*parts["train"], seed=0)
    settings = {
        "loss": common.loss_of,
        "calibration": [b for b, _ in zip(batches, range(8), strict=False)],
        "example": torch.zeros(2, 3, 32, 32),
    }  # fmt: skip
    widths = {"structure": {"name": "channel", "multiple_of": 8}, "allocation": "uniform"}

    def channels(model: nn.Module, spent: int) -> float:
        left = 0.25 * common.macs(base) / common.macs(model)
        recipe = recipe_of("cifar", "progressive", 1 - left, 0, widths)
        each = int(recipe["retrain"].removesuffix("it"))
        last = steps - spent - each * (recipe["rounds"] - 1)
        recipe |= {"last_retrain": f"{last}it", "snapshot": f"{steps}it"}
        loop = Loop("cifar", batches, 0.02)
        loop.taken = spent
        made = prunus.prune(model, recipe, **{**settings, "train": loop}).model
        return common.accuracy(made.eval(), test)

    found = {"channels": channels(copy.deepcopy(base), 0)}
    for name, target in BLOCKS.items():
        loop = Loop("cifar", batches, 0.02)
        recipe = {**SHORTER, "target": target, "rounds": 4, "schedule": "linear", "retrain": "20it",
                  "snapshot": f"{steps}it"}  # fmt: skip
        model = prunus.prune(copy.deepcopy(base), recipe, **{**settings, "train": loop}).model
        found[f"{name}, then channels"] = channels(model, loop.taken)
    return ["| network | accuracy on test |", "|---|---|",
            *(f"| {k} | {100 * v:.1f} |" for k, v in found.items())]  # fmt: skip


def wall_time(data: Path, repeats: int, steps: int, multiple: int) -> list[str]:
    """A progressive run to 70 % fewer macs: shrinking, masked to the end, and the dense network.

    Eager convolutions with AVX2 work in blocks of eight channels: widths of a ``multiple`` of 4 or
    8 make the steps faster, and the choice of channels coarser.
    """
    parts = common.cifar(data)
    batches = common.Crops(*parts["train"], seed=0)
    sample = [b for b, _ in zip(batches, range(8), strict=False)]
    base = common.resnet20(data)
    widths = {"structure": {"name": "channel", "multiple_of": multiple}}

    def pruned(method: str) -> nn.Module:
        recipe = recipe_of("cifar", method, 0.7, 0, widths)
        each = int(recipe["retrain"].removesuffix("it"))
        left = steps - each * (recipe["rounds"] - 1)
        recipe |= {"last_retrain": f"{left}it", "snapshot": f"{steps}it"}
        return prunus.prune(
            copy.deepcopy(base), recipe, train=Loop("cifar", batches, 0.02), calibration=sample,
            loss=common.loss_of, example=torch.zeros(2, 3, 32, 32),
        ).model  # fmt: skip

    def dense() -> nn.Module:
        model = copy.deepcopy(base)
        return common.train(model, common.endless(batches), steps,
                            optimizer=common.sgd(model, 0.02), peak=0.02)  # fmt: skip

    times: dict[str, list[float]] = {"dense": [], "masked": [], "progressive": []}
    spent: dict[str, list[float]] = {name: [] for name in times}  # of the processor: one thread
    right: dict[str, list[float]] = {name: [] for name in times}
    test = common.plain(*parts["test"])
    for _ in range(repeats):
        for name in times:
            began = time.perf_counter(), time.process_time()
            made = dense() if name == "dense" else pruned(name)
            times[name].append(time.perf_counter() - began[0])
            spent[name].append(time.process_time() - began[1])
            right[name].append(common.accuracy(made.eval(), test))
    wall = {k: statistics.median(v) for k, v in times.items()}
    cpu = {k: statistics.median(v) for k, v in spent.items()}
    return [
        "| run | seconds | against shrinking | processor seconds | against shrinking | accuracy |",
        "|---|---|---|---|---|---|",
        *(f"| {label} | {wall[key]:.0f} | {wall[key] / wall['progressive']:.2f} | {cpu[key]:.0f} | "
          f"{cpu[key] / cpu['progressive']:.2f} | {100 * statistics.median(right[key]):.1f} |"
          for key, label in (("progressive", "`compact: every_round`"),
                             ("masked", "masked, `compact: end`"),
                             ("dense", "dense network, no pruning"))),
    ]  # fmt: skip


def analysis(name: str) -> dict[str, Any]:
    """Seconds to find the units of a model, and to take half of them out, verified."""
    from prunus.compaction.compact import perform
    from prunus.compaction.cut import IndexCut
    from prunus.compaction.search import find_plan
    from prunus.graph.analysis import analyze
    from prunus.graph.listing import table

    model, example = common.big_model(name)
    began = time.perf_counter()
    found = analyze(model, example)
    units = table(model, found)
    analyzed = time.perf_counter()
    gone = torch.cat([torch.from_numpy(u.classes[: len(u) // 2]) for u in units.coupled])
    removed = torch.zeros(len(found.solved.reason), dtype=torch.bool)
    removed[gone] = True
    plan = find_plan(model, IndexCut(found, removed.numpy()), example)
    perform(model, plan)
    done = time.perf_counter()
    return {
        "model": name, "units": units.total, "analysis_s": round(analyzed - began, 1),
        "compaction_s": round(done - analyzed, 1), "route": plan.route,
        "error": plan.comparison.error,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    }  # fmt: skip


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=common.STEPS)
    parser.add_argument(
        "--multiple-of", type=int, default=8, help="of the widths, for the wall time"
    )
    parser.add_argument("--only", choices=["latency", "depth", "wall", "analysis"])
    parser.add_argument("--model", choices=ANALYZED, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.model:
        print(json.dumps(analysis(chosen.model)))
        return
    timed = chosen.only in (None, "latency")
    if timed and not os.environ.keys() >= STEADY.keys():
        print(_again(chosen.data, "--only", "latency", env=os.environ | STEADY), flush=True)
    else:
        print(f"One thread of {describe()['processor']}, torch {torch.__version__}.\n")
        if timed:
            print("\n".join(latency(chosen.data)), "\n", flush=True)
    if chosen.only in (None, "depth"):
        print("\n".join(depth(chosen.data, chosen.steps)), "\n", flush=True)
    if chosen.only in (None, "wall"):
        rows = wall_time(chosen.data, chosen.repeats, chosen.steps, chosen.multiple_of)
        print("\n".join(rows), "\n", flush=True)
    if chosen.only in (None, "analysis"):
        for name in ANALYZED:  # each in a process of its own, for its peak memory
            print(_again(chosen.data, "--model", name).strip().splitlines()[-1], flush=True)


def _again(data: Path, *words: str, env: dict[str, str] | None = None) -> str:
    """What this script prints in a process of its own."""
    command = [sys.executable, __file__, "--data", str(data), *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout


if __name__ == "__main__":
    main()
