"""A task: a model, its data and how it is trained and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus._common.given import given_batches, given_hooks
from prunus._common.kinds import given_number, kind_of
from prunus._common.metrics import Value
from prunus._common.scores import Scores
from prunus.errors import InputError


@dataclass(frozen=True)
class Task:
    """Everything that ``prunus run`` needs to train and judge a model.

    Attributes:
        model: makes the model, freshly initialized (or loads a trained one).
        optimizer: makes the optimizer from the parameters.
        loss: ``(model, batch) -> scalar``.
        metric: ``(model, batches) -> float``, or a value for each item ``[n]``, whose mean it is
            and whose spread gives the test metric an interval, or :class:`Scores`, which have the
            items' classes as well; the model is in eval mode.
        train: batches, iterated once an epoch; with a ``len()``.
        validation: batches that choices use.
        test: batches used once, at the end.
        example: an input of the model (or a tuple of inputs), for counting its cost.
        calibration: batches for criteria that need gradients; by default some of ``train``.
        train_sample: training batches on which the metric is computed as well, to see the gap.
        metric_name: what reports call the metric.
    """

    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    loss: Callable[[nn.Module, Any], Tensor]
    metric: Callable[[nn.Module, Iterable[Any]], Value]
    train: Iterable[Any]
    validation: Iterable[Any]
    test: Iterable[Any] | None = None
    example: Any = None
    calibration: Iterable[Any] | None = None
    train_sample: Iterable[Any] | None = None
    metric_name: str = "accuracy"


def given_task(task: Task) -> Task:
    """A task that can be run.

    Raises:
        InputError: if something that it needs is missing, or cannot be called as it will be.
    """
    for name in ("model", "optimizer", "loss", "metric"):
        if (value := getattr(task, name)) is None or not callable(value):
            raise InputError(f"Task: {name} is {kind_of(value)}: give a function")
    given_hooks(loss=task.loss, metric=task.metric)
    for name in ("train", "validation"):
        batches = getattr(task, name)
        if batches is None:
            raise InputError(f"Task: {name} is None: give batches")
        if not isinstance(batches, Iterator):  # which a look would use up
            given_batches(batches, f"Task: {name}")
    return task


class Batches:
    """Tensors cut into batches, in a new order every epoch.

    The order comes from torch's generator, which a run sets from (seed, epoch).

    >>> [x.tolist() for x, in Batches(torch.arange(3), size=2, shuffle=False)]
    [[0, 1], [2]]
    """

    def __init__(self, *tensors: Tensor, size: int, shuffle: bool) -> None:
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or not tensor.dim():
                raise InputError(f"Batches takes tensors [n, …], not {kind_of(tensor)}")
        if len({len(t) for t in tensors}) != 1 or len(tensors[0]) == 0:
            raise InputError(
                f"Batches needs tensors of equal length, got {[len(t) for t in tensors]}"
            )
        given_number(size, "the batch size", least=1, whole=True)
        self.tensors, self.size, self.shuffle = tensors, size, shuffle

    def __len__(self) -> int:
        return -(-len(self.tensors[0]) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        count = len(self.tensors[0])
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for chosen in order.split(self.size):
            yield tuple(t[chosen] for t in self.tensors)


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch of inputs ``[b, ...]`` and classes ``[b]``."""
    inputs, classes = batch
    return nn.functional.cross_entropy(model(inputs), classes)


def hits(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Of each input, whether its highest output is the right class: 0 or 1, ``[n]``."""
    found = [model(inputs).argmax(dim=1) == classes for inputs, classes in batches]
    return torch.cat(found).double()


def by_class(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """Of each input, whether its highest output is its class, with the classes."""
    batches = list(batches)
    return Scores(hits(model, batches), torch.cat([c for _, c in batches]), "higher")


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of inputs whose highest output is the right class, 0 to 1."""
    return float(hits(model, batches).mean())
