"""Convolutions that do not mix all channels: depthwise, grouped, shuffled; and concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import KERNEL, Entry, normal, reads, seeded, writes


def conv_bn(
    inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias and its batch norm."""
    pad = kernel // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class MobileNet(nn.Module):
    """Howard 2017: a depthwise channel is the channel before it."""

    def __init__(self, widths: Sequence[int] = (6, 10, 14, 9)) -> None:
        super().__init__()
        self.widths = widths
        self.stem = conv_bn(3, widths[0], 3, stride=2)
        pairs = list(pairwise(widths))
        self.depth = nn.ModuleList(conv_bn(i, i, 3, groups=i) for i, _ in pairs)
        self.point = nn.ModuleList(conv_bn(i, o) for i, o in pairs)
        self.fc = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        for depth, point in zip(self.depth, self.point, strict=True):
            x = F.relu6(point(F.relu6(depth(x))))
        return self.fc(x.mean([2, 3]))

    def units(self) -> dict[str, int]:
        return {"channels": sum(self.widths)}


class DepthMultiplier(nn.Module):
    """Depthwise with several outputs per input: they fall with their input."""

    def __init__(self, width: int = 7, times: int = 3, last: int = 5) -> None:
        super().__init__()
        self.width, self.last = width, last
        self.stem = nn.Conv2d(3, width, 3)
        self.depth = nn.Conv2d(width, width * times, 3, groups=width)
        self.point = nn.Conv2d(width * times, last, 1)
        self.out = nn.Linear(last, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depth(F.silu(self.stem(x))))
        return self.out(self.point(x).mean((2, 3)))

    def units(self) -> dict[str, int]:
        return {"input channels": self.width, "channels": self.last}


class ResNeXt(nn.Module):
    """Xie 2016: more groups than channels in each, so whole groups go."""

    def __init__(self, width: int = 20, groups: int = 8, each: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.width, self.groups, self.each, self.blocks = width, groups, each, blocks
        inner = groups * each
        self.stem = conv_bn(3, width, 3)
        self.a = nn.ModuleList(conv_bn(width, inner) for _ in range(blocks))
        self.b = nn.ModuleList(conv_bn(inner, inner, 3, groups=groups) for _ in range(blocks))
        self.c = nn.ModuleList(conv_bn(inner, width) for _ in range(blocks))
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for a, b, c in zip(self.a, self.b, self.c, strict=True):
            x = F.relu(x + c(F.relu(b(F.relu(a(x))))))
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))

    def units(self) -> dict[str, int]:
        assert self.groups >= self.each
        return {"stream": self.width, "groups": self.blocks * self.groups}


class FewGroups(nn.Module):
    """Two groups: the same channel of both goes, on the way in and on the way out apart."""

    def __init__(self, groups: int = 2, before: int = 6, after: int = 5, last: int = 7) -> None:
        super().__init__()
        self.groups, self.before, self.after, self.last = groups, before, after, last
        self.first = nn.Conv2d(3, groups * before, 3)
        self.grouped = nn.Conv2d(groups * before, groups * after, 3, groups=groups)
        self.point = nn.Conv2d(groups * after, last, 1)
        self.out = nn.Linear(last, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.grouped(F.elu(self.first(x))))
        return self.out(self.point(x).mean((2, 3)))

    def units(self) -> dict[str, int]:
        assert self.groups < min(self.before, self.after)
        return {"in the groups": self.before + self.after, "channels": self.last}


class ShuffleBlock(nn.Module):
    """Ma 2018: half of the channels pass by; then the halves are interleaved."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        before = inputs if stride > 1 else half
        if stride > 1:
            self.depth1 = conv_bn(inputs, inputs, 3, stride=stride, groups=inputs)
            self.point1 = conv_bn(inputs, half)
        self.first = conv_bn(before, half)
        self.depth2 = conv_bn(half, half, 3, stride=stride, groups=half)
        self.last = conv_bn(half, half)

    def branch(self, x: Tensor) -> Tensor:
        return F.relu(self.last(self.depth2(F.relu(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = torch.cat((F.relu(self.point1(self.depth1(x))), self.branch(x)), dim=1)
        else:
            left, right = x.chunk(2, dim=1)
            x = torch.cat((left, self.branch(right)), dim=1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class ShuffleNet(nn.Module):
    """ShuffleNet v2."""

    def __init__(
        self, stem: int = 5, stages: Sequence[tuple[int, int]] = ((12, 3), (20, 2)), last: int = 17
    ) -> None:
        super().__init__()
        self.stem_width, self.stages, self.last_width = stem, stages, last
        self.stem = conv_bn(3, stem, 3, stride=2)
        blocks, inputs = [], stem
        for width, depth in stages:
            for i in range(depth):
                blocks.append(ShuffleBlock(inputs, width, 1 if i else 2))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_bn(inputs, last)
        self.fc = nn.Linear(last, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1))
        return self.fc(F.relu(self.last(x)).mean([2, 3]))

    def units(self) -> dict[str, int]:
        """The same channel of both halves goes together, so a stage's stream has half its width.

        The first block's halves make ``width / 2`` classes. Each later block ties its new half to
        the one that passes by and makes no class of its own; the other classes end in its branch.
        """
        return {
            "stem": self.stem_width,
            "streams": sum(width // 2 for width, _ in self.stages),
            "inner channels": sum(depth * width // 2 for width, depth in self.stages),
            "last": self.last_width,
        }


class DenseNet(nn.Module):
    """Huang 2016: every layer reads all before it; two blocks and a transition between them."""

    def __init__(
        self, stem: int = 8, growth: int = 5, layers: int = 3, bottleneck: int = 2
    ) -> None:
        super().__init__()
        self.stem_width, self.growth, self.inner = stem, growth, bottleneck * growth
        self.layers = layers
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.block1, width = self._block(stem)
        self.between = width // 2
        self.transition = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, self.between, 1), nn.AvgPool2d(2)
        )
        self.block2, width = self._block(self.between)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 6)

    def _block(self, width: int) -> tuple[nn.ModuleList, int]:
        made = nn.ModuleList()
        for _ in range(self.layers):
            made.append(
                nn.Sequential(
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, self.inner, 1, bias=False),
                    nn.BatchNorm2d(self.inner),
                    nn.ReLU(),
                    nn.Conv2d(self.inner, self.growth, 3, padding=1, bias=False),
                )
            )
            width += self.growth
        return made, width

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.block1:
            x = torch.cat([x, layer(x)], 1)
        features = [self.transition(x)]
        for layer in self.block2:
            features.append(layer(torch.cat(features, 1)))
        x = F.relu(self.norm(torch.cat(features, 1)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))

    def units(self) -> dict[str, int]:
        return {
            "stem": self.stem_width,
            "bottlenecks": 2 * self.layers * self.inner,
            "grown": 2 * self.layers * self.growth,
            "transition": self.between,
        }


def _entry(
    name: str, model: type[Any], ends: dict[str, str], *shape: int, core: bool = False
) -> Entry:
    def units() -> dict[str, int]:
        return model().units()

    return Entry(name, seeded(model), normal(*shape), units, ends | KERNEL, core=core)


ENDS = reads("stem.0") | writes("fc")
INSIDE = "whole groups go: the channels inside one stay"

ENTRIES = [
    _entry("mobilenet v1", MobileNet, ENDS, 2, 3, 12, 10),
    _entry("depth multiplier", DepthMultiplier, reads("stem") | writes("out"), 2, 3, 9, 8),
    _entry("resnext", ResNeXt, ENDS | {"b.*.0.weight:1": INSIDE}, 2, 3, 6, 5),
    _entry("two groups", FewGroups, reads("first") | writes("out"), 2, 3, 9, 8),
    _entry("shufflenet v2", ShuffleNet, ENDS, 2, 3, 32, 28, core=True),
    _entry("densenet", DenseNet, reads("stem") | writes("fc"), 2, 3, 8, 6, core=True),
]
