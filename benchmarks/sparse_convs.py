"""Convolutions and networks of them, for benchmarks/sparse.py: names, models and examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from compaction_time import resnet50

Cases = Iterator[tuple[str, nn.Module, Any]]
Prune = Callable[[nn.Module, float], nn.Module]
POINTWISE = ((64, 256, 56), (512, 128, 28), (256, 1024, 14), (2048, 512, 7))
SQUARE = ((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7))
"""Of ResNet-50: channels in, channels out, height and width."""


def convolutions(shapes: tuple[tuple[int, int, int], ...], kernel: int, prune: Prune) -> Any:
    """Single layers with a bias and ReLU, batch 1."""

    def row(sparsity: float) -> Cases:
        for inputs, outputs, size in shapes:
            torch.manual_seed(0)
            layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
            model = prune(nn.Sequential(layer, nn.ReLU()), sparsity)
            yield f"{inputs}→{outputs}, {size}×{size}", model, torch.randn(1, inputs, size, size)

    return row


def whole(prune: Prune) -> Any:
    """ResNet-50 on one picture, zeros in every convolution and in the classifier."""

    def row(sparsity: float) -> Cases:
        torch.manual_seed(0)
        model = resnet50()
        for module in model.modules():  # norms as training leaves them: none is the identity
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1)
                nn.init.normal_(module.bias, 0, 0.1)
        yield "ResNet-50", prune(model, sparsity), torch.randn(1, 3, 224, 224)

    return row
