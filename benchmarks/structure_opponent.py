"""The opponents of the structured benchmark: Torch-Pruning 1.6.1, and fine-tuning the dense model.

Run with the python of an environment that has torch, torch-pruning, safetensors and pillow:

    python benchmarks/structure_opponent.py --data DIR --out FILE --task cifar \
        --method tp-oneshot --target 0.5 --seed 0
    python benchmarks/structure_opponent.py --data DIR --out FILE --jobs JOBS   # a line each
    python benchmarks/structure_opponent.py --data DIR --out FILE --all      # the whole table

A line of JSON a run; a run whose line is already in FILE is skipped. Final runs train on all
training images and report test accuracy; a job with ``"fit": "split"`` trains on 13,500 and reports
validation accuracy.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import structure_common as common

SEEDS, TARGETS, METHODS = (0, 1, 2), (0.5, 0.7, 0.9), ("tp-oneshot", "tp-iterative")
TOLERANCE = 0.01  # of the dense macs, around the target

_GLOBAL = {"importance": "taylor", "scope": "global", "peak": 0.02}
_NINETY = {**_GLOBAL, "walk": "small", "max_ratio": 0.6, "peak": 0.05}
SETTINGS: dict[str, dict[str, Any]] = {
    # CIFAR, one cut: the best on 1,500 held-out training images, seed 0, of magnitude and Taylor
    # importance with local, global, isomorphic and small-step ranking (structure.md says which
    # were compared after how long). Iterative mode, MNIST and the dense network: not tuned.
    "cifar/dense": {"peak": 0.02},
    "cifar/tp-oneshot": _GLOBAL,
    "cifar/tp-oneshot/0.9": _NINETY,
    "cifar/tp-iterative": {**_GLOBAL, "cuts": 6, "until": 0.5},
    "cifar/tp-iterative/0.9": {**_NINETY, "cuts": 6, "until": 0.5},
    "mnist/dense": {"peak": 0.05},
    "mnist/tp-oneshot": {"importance": "taylor", "scope": "global", "peak": 0.05},
    "mnist/tp-iterative": {
        "importance": "taylor", "scope": "global", "peak": 0.05, "cuts": 6, "until": 0.5,
    },
}  # fmt: skip


# --- the shortcut that Torch-Pruning can follow


class SelectShortcut(nn.Module):
    """``PadShortcut`` as a fixed 1×1 convolution of zeros and ones, so that it can be pruned.

    Torch-Pruning takes F.pad for an elementwise operation and couples channel i with i instead of
    i + 8 (it fails on the first group that passes one). Here inputs and outputs are free of each
    other: rows and columns of the selection go, the function of what stays is the same.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.free = stride, False
        selection = torch.zeros(outputs, inputs, 1, 1)
        rows = torch.arange(inputs)
        selection[rows + (outputs - inputs) // 2, rows] = 1
        self.register_buffer("selection", selection, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, inputs, h, w]`` to ``[b, outputs, h / stride, w / stride]``."""
        if self.free:  # counting: a selection costs no macs
            small = x[:, :1, :: self.stride, :: self.stride]
            return small.expand(-1, len(self.selection), -1, -1)
        return F.conv2d(x, self.selection, stride=self.stride)


def tp_pruners() -> dict[type, Any]:
    """How Torch-Pruning prunes a ``SelectShortcut``."""
    import torch_pruning as tp

    def without(layer: SelectShortcut, dim: int, idxs: list[int]) -> SelectShortcut:
        gone = set(idxs)
        keep = [i for i in range(layer.selection.shape[dim]) if i not in gone]
        layer.selection = layer.selection.index_select(dim, torch.tensor(keep))
        return layer

    class SelectPruner(tp.BasePruningFunc):
        def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
            return without(layer, 0, idxs)

        def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
            return without(layer, 1, idxs)

        def get_out_channels(self, layer: nn.Module) -> int:
            return layer.selection.shape[0]

        def get_in_channels(self, layer: nn.Module) -> int:
            return layer.selection.shape[1]

    return {SelectShortcut: SelectPruner()}


def count(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Macs, with selections for free."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, SelectShortcut):
            module.free = True
    return common.macs(model, shape)


# --- cutting with Torch-Pruning


@dataclass(frozen=True)
class Dense:
    """What Torch-Pruning's limits refer to in every cut: the dense model's macs and widths."""

    macs: int
    outputs: dict[str, int]
    inputs: dict[str, int]

    @staticmethod
    def of(model: nn.Module, shape: tuple[int, ...]) -> Dense:
        layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        return Dense(
            count(model, shape),
            {n: m.weight.shape[0] for n, m in layers.items()},
            {n: m.weight.shape[1] for n, m in layers.items()},
        )


def make_pruner(
    model: nn.Module, shape: tuple[int, ...], settings: dict[str, Any], dense: Dense, **plan: Any
) -> Any:
    """A ``tp.pruner.BasePruner`` with the settings; the classifier's outputs are left alone."""
    import torch_pruning as tp

    scope = settings["scope"]
    makes = {
        "magnitude": lambda: tp.importance.MagnitudeImportance(p=2, group_reduction="mean"),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
    }
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    ignored = [layers[-1][1]]
    if settings.get("inner"):  # the residual streams stay whole, only blocks become narrower
        ignored += [m for n, m in layers if n == "conv1" or n.endswith("conv2")]
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(shape),
        importance=makes[settings["importance"]](),
        global_pruning=scope != "local",
        isomorphic=scope == "isomorphic",
        max_pruning_ratio=settings.get("max_ratio", 1.0),
        ignored_layers=ignored,
        round_to=None,
        customized_pruners=tp_pruners(),
        **plan,
    )
    for name, module in model.named_modules():  # max_pruning_ratio is of the dense widths
        if name in dense.outputs:
            pruner.layer_init_out_ch[module] = dense.outputs[name]
            pruner.layer_init_in_ch[module] = dense.inputs[name]
    return pruner


def cut(
    model: nn.Module, goal: float, shape: tuple[int, ...], settings: dict[str, Any], dense: Dense
) -> nn.Module:
    """A copy pruned to ``goal`` macs, within TOLERANCE of the dense macs.

    ``walk: single`` is one step of Torch-Pruning whose ratio is found by bisection; ``walk:
    small`` is steps of 1/400 until the goal, as in Torch-Pruning's own benchmark. Each trial is on
    a copy. Where the macs jump over the goal, the last channels go one by one, weakest first.
    """
    small = settings.get("walk", "single") == "small"
    margin = TOLERANCE * dense.macs

    def at(amount: float) -> tuple[nn.Module, int]:
        other = copy_with_gradients(model)
        plan = (
            {"pruning_ratio": 1.0, "iterative_steps": 400} if small else {"pruning_ratio": amount}
        )
        pruner = make_pruner(other, shape, settings, dense, **plan)
        for _ in range(round(400 * amount) if small else 1):
            pruner.step()
        return other, count(other, shape)

    low, high = 0.0, 1.0  # at low the macs are above the goal, at high below
    while high - low > 1 / 800:
        middle = (low + high) / 2
        pruned, macs = at(middle)
        if abs(macs - goal) <= margin / 2:
            return pruned
        low, high = (middle, high) if macs > goal else (low, middle)
    pruned, macs = at(low)
    if macs > goal + margin / 2:
        _trim(pruned, goal, margin, shape, settings, dense)
    achieved = count(pruned, shape)
    if abs(achieved - goal) > margin:
        raise RuntimeError(f"macs {achieved} are not within {margin:.0f} of {goal:.0f}")
    return pruned


def copy_with_gradients(model: nn.Module) -> nn.Module:
    """A copy; deepcopy leaves the gradients of parameters behind, Taylor scores need them."""
    other = copy.deepcopy(model)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()
    return other


def _trim(
    model: nn.Module,
    goal: float,
    margin: float,
    shape: tuple[int, ...],
    settings: dict,
    dense: Dense,
) -> None:
    """Remove single channels, weakest first, passing over those that would overshoot."""
    while (now := count(model, shape)) > goal + margin / 2:
        pruner = make_pruner(model, shape, settings, dense, pruning_ratio=0.5)
        channels = []
        for group in pruner.DG.get_all_groups(
            ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
        ):
            scores = pruner.estimate_importance(group)
            dep = group[0][0]
            for i, score in enumerate(scores.tolist()):
                channels.append((score, i, dep.target.module, dep.handler))
        refused = set()
        for _, i, module, handler in sorted(channels, key=lambda c: c[0]):
            group = pruner.DG.get_pruning_group(module, handler, [i])
            if module in refused or not pruner.DG.check_pruning_group(group):
                continue
            other = copy_with_gradients(model)
            names = {m: n for n, m in model.named_modules()}
            twin = dict(other.named_modules())[names[module]]
            twins = make_pruner(other, shape, settings, dense, pruning_ratio=0.5)
            twins.DG.get_pruning_group(twin, handler, [i]).prune()
            if count(other, shape) < goal - margin:
                refused.add(module)
                continue
            group.prune()
            break
        else:
            return
        assert count(model, shape) < now


def widths(model: nn.Module) -> dict[str, int]:
    """Output channels of each convolution and linear layer."""
    layers = ((n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return {name: m.weight.shape[0] for name, m in layers}


# --- one run


@dataclass(frozen=True)
class Task:
    """What differs between CIFAR and MNIST."""

    shape: tuple[int, ...]
    steps: int
    loader: Callable[..., Any]
    optimizer: Callable[[nn.Module, float], Optimizer]
    factor: Callable[..., float]
    start: Callable[[int], nn.Module]
    data: common.Data


def task_of(name: str, folder: Path, fit: str) -> Task:
    if name == "mnist":
        return Task(
            common.MNIST_SHAPE, common.MNIST_STEPS, common.Shuffled, common.mnist_sgd,
            common.mnist_decay, lambda seed: common.train_mnist(seed, folder),
            common.load_mnist(folder),
        )  # fmt: skip
    data = common.cifar(folder, fit=fit)
    steps = common.EPOCHS * (len(data["train"][1]) // common.BATCH)
    return Task(
        common.CIFAR_SHAPE, steps, common.Crops, common.sgd, common.warm_hold_decay,
        lambda seed: common.resnet20(folder, SelectShortcut), data,
    )  # fmt: skip


def retrain(task: Task, model: nn.Module, job: dict[str, Any], dense: Dense) -> nn.Module:
    """Cut and retrain as ``job`` says, within the task's steps.

    ``tp-oneshot``: one cut, then all steps. ``tp-iterative``: ``cuts`` cuts, the macs falling
    linearly, spread over the first ``until`` of the steps; then the rest of the steps. The rate
    follows one schedule over all steps; the optimizer is new after a cut (its state fits no more).
    """
    settings, steps, seed = job["settings"], task.steps, job["seed"]
    batches = common.endless(task.loader(*task.data["train"], seed=seed))
    sample = common.endless(task.loader(*task.data["train"], seed=10_000 + seed))
    cuts = {"dense": 0, "tp-oneshot": 1}.get(job["method"], settings.get("cuts"))
    places = [round(i / max(cuts, 1) * settings.get("until", 0) * steps) for i in range(cuts)]
    ends = [*places[1:], steps] if cuts else [steps]
    for i, (start, end) in enumerate(zip(places or [0], ends, strict=True)):
        if cuts:
            if settings["importance"] == "taylor":
                model.zero_grad()
                for _ in range(settings.get("gradients", 10)):
                    common.loss_of(model, next(sample)).backward()
            goal = (1 - job["target"] * (i + 1) / cuts) * dense.macs
            model = cut(model, goal, task.shape, settings, dense)
            model = model.to(memory_format=torch.channels_last)
        rate = settings["peak"]
        common.train(
            model, batches, end - start, optimizer=task.optimizer(model, rate), peak=rate,
            factor=partial(task.factor, **settings.get("factor", {})),
            part=(start / steps, end / steps),
        )  # fmt: skip
    return model


def key(job: dict[str, Any]) -> str:
    names = ("task", "method", "target", "seed", "fit", "settings", "epochs")
    return json.dumps([job.get(n) for n in names], sort_keys=True)


def run(job: dict[str, Any], folder: Path, out: Path, cache: dict[Any, Task]) -> dict[str, Any]:
    """One run, unless ``out`` has it; ``job["epochs"]`` shortens a screening run."""
    lines = out.read_text().splitlines() if out.exists() else []
    done = {key(r): r for r in map(json.loads, lines)}
    if key(job) in done:
        return done[key(job)]
    place = (job["task"], job["fit"])
    if place not in cache:
        cache[place] = task_of(job["task"], folder, job["fit"])
    task = cache[place]
    if "epochs" in job:
        task = replace(task, steps=round(task.steps * job["epochs"] / common.EPOCHS))
    began = time.perf_counter()
    model = task.start(job["seed"])
    dense = Dense.of(model, task.shape)
    result: dict[str, Any] = dict(job)
    try:
        model = retrain(task, model, job, dense)
        parts = ["validation"] if "validation" in task.data else []
        parts += ["test"] if job["fit"] == "all" or job.get("final") else []
        size = 500 if job["task"] == "cifar" else 1000
        for part in parts:
            result[part] = common.accuracy(model, common.plain(*task.data[part], size=size))
        macs = count(model, task.shape)
        result |= {"macs": macs, "dense_macs": dense.macs, "removed": 1 - macs / dense.macs}
        result |= {"params": common.params(model), "widths": list(widths(model).values())}
    except RuntimeError as error:
        result["error"] = str(error)
    result["seconds"] = round(time.perf_counter() - began, 1)
    result["steps"] = task.steps
    result["versions"] = {"torch": torch.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        result["versions"]["torch-pruning"] = importlib.metadata.version("torch-pruning")
    with out.open("a") as file:
        file.write(json.dumps(result) + "\n")
    shown = {k: result.get(k) for k in ("validation", "test", "removed", "error")}
    print(job, shown, f"{result['seconds']} s", flush=True)
    return result


def settings_of(task: str, method: str, target: float | None) -> dict[str, Any]:
    """The chosen settings, for a target or for all of them."""
    return SETTINGS.get(f"{task}/{method}/{target}") or SETTINGS[f"{task}/{method}"]


def jobs_of_table() -> Iterator[dict[str, Any]]:
    """Every final run: CIFAR seed by seed, then MNIST."""
    for task in ("cifar", "mnist"):
        for seed in SEEDS:
            for target, method in [(0.0, "dense"), *((t, m) for t in TARGETS for m in METHODS)]:
                yield final(task, method, target, seed)


def final(task: str, method: str, target: float, seed: int) -> dict[str, Any]:
    settings = settings_of(task, method, target)
    return {"task": task, "method": method, "target": target, "seed": seed, "fit": "all",
            "settings": settings}  # fmt: skip


def speed(name: str) -> dict[str, Any]:
    """Seconds that Torch-Pruning needs to group a model's layers and take half of them out."""
    import torch_pruning as tp

    model, example = common.big_model(name)
    inputs = example if isinstance(example, dict) else (example,)
    outputs = [
        m for n, m in model.named_modules() if n in ("classifier.1", "classifier", "lm_head")
    ]
    heads = {}
    for module in model.modules():
        if hasattr(module, "q_proj") or hasattr(module, "query"):
            number = (
                getattr(module, "num_attention_heads", None) or model.config.num_attention_heads
            )
            heads[getattr(module, "q_proj", None) or module.query] = number
    before = common.params(model)
    row: dict[str, Any] = {"model": name}
    began = time.perf_counter()
    try:
        pruner = tp.pruner.BasePruner(
            model, inputs, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
            ignored_layers=outputs, num_heads=heads, prune_num_heads=bool(heads),
        )  # fmt: skip
        row["analysis_s"] = round(time.perf_counter() - began, 1)
        pruner.step()
        row["seconds"] = round(time.perf_counter() - began, 1)
        row["params_left"] = common.params(model) / before
        with torch.no_grad():
            model(**example) if isinstance(example, dict) else model(example)
        row["runs"] = True
    except Exception as error:  # whatever it raises is the result
        row["error"] = f"{type(error).__name__}: {str(error)[:160]}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("PRUNUS_DATA"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--speed", choices=("resnet50", "vit_b", "llama_24"), help="time one model")
    parser.add_argument("--task", choices=("cifar", "mnist"), default="cifar")
    parser.add_argument("--method", choices=("dense", *METHODS))
    parser.add_argument("--target", type=float, default=0.0, help="fewer macs, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="the whole table")
    parser.add_argument("--jobs", type=Path, help="a file of jobs, a line of JSON each (tuning)")
    options = parser.parse_args()
    if options.speed:
        torch.set_num_threads(1)
        print(json.dumps(speed(options.speed)))
        return
    if options.data is None or options.out is None:
        parser.error("give --out, and --data (or set PRUNUS_DATA)")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.jobs:
        jobs = map(json.loads, options.jobs.read_text().splitlines())
    elif options.all:
        jobs = jobs_of_table()
    else:
        jobs = iter([final(options.task, options.method, options.target, options.seed)])
    cache: dict[Any, Task] = {}
    for job in jobs:
        run(job, options.data, options.out, cache)


if __name__ == "__main__":
    main()
