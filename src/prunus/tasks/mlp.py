"""The 10-20-10 network of the method's source text, on real data with ten inputs."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn

from prunus.tasks._table import classification, split
from prunus.tasks.base import Task


def mlp(*, batch: int = 32, rate: float = 0.05) -> Task:
    """MLP: 10-20-10 on scikit-learn's digits reduced to their ten principal components.

    The components are those of the training images; 1,197 train, 300 validate, 300 test.

    Source: the network of the method's source text (see docs/source_text.md).
    """
    data = load_digits()
    classes = torch.tensor(data.target)
    parts = split(len(classes), 300)
    reduce = PCA(10, whiten=True, svd_solver="full").fit(data.data[parts[0].numpy()])
    inputs = torch.tensor(reduce.transform(data.data), dtype=torch.float32)
    return classification(network, inputs, classes, parts, batch=batch, rate=rate)


def network() -> nn.Module:
    """10-20-10."""
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10))
