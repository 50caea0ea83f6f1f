"""Disease prediction: benign or malignant, from measurements of cell nuclei. Embedded."""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from prunus.tasks.base import Batches, Task, by_class, classification_loss


def diagnosis(*, batch: int = 32, rate: float = 0.02) -> Task:
    """Diagnosis: a 30-64-32-2 network on scikit-learn's breast cancer data.

    369 patients to train, 100 to validate, 100 to test, drawn with a fixed seed.

    Source: Street, Wolberg, Mangasarian 1993, Breast Cancer Wisconsin (Diagnostic).
    """
    data = load_breast_cancer()
    values = torch.tensor(data.data, dtype=torch.float32)
    classes = torch.tensor(data.target)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    train, validation, test = order[:-200], order[-200:-100], order[-100:]
    inputs = (values - values[train].mean(0)) / values[train].std(0)

    def batches(chosen: torch.Tensor, *, shuffle: bool = False) -> Batches:
        return Batches(inputs[chosen], classes[chosen], size=batch, shuffle=shuffle)

    return Task(
        model=network,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
        loss=classification_loss,
        metric=by_class,
        train=batches(train, shuffle=True),
        validation=batches(validation),
        test=batches(test),
        example=inputs[:1],
        calibration=list(batches(train)),
        train_sample=batches(train[:100]),
    )


def network() -> nn.Module:
    """30-64-32-2."""
    return nn.Sequential(
        nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)
    )
