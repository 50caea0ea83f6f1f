"""Convolutional networks whose layers are added: ResNet, option A, pyramids, gates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import KERNEL, Entry, normal, reads, seeded, writes


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """He 2015: 1×1, 3×3, 1×1 with four times the width, and a projected shortcut if needed."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = conv_bn(inputs, width, 1)
        self.conv2 = conv_bn(width, width, 3, stride)
        self.conv3 = conv_bn(width, outputs, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.conv3(y) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet with bottlenecks; the defaults are the widths and depths of ResNet-50."""

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        stem: int = 64,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.widths, self.depths, self.stem_width = widths, depths, stem
        self.stem = conv_bn(3, stem, 7, 2)
        blocks, inputs = [], stem
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for i in range(depth):
                blocks.append(Bottleneck(inputs, width, 2 if stage and not i else 1))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        x = F.adaptive_avg_pool2d(self.blocks(x), 1)
        return self.fc(torch.flatten(x, 1))

    def units(self) -> dict[str, int]:
        """The stem, one stream per stage, two inner convolutions per block."""
        inner = sum(2 * w * d for w, d in zip(self.widths, self.depths, strict=True))
        streams = sum(4 * w for w in self.widths)
        return {"stem": self.stem_width, "streams": streams, "inner channels": inner}


def small_resnet() -> ResNet:
    return ResNet(widths=(5, 7), depths=(2, 2), stem=9, classes=6)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; the shortcut of option A takes every second pixel and pads."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = (outputs - inputs) // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet for CIFAR with option A: the stages' streams are one, padded at both ends."""

    def __init__(self, widths: Sequence[int] = (8, 16, 32), depth: int = 2) -> None:
        super().__init__()
        self.widths, self.depth = widths, depth
        self.conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for i in range(depth):
                blocks.append(BasicBlock(inputs, width, 2 if stage and not i else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        x = F.avg_pool2d(x, x.size()[3])
        return self.fc(x.view(x.size(0), -1))

    def units(self) -> dict[str, int]:
        """A padded channel is the same channel: the last stage's stream holds all the others."""
        return {
            "stream": self.widths[-1],
            "inner channels": self.depth * sum(self.widths),
        }


class Pyramid(nn.Module):
    """PyramidNet: every block is wider by ``step``; zeros are concatenated to the shortcut."""

    def __init__(self, first: int = 6, step: int = 3, blocks: int = 3) -> None:
        super().__init__()
        self.widths = [first + i * step for i in range(blocks + 1)]
        pairs = list(pairwise(self.widths))
        self.stem = nn.Conv2d(3, first, 3, padding=1)
        self.a = nn.ModuleList(conv_bn(i, o, 3) for i, o in pairs)
        self.b = nn.ModuleList(conv_bn(o, o, 3) for _, o in pairs)
        self.fc = nn.Linear(self.widths[-1], 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for a, b in zip(self.a, self.b, strict=True):
            y = b(F.relu(a(x)))
            n, c, h, w = x.shape
            x = y + torch.cat([x, torch.zeros(n, y.size(1) - c, h, w, device=x.device)], dim=1)
        return self.fc(x.mean(dim=(2, 3)))

    def units(self) -> dict[str, int]:
        return {"stream": self.widths[-1], "inner channels": sum(self.widths[1:])}


class SqueezeExcite(nn.Module):
    """Hu 2017: a residual block whose channels are weighed by two small layers."""

    def __init__(self, width: int = 12, squeezed: int = 5, blocks: int = 2) -> None:
        super().__init__()
        self.width, self.squeezed, self.blocks = width, squeezed, blocks
        self.stem = conv_bn(3, width, 3)
        self.convs = nn.ModuleList(conv_bn(width, width, 3) for _ in range(blocks))
        self.squeeze = nn.ModuleList(nn.Linear(width, squeezed) for _ in range(blocks))
        self.excite = nn.ModuleList(nn.Linear(squeezed, width) for _ in range(blocks))
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, squeeze, excite in zip(self.convs, self.squeeze, self.excite, strict=True):
            y = conv(x)
            b, c, _, _ = y.size()
            weight = squeeze(F.adaptive_avg_pool2d(y, 1).view(b, c))
            weight = torch.sigmoid(excite(F.relu(weight))).view(b, c, 1, 1)
            x = F.relu(x + y * weight.expand_as(y))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def units(self) -> dict[str, int]:
        return {"stream": self.width, "squeezed": self.blocks * self.squeezed}


class Highway(nn.Module):
    """A highway: the gate of a branch is computed from the other, and both end in one product."""

    def __init__(self, width: int = 7, outputs: int = 3) -> None:
        super().__init__()
        self.width = width
        self.left = nn.Conv1d(4, width, 3, padding=1)
        self.right = nn.Conv1d(4, width, 5, padding=2)
        self.out = nn.Conv1d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.left(x))
        return self.out(gate * self.right(x) + (1 - gate) * torch.tanh(self.right(x)))


def _entry(name: str, model: type[Any], pinned: dict[str, str], *shape: int) -> Entry:
    return Entry(name, seeded(model), normal(*shape), lambda: model().units(), pinned | KERNEL)


ENDS = reads("stem.0") | writes("fc")

ENTRIES = [
    Entry(
        "resnet-50",
        seeded(ResNet),
        normal(2, 3, 32, 32),
        lambda: ResNet().units(),
        ENDS | KERNEL,
        note="the true widths: 11,456 units; the image is small",
    ),
    Entry(
        "bottleneck resnet",
        seeded(small_resnet),
        normal(2, 3, 32, 32),
        lambda: small_resnet().units(),
        ENDS | KERNEL,
        core=True,
    ),
    _entry("cifar resnet, option A", CifarResNet, reads("conv") | writes("fc"), 2, 3, 16, 16),
    _entry("pyramid, zeros concatenated", Pyramid, reads("stem") | writes("fc"), 2, 3, 6, 5),
    _entry("squeeze and excite", SqueezeExcite, ENDS, 2, 3, 6, 5),
    Entry(
        "highway",
        seeded(Highway),
        normal(2, 4, 10),
        lambda: {"channels": Highway().width},
        reads("left", "right") | writes("out") | KERNEL,
    ),
]
