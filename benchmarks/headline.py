"""From a trained network to the artifact that serves it: smaller, faster, as good.

    python benchmarks/headline.py --data $PRUNUS_DATA --network cifar   (about half an hour)
    python benchmarks/headline.py --data $PRUNUS_DATA --network mnist

The dense network is fine-tuned for as many steps at the same rates. The pruned one takes as many,
and learns from the dense one's answers alone, on mixtures of two images (Beyer et al. 2022, arXiv
2106.05237): the loss is the user's own. Then both are served by ``prunus.deploy`` on one thread.
Times are against dense float32 in its own fastest runtime; accuracy is that of the artifact itself,
on test data.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
import structure_common as common
from structure import Loop

PLANS: dict[str, dict[str, Any]] = {
    "cifar": {
        "left": 0.75,
        "rounds": 4,
        "each": 20,
        "steps": 8 * 105,
        "peak": 0.02,
        "multiple_of": 8,
        "allocation": "per_cost",
        "out": [],
    },
    "mnist": {
        "left": 0.1,
        "rounds": 8,
        "each": 10,
        "steps": 800,
        "peak": common.MNIST_RATE,
        "multiple_of": 8,
        "allocation": "per_cost",
        "out": [],
    },
}
BESIDE = ("onnxruntime", "openvino", "torch_compile", "eager")
HEAT, MIXED = 2.0, 0.5
"""Temperature of the answers; the largest part of another image that is mixed into one."""


def taught_by(dense: nn.Module, seed: int) -> Callable[[nn.Module, common.Batch], Tensor]:
    """T²·KL(softmax(d ÷ T) ‖ softmax(s ÷ T)), the answers d of ``dense`` and s of the model to
    x + λ·(x' − x), x' another image of the batch and λ uniform between 0 and ``MIXED``."""
    dense.eval()
    drawn = torch.Generator().manual_seed(seed)

    def loss(model: nn.Module, batch: common.Batch) -> Tensor:
        images = batch[0]
        part = MIXED * torch.rand((len(images), 1, 1, 1), generator=drawn)
        images = images.lerp(images.roll(1, 0), part)
        with torch.no_grad():
            right = F.softmax(dense(images) / HEAT, dim=1)
        found = F.log_softmax(model(images) / HEAT, dim=1)
        return HEAT**2 * F.kl_div(found, right, reduction="batchmean")

    return loss


def run(name: str, data: Path, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """One network, from trained to served."""
    plan = {**PLANS[name], **changes}
    torch.manual_seed(seed)
    if name == "cifar":
        base, parts = common.resnet20(data), common.cifar(data, fit="split")
        batches: Any = common.Crops(*parts["train"], seed=seed)
        example, make, factor = torch.zeros(2, 3, 32, 32), common.sgd, common.warm_hold_decay
    else:
        base, parts = common.train_mnist(seed, data), common.load_mnist(data)
        batches = common.Shuffled(*parts["train"], seed=seed)
        example, make, factor = torch.zeros(2, 1, 28, 28), common.mnist_sgd, common.mnist_decay
    judge, test = common.plain(*parts["validation"]), common.plain(*parts["test"])
    dense = copy.deepcopy(base)
    common.train(dense, common.endless(batches), plan["steps"],
                 optimizer=make(dense, plan["peak"]), peak=plan["peak"], factor=factor)  # fmt: skip
    loop = Loop(name, batches, plan["peak"])
    loop.steps, loop.loss = plan["steps"], taught_by(dense, seed)
    given: dict[str, Any] = {
        "train": loop, "loss": common.loss_of, "example": example,
        "calibration": [b for b, _ in zip(batches, range(8), strict=False)],
    }  # fmt: skip
    shape = tuple(example[:1].shape)
    whole = common.macs(base, shape)
    kept: nn.Module = base
    if plan["out"]:
        fewer = {"structure": {"name": "layer", "modules": plan["out"]}, "target": 1, "rounds": 1,
                 "retrain": f"{plan['steps'] // 10}it", "compact": "end", "seed": seed,
                 "snapshot": f"{plan['steps']}it"}  # fmt: skip
        kept = prunus.prune(kept, fewer, **given).model
    channels = {
        "seed": seed, "structure": {"name": "channel", "multiple_of": plan["multiple_of"]},
        "criterion": "sensitivity", "allocation": plan["allocation"], "schedule": "geometric",
        "target": {"max_macs": plan["left"] * whole / common.macs(kept, shape)},
        "rounds": plan["rounds"], "retrain": f"{plan['each']}it", "compact": "every_round",
        "last_retrain": f"{plan['steps'] - loop.taken - plan['each'] * (plan['rounds'] - 1)}it",
        "snapshot": f"{plan['steps']}it",
    }  # fmt: skip
    result = prunus.prune(kept, channels, **given)
    made = prunus.deploy(
        result.model, example=example, baseline=dense, batch_sizes=(1, 16), quantize="int8",
        compare_with=BESIDE,
        evaluate=lambda model: common.accuracy(model, judge),
        calibration=[x for x, _ in judge[:4]], max_drop=0.005, seconds=3.0,
    )  # fmt: skip
    print(made)
    return {
        "network": name, "seed": seed, "plan": plan,
        "macs_left": common.macs(result.model, shape) / whole,
        "params_left": common.params(result.model) / common.params(dense),
        "dense_test": common.accuracy(dense, test),
        "float32_test": common.accuracy(result.model.eval(), test),
        "int8_test": common.accuracy(made.model, test),
        "float32": gain(made, exact=True), "int8": gain(made, exact=False),
    }  # fmt: skip


def gain(made: prunus.Deployment, *, exact: bool) -> dict[str, Any]:
    """The pruned network's fastest artifact, float32 or int8, and the dense one's in float32."""
    rows = [r for r in made.rows if r.good and r.latency]
    dense = [r for r in rows if r.model == "dense" and r.exact]
    own = [r for r in rows if r.model == "pruned" and r.exact == exact]
    out: dict[str, Any] = {}
    for batch in (1, 16):
        before = min(dense, key=lambda r: r.latency[batch].median_ms)
        after = min(own, key=lambda r: r.latency[batch].median_ms)
        ms = [r.latency[batch].median_ms for r in (before, after)]
        bytes_ = [r.bytes or 0 for r in (before, after)]
        out[f"batch {batch}"] = {
            "runtimes": [before.runtime, after.runtime], "ms": [round(t, 3) for t in ms],
            "faster": round(ms[0] / ms[1], 2),
            "bytes": bytes_, "smaller": round(bytes_[0] / bytes_[1], 2),
        }  # fmt: skip
    return out


def main() -> None:
    """Print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=PLANS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--changes", type=json.loads, default={})
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(chosen.network, chosen.data, chosen.seed, chosen.changes)))


if __name__ == "__main__":
    main()
