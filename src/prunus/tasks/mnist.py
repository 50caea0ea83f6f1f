"""MNIST from the usual IDX files, with the network of the method's source text."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.tasks._files import find_folder
from prunus.tasks.base import Batches, Task, by_class, classification_loss

HOLDS = "the four IDX files (train-images-idx3-ubyte and so on, .gz or not)"
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def mnist(*, folder: Path | None = None, batch: int = 100, rate: float = 0.05) -> Task:
    """MNIST: the source text's SimpleCNN; SGD, momentum 0.9; the IDX files in ``folder``.

    55,000 images train; the last 5,000 training images validate; 10,000 test. Without
    ``folder`` the files are looked for in ``$PRUNUS_DATA/mnist``.

    Source: LeCun, Bottou, Bengio, Haffner 1998; the network: docs/source_text.md.
    """
    place = find_folder("mnist", folder, "mnist", HOLDS)
    images, classes = read(place, "train")
    test_images, test_classes = read(place, "test")
    held = len(images) - 5000
    return Task(
        model=SimpleCNN,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
        loss=classification_loss,
        metric=by_class,
        train=Batches(images[:held], classes[:held], size=batch, shuffle=True),
        validation=Batches(images[held:], classes[held:], size=500, shuffle=False),
        test=Batches(test_images, test_classes, size=500, shuffle=False),
        example=images[:1],
        calibration=list(Batches(images[:1000], classes[:1000], size=batch, shuffle=False)),
        train_sample=Batches(images[:2000], classes[:2000], size=500, shuffle=False),
    )


class SimpleCNN(nn.Module):
    """Convolutions of 32 and 64 channels, pooling to 6×6, linear 128 and 10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.fc1 = nn.Linear(64 * 6 * 6, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[b, 1, 28, 28]`` to scores ``[b, 10]``."""
        hidden = torch.relu(self.conv2(torch.relu(self.conv1(images))))
        return self.fc2(torch.relu(self.fc1(self.pool(hidden).flatten(1))))  # type: ignore[no-any-return]


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Normalized images ``[n, 1, rows, columns]`` and classes ``[n]``.

    Raises:
        InputError: if a file is missing or is no IDX file.
    """
    images, classes = (_idx(folder, name) for name in FILES[part])
    if images.dim() != 3 or len(images) != len(classes):
        raise InputError(f"'{folder}': {FILES[part][0]} and {FILES[part][1]} do not fit together")
    return images.float().div_(255).sub_(0.1307).div_(0.3081)[:, None], classes.long()


def _idx(folder: Path, name: str) -> Tensor:
    """An IDX file of bytes: two zeros, type 8, rank, sizes (big-endian), then the bytes."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            break
    else:
        raise InputError(f"task mnist: there is no '{name}' or '{name}.gz' in '{folder}'")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rank = raw[3]
        shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
        if raw[:3] != b"\0\0\x08" or not shape:
            raise ValueError("no IDX file of bytes")
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * rank).view(shape)
    except (OSError, EOFError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"'{path}' is no IDX file: {error}") from error
