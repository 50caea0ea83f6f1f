"""The 10-20-10 network of the method's source text, on real data with ten inputs."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn

from prunus.tasks.base import Batches, Task, by_class, classification_loss


def mlp(*, batch: int = 32, rate: float = 0.05) -> Task:
    """MLP: 10-20-10 on scikit-learn's digits reduced to their ten principal components.

    The components are those of the training images; 1,197 train, 300 validate, 300 test.

    Source: the network of the method's source text (see docs/source_text.md).
    """
    data = load_digits()
    classes = torch.tensor(data.target)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    train, validation, test = order[:-600], order[-600:-300], order[-300:]
    reduce = PCA(10, whiten=True, svd_solver="full").fit(data.data[train.numpy()])
    inputs = torch.tensor(reduce.transform(data.data), dtype=torch.float32)

    def batches(chosen: torch.Tensor, *, shuffle: bool = False) -> Batches:
        return Batches(inputs[chosen], classes[chosen], size=batch, shuffle=shuffle)

    return Task(
        model=lambda: nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
        loss=classification_loss,
        metric=by_class,
        train=batches(train, shuffle=True),
        validation=batches(validation),
        test=batches(test),
        example=inputs[:1],
        calibration=list(batches(train[:512])),
        train_sample=batches(train[:300]),
    )
