"""Handwritten digits, embedded: 1,797 real 8×8 images from scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from prunus.tasks.base import Batches, Task, by_class, classification_loss


def digits(*, batch: int = 64, rate: float = 0.05) -> Task:
    """Digits: a small CNN on scikit-learn's digits, SGD with momentum 0.9.

    1,197 images to train, 300 to validate, 300 to test, drawn with a fixed seed.

    Source: Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits.
    """
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).div_(8).sub_(1)[:, None]
    classes = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, validation, test = order[:-600], order[-600:-300], order[-300:]

    def batches(chosen: torch.Tensor, *, shuffle: bool = False) -> Batches:
        return Batches(images[chosen], classes[chosen], size=batch, shuffle=shuffle)

    return Task(
        model=small_cnn,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
        loss=classification_loss,
        metric=by_class,
        train=batches(train, shuffle=True),
        validation=batches(validation),
        test=batches(test),
        example=images[:1],
        calibration=list(batches(train[:512])),
        train_sample=batches(train[:300]),
    )


def small_cnn() -> nn.Module:
    """Two convolutions and two linear layers, 38,282 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
