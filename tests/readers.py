"""What readers of the documentation have: a model, data, a training; all of it small."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.deployment import deploy
from prunus.tasks import digits, mnist
from prunus.tasks.base import Batches, Task
from prunus.tasks.base import accuracy as share

IMAGES = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))
CLASSES = (IMAGES.sum((1, 2, 3)) > 0).long()


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv2(self.conv1(images).relu()).relu().mean((2, 3)))


def accuracy(model: nn.Module) -> float:
    return float((model(IMAGES).argmax(1) == CLASSES).float().mean())


def train(model: nn.Module, run: prunus.Run) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.attach(optimizer)
    for inputs, classes in run.batches(_batches()):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), classes).backward()
        optimizer.step()


def my_task() -> Task:
    return Task(
        model=Net, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), metric=share,
        train=_batches(), validation=_batches(), test=_batches(), example=IMAGES[:1],
        calibration=[*_batches()],
    )  # fmt: skip


def _batches() -> Batches:
    return Batches(IMAGES, CLASSES, size=32, shuffle=False)


def reader() -> dict[str, Callable[[], Any]]:
    """What a block may name without saying where it is from, made when it is asked for."""
    model = functools.cache(Net)
    known: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch, "nn": lambda: nn, "prunus": lambda: prunus, "Net": lambda: Net,
        "model": model, "dense": functools.cache(Net), "images": lambda: IMAGES,
        "example": lambda: IMAGES[:4], "loader": _batches, "loss_of": lambda: F.cross_entropy,
        "accuracy": lambda: accuracy, "test_accuracy": lambda: accuracy, "train": lambda: train,
        "endless": lambda: lambda batches: itertools.chain.from_iterable(itertools.repeat(batches)),
        "optimizer": lambda: torch.optim.SGD(model().parameters(), lr=0.1),
        "masks": lambda: prunus.prune(Net(), _HALF, example=IMAGES[:4]).masks,
        "small": lambda: prunus.compact(Net(), known["masks"](), IMAGES[:4]),
        "my_task": my_task,
    }  # fmt: skip
    return known


_HALF = {"structure": "channel", "target": {"max_macs": 0.5}}


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what prunus brings be as small: the data of its tasks, the runtimes of ``auto``."""
    for module, name in ((digits, "digits"), (mnist, "mnist")):
        monkeypatch.setattr(module, name, _few(getattr(module, name)))
    every = deploy.candidates

    def quick(runtime: Any, *, quantized: bool) -> Any:
        names, offers = every(runtime, quantized=quantized)
        return names if runtime != "auto" else ["torch_export"], offers

    monkeypatch.setattr(deploy, "candidates", quick)
    monkeypatch.setattr("prunus.cli.run._report", lambda folder: None)
    for user in ("sweep", "summary"):
        module = importlib.import_module(f"prunus.sweep.{user}")
        monkeypatch.setattr(module, "why_not", lambda: "a test looks at none")


def _few(task: Callable[..., Task]) -> Callable[..., Task]:
    def made(**settings: Any) -> Task:
        images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        classes = (images.sum((1, 2, 3)) > 0).long()
        batches: Iterable[Any] = Batches(images, classes, size=64, shuffle=False)
        return Task(
            model=digits.small_cnn, loss=digits.classification_loss, metric=share,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
            train=batches, validation=batches, test=batches, example=images[:1],
            calibration=[*batches],
        )  # fmt: skip

    made.__signature__ = inspect.signature(task)  # type: ignore[attr-defined]
    return made
