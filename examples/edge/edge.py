"""The edge: keywords, small images, strange sounds: networks for boards without a system."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from prunus import Scores
from prunus.errors import InputError
from prunus.methods.catalog import module_at
from prunus.tasks._files import find_folder
from prunus.tasks._part import some, started
from prunus.tasks.base import Task, by_class

SOUNDS = module_at(Path(__file__).parents[1] / "spoken_digits/spoken_digits.py")
IMAGES = module_at(Path(__file__).parents[1] / "cifar10/cifar10.py")
FRAMES = 5
"""Frames in a row that the autoencoder sees."""
DAMAGES = ("whole", "hum", "clicks", "dropouts", "noise")
"""What happens to a recording that is to be found strange; the first does not."""


def edge(
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    network: Literal["keywords", "images", "anomalies"] = "keywords",
    batch: int = 64,
    rate: float = 0.003,
    part: float = 1.0,
) -> Task:
    """The edge: one of three networks of the size of MLPerf Tiny's, whose data lies in ``folder``.

    ``keywords``: the spoken digits (``speech-digits/recordings.zip``), by depthwise-separable
    convolutions. ``images``: CIFAR-10 (``cifar10/train.zip`` and ``test.zip``), by a ResNet-8.
    ``anomalies``: an autoencoder that learns the recordings, and finds those strange that hum,
    click, drop out or hiss, by how badly it repeats them; its metric is the area under the
    receiver's curve. Without ``folder`` the data is looked for in ``$PRUNUS_DATA``. ``part`` of
    the training data trains; ``weights`` is a file to start from (the ``dense.safetensors`` of a
    run).

    Source: Banbury et al. 2021, arXiv:2106.07597; Zhang et al. 2017, arXiv:1711.07128.
    """

    def place(name: str, holds: str) -> Path:
        return find_folder("edge", folder and folder / name, name, holds)

    if network == "images":
        where = place("cifar10", "train.zip and test.zip")
        made: Task = IMAGES.cifar10(
            folder=where, weights=None, blocks=1, batch=batch, rate=10 * rate, part=part
        )
        return replace(made, model=started("edge", made.model, weights), metric=by_class)
    if network not in ("keywords", "anomalies"):
        raise InputError(f"task edge: network is '{network}'; use keywords, images or anomalies")
    where = place("speech-digits", "recordings.zip")
    if network == "keywords":
        made = SOUNDS.spoken_digits(folder=where, batch=batch, rate=rate, part=part)
        return replace(made, model=started("edge", Keywords, weights), metric=by_class)
    features, _, index = SOUNDS.read(where / "recordings.zip")
    parts = {
        "training": features[index >= 8],
        "validation": features[(index >= 5) & (index < 8)],
        "test": features[index < 5],
    }
    for name, held in parts.items():
        if not len(held):
            raise InputError(
                f"task edge: '{where}' has no recordings for {name}: index 0 to 4 tests, 5 to 7 "
                "validates, the rest trains"
            )
    training = parts["training"]
    parts["training"] = training = training[some("edge", len(training), part)]
    sounds = {name: Sounds(held) for name, held in parts.items()}
    return Task(
        model=started("edge", Autoencoder, weights),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate / 3),
        loss=repeated,
        metric=told_apart,
        train=Windows(training, size=8 * batch),
        validation=sounds["validation"],
        test=sounds["test"],
        example=windows(training[:1]).flatten(0, 1)[:2],
        calibration=list(Windows(training, size=8 * batch))[:8],
        train_sample=Sounds(training[::4]),
        metric_name="area under the curve",
    )


# --- keywords


class Keywords(nn.Module):
    """A convolution, four depthwise-separable ones, a linear layer (DS-CNN)."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(separable(width, 2 if i == 0 else 1) for i in range(4)))
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[b, 1, bands, frames]`` to scores ``[b, classes]``."""
        x = self.blocks(self.first(features)).mean((2, 3))
        return self.head(self.dropout(x))  # type: ignore[no-any-return]


def separable(width: int, stride: int) -> nn.Sequential:
    """Each channel by itself, then each place by itself."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


# --- anomalies


class Autoencoder(nn.Module):
    """Linear layers down to eight numbers and up again."""

    def __init__(self, inputs: int = FRAMES * SOUNDS.BANDS, width: int = 128) -> None:
        super().__init__()
        sizes = (inputs, width, width, width, 8, width, width, width)
        self.layers = nn.Sequential(*(
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())
            for a, b in pairwise(sizes)
        ))  # fmt: skip
        self.out = nn.Linear(width, inputs)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows ``[b, inputs]`` to the same, as far as it knows them."""
        return self.out(self.layers(windows))  # type: ignore[no-any-return]


def windows(features: Tensor) -> Tensor:
    """Features ``[n, 1, bands, frames]`` to ``[n, windows, FRAMES·bands]``, one at each frame.

    >>> windows(torch.zeros(2, 1, 40, 100)).shape
    torch.Size([2, 96, 200])
    """
    return features[:, 0].unfold(-1, FRAMES, 1).permute(0, 2, 3, 1).flatten(2)


class Windows:
    """Batches of windows of all recordings, in a new order every epoch."""

    def __init__(self, features: Tensor, *, size: int) -> None:
        self.windows, self.size = windows(features).flatten(0, 1), size

    def __len__(self) -> int:
        return -(-len(self.windows) // (4 * self.size))

    def __iter__(self) -> Iterator[Tensor]:
        """A quarter of them an epoch: neighbors are nearly the same."""
        for rows in torch.randperm(len(self.windows))[: len(self) * self.size].split(self.size):
            yield self.windows[rows]


class Sounds:
    """Recordings as they are, and each damaged in one way: windows, and which way."""

    def __init__(self, features: Tensor) -> None:
        self.features, self.kinds = features, torch.arange(len(features)) % (len(DAMAGES) - 1) + 1

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield windows(self.features), torch.zeros(len(self.features), dtype=torch.long)
        source = torch.Generator().manual_seed(0)
        pairs = zip(self.features, self.kinds.tolist(), strict=True)
        damaged = torch.stack([damage(one, DAMAGES[kind], source) for one, kind in pairs])
        yield windows(damaged), self.kinds


def damage(features: Tensor, kind: str, source: torch.Generator) -> Tensor:
    """A recording's features ``[1, bands, frames]`` with a disturbance of one kind.

    ``hum``: two bands are loud throughout; ``clicks``: three frames are loud in all bands;
    ``dropouts``: six frames are silent; ``noise``: a hiss over everything.
    """
    made = features.clone()
    bands, frames = made.shape[1:]
    if kind == "hum":
        band = int(torch.randint(bands - 1, (), generator=source))
        made[:, band : band + 2] = made[:, band : band + 2].clamp_min(1.5)
    elif kind == "noise":
        made += 0.5 * torch.randn(made.shape, generator=source)
    elif kind in ("clicks", "dropouts"):
        count = 3 if kind == "clicks" else 6
        rows = torch.randperm(frames, generator=source)[:count]
        made[:, :, rows] = 2.0 if kind == "clicks" else -1.5
    return made


def repeated(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean squared error of what it repeats."""
    return nn.functional.mse_loss(model(batch), batch)


def told_apart(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """The area under the receiver's curve of how badly each recording is repeated."""
    rows = []
    for seen, kinds in batches:
        off = (model(seen.flatten(0, 1)).view_as(seen) - seen).square()
        strange = off.mean(-1).topk(8, dim=1).values.mean(1)  # its strangest moments
        rows.append(torch.stack([strange, (kinds > 0).to(strange)], 1))
    return Scores(torch.cat(rows), better="higher", figure=area)


def area(rows: Tensor) -> float:
    """The chance that of two recordings the damaged one is stranger, ties counting half.

    Args:
        rows: ``[n, 2]``: how strange, and whether it is damaged.

    >>> area(torch.tensor([[0.1, 0], [0.3, 0], [0.2, 1], [0.9, 1]]))
    0.75
    """
    fine, bad = rows[rows[:, 1] == 0, 0], rows[rows[:, 1] == 1, 0]
    if not len(fine) or not len(bad):
        return 0.5
    apart = bad[:, None] - fine
    return float(((apart > 0).double() + 0.5 * (apart == 0)).mean())
