"""CIFAR-10 from images in archives, with a ResNet that starts from trained weights."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.tasks._files import find_folder, load_weights, open_zip, read_image
from prunus.tasks.base import Batches, Task, classification_loss, hits

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar10(
    *,
    folder: Path | None = None,
    weights: str | None = "resnet20.safetensors",
    batch: int = 128,
    rate: float = 0.02,
    part: float = 1.0,
    blocks: int = 3,
) -> Task:
    """CIFAR-10: ResNet-20 from trained weights; SGD with Nesterov momentum, crops and flips.

    ``train.zip`` and ``test.zip`` in ``folder`` hold ``<class>/<number>.jpg`` (or png). Every
    second image of ``test.zip`` validates, the others test: given weights may have seen the
    training images. Without ``folder`` they are looked for in ``$PRUNUS_DATA/cifar10``.
    ``weights`` is a file there; ``null`` starts from scratch. ``part`` of the training images
    train. ``blocks`` in each of the three stages: 3 is ResNet-20, 9 ResNet-56 (with
    ``weights: resnet56.safetensors``).

    Source: Krizhevsky 2009; He, Zhang, Ren, Sun 2015, arXiv:1512.03385.
    """
    if not 0 < part <= 1:
        raise InputError(f"task cifar10: part is {part}; it must be above 0 and at most 1")
    place = find_folder("cifar10", folder, "cifar10", "train.zip and test.zip")
    images, classes, names = read(place / "train.zip")
    others, other_classes, _ = read(place / "test.zip", names)
    if len(others) < 2:
        raise InputError(f"task cifar10: '{place / 'test.zip'}' holds one image; two are needed")
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    chosen = order[: max(1, round(part * len(order)))].sort().values
    seen = order[: len(chosen)]  # what it learns from, in a random order

    def plain(pixels: Tensor, of: Tensor) -> Batches:
        return Batches(normalized(pixels), of, size=500, shuffle=False)

    def model() -> nn.Module:
        made: nn.Module = ResNet(len(names), blocks)
        if weights is not None:
            made = load_weights("cifar10", made, place / weights)
        return made.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]

    return Task(
        model=model,
        optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        ),
        loss=classification_loss,
        metric=hits,
        train=Crops(images[chosen], classes[chosen], size=batch),
        validation=plain(others[::2], other_classes[::2]),
        test=plain(others[1::2], other_classes[1::2]),
        example=normalized(images[:2]),
        calibration=list(
            Batches(normalized(images[seen[:1024]]), classes[seen[:1024]], size=batch,
                    shuffle=False)
        ),
        train_sample=plain(images[seen[:1500]], classes[seen[:1500]]),
    )  # fmt: skip


class Crops:
    """Batches of random crops from images padded by 4, half of them flipped; the rest is left out.

    Order, places and flips come from torch's generator, which a run sets from (seed, epoch).
    """

    def __init__(self, images: Tensor, classes: Tensor, *, size: int) -> None:
        if size < 1 or len(classes) == 0:
            raise InputError(f"batches of {size} from {len(classes)} images: both must be above 0")
        self.padded = F.pad(images, (0, 0, 4, 4, 4, 4))  # black, before the normalization
        self.classes, self.size = classes, min(size, len(classes))

    def __len__(self) -> int:
        return len(self.classes) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.classes)
        height, width = (n - 8 for n in self.padded.shape[1:3])
        order = torch.randperm(count)[: len(self) * self.size]
        down, right = torch.randint(9, (count,)), torch.randint(9, (count,))
        flip = torch.rand(count) < 0.5
        high, wide = torch.arange(height), torch.arange(width)
        for chosen in order.split(self.size):
            rows = down[chosen, None] + high  # [b, height]
            columns = right[chosen, None] + torch.where(
                flip[chosen, None], width - 1 - wide, wide
            )  # [b, width]
            cut = self.padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield normalized(cut), self.classes[chosen]


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros on both sides of the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """``[b, inputs, h, w]`` to ``[b, outputs, h/2, w/2]``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        stride = 1 if inputs == width else 2
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if inputs == width else PadShortcut(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, inputs, h, w]`` to ``[b, width, h/stride, w/stride]``."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class ResNet(nn.Module):
    """The ResNets of CIFAR: three stages of 16, 32 and 64 channels, of 6n + 2 layers in all."""

    def __init__(self, classes: int = 10, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, blocks)
        self.layer2 = stage(16, 32, blocks)
        self.layer3 = stage(32, 64, blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[b, 3, h, w]`` to scores ``[b, classes]``."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def stage(inputs: int, width: int, blocks: int) -> nn.Sequential:
    """Blocks of one width."""
    return nn.Sequential(Block(inputs, width), *(Block(width, width) for _ in range(blocks - 1)))


def normalized(pixels: Tensor) -> Tensor:
    """Bytes ``[b, h, w, 3]`` to floats ``[b, 3, h, w]``, channels_last in memory."""
    mean, std = (255 * torch.tensor(values) for values in (MEAN, STD))
    return pixels.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


def read(path: Path, known: list[str] | None = None) -> tuple[Tensor, Tensor, list[str]]:
    """Images ``[n, h, w, 3]`` as bytes, classes ``[n]``, and their names, which are folders'.

    Raises:
        InputError: if the archive is missing, holds no images, or other classes than ``known``.
    """
    pixels, folders = [], []
    with open_zip("cifar10", path) as archive:
        files = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".png")))
        for name in files:
            where = f"task cifar10: '{name}' in '{path}'"
            try:
                content = archive.read(name)
                folders.append(name.split("/")[-2])
            except IndexError:
                raise InputError(f"{where}: a folder above it must name its class") from None
            except zipfile.BadZipFile as error:
                raise InputError(f"{where}: {error}") from None
            pixels.append(np.asarray(read_image(where, content)))
            if pixels[-1].shape != pixels[0].shape:
                sizes = ["×".join(map(str, p.shape[1::-1])) for p in (pixels[-1], pixels[0])]
                raise InputError(f"{where} is {sizes[0]}, and the first image {sizes[1]}")
    names = sorted(set(folders)) if known is None else known
    strange = sorted(set(folders) - set(names))
    if not pixels or strange:
        what = f"classes that train.zip lacks: {', '.join(strange)}" if strange else "no images"
        raise InputError(f"task cifar10: '{path}' holds {what}")
    number = {name: i for i, name in enumerate(names)}
    classes = torch.tensor([number[f] for f in folders])
    return torch.from_numpy(np.stack(pixels)), classes, names
