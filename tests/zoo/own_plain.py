"""Layers in a row: multilayer perceptrons, LeNet, gates, upsampling, weights used twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import KERNEL, Entry, normal, reads, seeded, tokens, writes

WIDTHS = (10, 17, 13, 5)


def mlp() -> nn.Module:
    a, b, c, d = WIDTHS
    return nn.Sequential(
        nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.BatchNorm1d(c), nn.GELU(), nn.Linear(c, d)
    )


class Gated(nn.Module):
    """A gate and a value from one layer, by ``F.glu``; the first half is the value."""

    def __init__(self, inputs: int = 6, hidden: int = 11, outputs: int = 4) -> None:
        super().__init__()
        self.hidden = hidden
        self.inner = nn.Linear(inputs, 2 * hidden)
        self.outer = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.glu(self.inner(x)))


class LeNet(nn.Module):
    """LeCun 1998, with the size of the flattened image written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class HardCoded(nn.Module):
    """Every view with literal sizes: channels split in three and merged again, then flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 15, 3, padding=1)
        self.conv2 = nn.Conv2d(15, 9, 3, padding=1)
        self.conv3 = nn.Conv1d(9, 12, 3, padding=1)
        self.fc = nn.Linear(12 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x.view(-1, 3, 5, 8, 8).reshape(-1, 15, 8, 8)))
        x = F.avg_pool2d(x, 2).view(-1, 9, 16)
        x = torch.tanh(self.conv3(x))
        return self.fc(x.reshape(-1, 192))


class PixelShuffle(nn.Module):
    """Super-resolution: a channel of the upsampled image is ``scale ** 2`` channels before."""

    def __init__(self, width: int = 10, inner: int = 7, scale: int = 2) -> None:
        super().__init__()
        self.width, self.inner = width, inner
        self.first = nn.Conv2d(3, width, 5, padding=2)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.grow = nn.Conv2d(width, inner * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        self.last = nn.Conv2d(inner, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x + torch.tanh(self.body(x))
        return self.last(F.leaky_relu(self.shuffle(self.grow(x)), 0.1))


class SharedConv(nn.Module):
    """One convolution applied twice: its input channels are its output channels."""

    def __init__(self, width: int = 11, outputs: int = 4) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.twice = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.twice(F.relu(self.twice(x))))
        return self.fc(x.amax((2, 3)))


class TiedEmbedding(nn.Module):
    """The output layer is the embedding; no norm holds the width of the embedding."""

    def __init__(self, vocabulary: int = 37, width: int = 12, hidden: int = 19) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.embedding = nn.Embedding(vocabulary, width)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(torch.tanh(self.outer(torch.sigmoid(self.inner(self.embedding(ids))))))


class Buffers(nn.Module):
    """Constants per channel that no parameter holds."""

    def __init__(self, width: int = 9, second: int = 13) -> None:
        super().__init__()
        self.width, self.second = width, second
        self.conv1 = nn.Conv2d(3, width, 3)
        self.conv2 = nn.Conv2d(width, second, 3)
        self.fc = nn.Linear(second, 4)
        self.register_buffer("mean", torch.randn(3, 1, 1))
        self.register_buffer("scale", torch.rand(1, width, 1, 1) + 0.5)
        self.register_buffer("flags", torch.arange(second) % 3 != 0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x - self.mean)) * self.scale
        x = self.conv2(x).mean((-2, -1))
        return self.fc(torch.where(self.flags, x, torch.zeros_like(x)))


def _mlp_units() -> dict[str, int]:
    return {"neurons": sum(WIDTHS[1:-1])}


def _lenet_units() -> dict[str, int]:
    m = LeNet()
    return {
        "channels": m.conv1.out_channels + m.conv2.out_channels,
        "neurons": m.fc1.out_features + m.fc2.out_features,
    }


def _hard_coded_units() -> dict[str, int]:
    m = HardCoded()
    # conv1 is split 3 x 5 and merged: the factor with more indices gives the units.
    return {
        "split channels": max(3, 5),
        "channels": m.conv2.out_channels + m.conv3.out_channels,
    }


ENTRIES = [
    Entry(
        "mlp",
        seeded(mlp),
        normal(2, WIDTHS[0]),
        _mlp_units,
        reads("0") | writes("5"),
        core=True,
    ),
    Entry(
        "gated",
        seeded(Gated),
        normal(2, 6),
        lambda: {"neurons": Gated().hidden},
        reads("inner") | writes("outer"),
    ),
    Entry(
        "lenet",
        seeded(LeNet),
        normal(2, 1, 32, 32),
        _lenet_units,
        writes("fc3") | KERNEL,
    ),
    Entry(
        "hard-coded views",
        seeded(HardCoded),
        normal(2, 3, 8, 8),
        _hard_coded_units,
        reads("conv1") | writes("fc") | KERNEL,
        note="every size in forward is a number: only the rewritten graph can be smaller",
    ),
    Entry(
        "pixel shuffle",
        seeded(PixelShuffle),
        normal(2, 3, 6, 5),
        lambda: {"residual channels": PixelShuffle().width, "upsampled": PixelShuffle().inner},
        reads("first") | writes("last") | KERNEL,
    ),
    Entry(
        "shared convolution",
        seeded(SharedConv),
        normal(2, 3, 7, 6),
        lambda: {"channels": SharedConv().width},
        reads("stem") | writes("fc") | KERNEL,
    ),
    Entry(
        "tied embedding",
        seeded(TiedEmbedding),
        lambda: tokens(37, 2, 5),
        lambda: {"width": TiedEmbedding().width, "neurons": TiedEmbedding().hidden},
        {"embedding.weight:0": "a row per word: looked up, and the output's classes"},
    ),
    Entry(
        "buffers",
        seeded(Buffers),
        normal(2, 3, 8, 7),
        lambda: {"channels": Buffers().width + Buffers().second},
        reads("conv1") | writes("fc") | KERNEL,
    ),
]
