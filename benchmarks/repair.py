"""What a repair brings back after a cut, before any training.

    PRUNUS_DATA=~/data python benchmarks/repair.py      (half an hour of one core)

ResNet-20 and ResNet-56 on CIFAR-10, cut once by magnitude to a share of their macs (channels) or of
their weights, then repaired on 512 training images. Accuracy on the 2,500 test images, with its
standard error; the dense network's beside it. Writes one line a row as it goes.
"""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

import torch
from torch import nn

import prunus
from prunus._common.environment import describe
from prunus._common.examples import tasks
from prunus.methods.catalog import module_at

CUTS: dict[str, dict[str, Any]] = {
    "20 % fewer macs": {"structure": "channel", "target": {"max_macs": 0.8}},
    "30 % fewer macs": {"structure": "channel", "target": {"max_macs": 0.7}},
    "50 % fewer macs": {"structure": "channel", "target": {"max_macs": 0.5}},
    "80 % zeros": {"target": 0.8},
    "90 % zeros": {"target": 0.9},
}
REPAIRS = (None, "batch_norm", "bias_correction", "least_squares", "reconstruct")
BLOCKS = {"resnet20": 3, "resnet56": 9}


def network(name: str) -> tuple[Any, nn.Module]:
    """The task, and the trained network."""
    file = module_at(tasks()["cifar10"])
    task = file.cifar10(blocks=BLOCKS[name], weights=f"{name}.safetensors")
    return task, task.model().eval()


def accuracy(model: nn.Module, batches: Any) -> tuple[float, float]:
    """Percent that are right, and its standard error."""
    with torch.no_grad():
        right = torch.cat([(model(x).argmax(1) == y).double() for x, y in batches])
    return 100 * float(right.mean()), 100 * float(right.std() / len(right) ** 0.5)


def main(names: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{describe()['processor']}, one thread, torch {torch.__version__}", flush=True)
    for name in names or BLOCKS:
        task, dense = network(name)
        print(f"{name:9} dense  {accuracy(dense, task.test)[0]:.2f}", flush=True)
        for cut, recipe in CUTS.items():
            for repair in REPAIRS:
                model, began = copy.deepcopy(dense), time.process_time()
                prunus.prune(
                    model, {**recipe, "repair": repair}, example=task.example, loss=task.loss,
                    calibration=task.calibration[:4], progress=False,
                )  # fmt: skip
                seconds = time.process_time() - began
                found, error = accuracy(model, task.test)
                print(
                    f"{name:9} {cut:16} {repair or 'nothing':16} {found:6.2f} ± {error:.2f}"
                    f"   {seconds:5.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])
