"""Disease prediction: benign or malignant, from measurements of cell nuclei. Embedded."""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from prunus.tasks._table import classification, split
from prunus.tasks.base import Task


def diagnosis(*, batch: int = 32, rate: float = 0.02) -> Task:
    """Diagnosis: a 30-64-32-2 network on scikit-learn's breast cancer data.

    369 patients to train, 100 to validate, 100 to test, drawn with a fixed seed.

    Source: Street, Wolberg, Mangasarian 1993, Breast Cancer Wisconsin (Diagnostic).
    """
    data = load_breast_cancer()
    values = torch.tensor(data.data, dtype=torch.float32)
    classes = torch.tensor(data.target)
    parts = split(len(values), 100)
    inputs = (values - values[parts[0]].mean(0)) / values[parts[0]].std(0)
    return classification(network, inputs, classes, parts, batch=batch, rate=rate)


def network() -> nn.Module:
    """30-64-32-2."""
    return nn.Sequential(
        nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)
    )
