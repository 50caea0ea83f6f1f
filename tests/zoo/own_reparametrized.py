"""Weights that are computed before they are used, and norms over groups of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from zoo.entry import KERNEL, Entry, normal, reads, seeded, writes


class WeightNorm(nn.Module):
    """Salimans 2016: a length and a direction per output channel."""

    def __init__(self, first: int = 8, second: int = 11) -> None:
        super().__init__()
        self.widths = (first, second)
        self.conv1 = weight_norm(nn.Conv1d(4, first, 3, padding=1))
        self.conv2 = weight_norm(nn.Conv1d(first, second, 3, padding=1))
        self.fc = weight_norm(nn.Linear(second, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc(x.amax(-1))

    def units(self) -> dict[str, int]:
        return {"channels": sum(self.widths)}


class SpectralNorm(nn.Module):
    """Miyato 2018: a weight over its largest singular value, estimated by two buffers."""

    def __init__(self, first: int = 8, second: int = 11) -> None:
        super().__init__()
        self.widths = (first, second)
        self.conv = spectral_norm(nn.Conv2d(3, first, 3, padding=1))
        self.fc1 = spectral_norm(nn.Linear(first, second))
        self.fc2 = nn.Linear(second, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv(x), 0.1).mean((2, 3))
        return self.fc2(F.relu(self.fc1(x)))

    def units(self) -> dict[str, int]:
        return {"channels and neurons": sum(self.widths)}


class StandardizedConv(nn.Conv2d):
    """Qiao 2019: each output channel's weight with mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = w - w.mean(dim=(1, 2, 3), keepdim=True)
        w = w / (w.var(dim=(1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardized(nn.Module):
    """A standardized weight's mean runs over its input channels: they stay."""

    def __init__(self, first: int = 6, second: int = 9, third: int = 20, groups: int = 5) -> None:
        super().__init__()
        self.first, self.groups = first, groups
        self.conv1 = StandardizedConv(3, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = StandardizedConv(second, third, 3, padding=1)
        self.norm = nn.GroupNorm(groups, third)
        self.fc = nn.Linear(third, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc(F.relu(self.norm(self.conv3(x))).mean((2, 3)))

    def units(self) -> dict[str, int]:
        return {"channels": self.first, "groups of the norm": self.groups}


class Norms(nn.Module):
    """Whole groups of a group norm, single channels of an instance norm, none of one group."""

    def __init__(self, groups: int = 4, each: int = 3, instance: int = 7, layer: int = 5) -> None:
        super().__init__()
        self.groups, self.instance = groups, instance
        self.conv1 = nn.Conv2d(3, groups * each, 3)
        self.norm1 = nn.GroupNorm(groups, groups * each)
        self.conv2 = nn.Conv2d(groups * each, instance, 3)
        self.norm2 = nn.InstanceNorm2d(instance, affine=True)
        self.conv3 = nn.Conv2d(instance, layer, 3)
        self.norm3 = nn.GroupNorm(1, layer)
        self.fc = nn.Linear(layer, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))

    def units(self) -> dict[str, int]:
        return {"groups of the norm": self.groups, "channels": self.instance}


class Mixed(nn.Module):
    """Softmax and cumulated sums mix channels, which pins them; a sum and a length do not."""

    def __init__(self, soft: int = 6, running: int = 7, summed: int = 8, unit: int = 9) -> None:
        super().__init__()
        self.summed, self.unit = summed, unit
        self.soft = nn.Linear(4, soft)
        self.running = nn.Linear(soft, running)
        self.summed_layer = nn.Linear(running, summed)
        self.unit_layer = nn.Linear(running, unit)
        self.out = nn.Linear(unit, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cumsum(self.running(torch.softmax(self.soft(x), -1)), dim=-1)
        total = torch.relu(self.summed_layer(x)).sum(-1, keepdim=True)
        y = F.normalize(self.unit_layer(x), dim=-1)
        return self.out(y * torch.sigmoid(total))

    def units(self) -> dict[str, int]:
        return {"summed": self.summed, "normalized to length 1": self.unit}


STANDARD = "its mean and variance run over it"
LAST = "fc.parametrizations.weight.original[01]:0"
POSITION = "a position in a kernel"

ENTRIES = [
    Entry(
        "weight norm",
        seeded(WeightNorm),
        normal(2, 4, 9),
        lambda: WeightNorm().units(),
        {
            "conv1.parametrizations.weight.original1:1": "reads the model's input",
            "*:2": POSITION,
            LAST: "is the model's output",
            "fc.bias:0": "is the model's output",
        },
        note="a row whose direction is masked to zero has no direction: 0 / 0",
    ),
    Entry(
        "spectral norm",
        seeded(SpectralNorm),
        normal(2, 3, 6, 5),
        lambda: SpectralNorm().units(),
        {"conv.parametrizations.weight.original:1": "reads the model's input"}
        | {"*:[23]": POSITION}
        | writes("fc2"),
        note="the masked weight has another largest singular value than the dense one",
    ),
    Entry(
        "weight standardization",
        seeded(Standardized),
        normal(2, 3, 6, 5),
        lambda: Standardized().units(),
        {
            "conv1.weight:1": "reads the model's input",
            "conv3.weight:1": STANDARD,
            "conv2.weight:0": STANDARD,
            "conv2.bias:0": STANDARD,
        }
        | writes("fc")
        | KERNEL,
    ),
    Entry(
        "norms",
        seeded(Norms),
        normal(2, 3, 9, 10),
        lambda: Norms().units(),
        {
            "conv1.weight:1": "reads the model's input",
            "conv3.weight:0": "normalized together with the others",
            "conv3.bias:0": "normalized together with the others",
            "norm3.*:0": "normalized together with the others",
            "fc.weight:1": "normalized together with the others",
        }
        | writes("fc")
        | KERNEL,
    ),
    Entry(
        "mixed channels",
        seeded(Mixed),
        normal(2, 4),
        lambda: Mixed().units(),
        reads("soft")
        | writes("soft", "running", "out")
        | {"running.weight:1": "a softmax runs over it"}
        | {
            f"{name}.weight:1": "a running sum reaches it"
            for name in ("summed_layer", "unit_layer")
        },
    ),
]
