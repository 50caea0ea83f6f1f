"""The digits again, for a network with batch norms: what criteria of their scales need."""

from __future__ import annotations

import dataclasses

from torch import nn

from prunus.tasks.base import Task
from prunus.tasks.digits import digits, small_cnn


def digits_normed(*, batch: int = 64, rate: float = 0.05) -> Task:
    """Digits with norms: the small CNN of ``digits`` with a batch norm behind each convolution.

    Source: Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits.
    """
    return dataclasses.replace(digits(batch=batch, rate=rate), model=normed_cnn)


def normed_cnn() -> nn.Module:
    """Two convolutions with norms and two linear layers."""
    first, relu, second, *rest = small_cnn().children()
    return nn.Sequential(first, nn.BatchNorm2d(16), relu, second, nn.BatchNorm2d(32), *rest)
