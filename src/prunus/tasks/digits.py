"""Handwritten digits, embedded: 1,797 real 8×8 images from scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from prunus.tasks._table import classification, split
from prunus.tasks.base import Task


def digits(*, batch: int = 64, rate: float = 0.05) -> Task:
    """Digits: a small CNN on scikit-learn's digits, SGD with momentum 0.9.

    1,197 images to train, 300 to validate, 300 to test, drawn with a fixed seed.

    Source: Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits.
    """
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).div_(8).sub_(1)[:, None]
    classes = torch.tensor(data.target)
    parts = split(len(images), 300)
    return classification(small_cnn, images, classes, parts, batch=batch, rate=rate)


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
