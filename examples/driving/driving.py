"""Driving: how far must the wheel be turned? A PilotNet-shaped network, also with a memory."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import Scores
from prunus.errors import InputError
from prunus.tasks._files import find_folder, open_zip, read_image
from prunus.tasks._part import some, started
from prunus.tasks.base import Batches, Task

HEIGHT, WIDTH = 66, 200
CAMERAS = {"left": 0.2, "center": 0.0, "right": -0.2}
"""What the wheel must be turned more, seen from each camera: back to the middle of the road."""
FASTEST = 30.0
"""Speeds are given as shares of it."""
STANDS = 1.0
"""Below this speed a car stands; then one picture goes with every angle of the wheel."""
COLUMNS = ("image", "camera", "steering", "speed")
STEPS = 8
"""Moments that a network with a memory sees in a row."""
BLOCK = 16
"""Moments in a row that belong to one part of the data: of five blocks three train."""
PARTS: dict[str, Callable[[int], bool]] = {
    "train": lambda block: block not in (1, 3),
    "validation": lambda block: block == 3,
    "test": lambda block: block == 1,
}


def driving(
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    network: Literal["pilotnet", "recurrent"] = "pilotnet",
    batch: int = 32,
    rate: float = 0.001,
    part: float = 1.0,
) -> Task:
    """Driving: steering (-1 to 1) and speed from one camera, by a convolutional network; AdamW.

    ``driving.zip`` in ``folder`` or ``$PRUNUS_DATA/driving`` holds ``log.csv`` (image, camera,
    steering, throttle, speed) and the images, 66×200. Moments in which the car stands are left
    out. Of the others every five blocks of 16 moments in a row are split: the second tests, the
    fourth validates, the rest trains; all from each camera, whose steering is what leads back to
    the middle. (The set's last fifth in time is one accident and a car that stands, of which
    nothing can be learned: ``figures.py`` has the numbers.) The metric is the mean
    absolute error of the steering; its classes are the cameras, so that ``guard.worst_class``
    holds each of them. ``part`` of the blocks that train do; ``weights`` is a file to start from
    (the ``dense.safetensors`` of a run).

    Source: Bojarski et al. 2016, arXiv:1604.07316.
    """
    if network not in NETWORKS:
        raise InputError(f"task driving: network is '{network}'; use {' or '.join(NETWORKS)}")
    place = find_folder("driving", folder, "driving", "driving.zip")
    drive = read(place / "driving.zip").moving()
    steps = STEPS if network == "recurrent" else 1
    parts = {name: drive.starts(name, steps) for name in PARTS}
    for name, starts in parts.items():
        if not len(starts):
            raise InputError(
                f"task driving: in '{place}' the car drives in {len(drive.steering)} moments, of "
                f"which none are for {name}: {4 * BLOCK} or more are needed"
            )

    every = some_blocks(drive.starts("train", steps, every=1), part)
    parts["train"] = some_blocks(parts["train"], part)

    def seen(name: str) -> Batches:
        return Batches(*drive.seen(parts[name], steps), size=96 // steps, shuffle=False)

    return Task(
        model=started("driving", NETWORKS[network], weights),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05),
        loss=loss,
        metric=errors,
        train=Driven(drive, every, steps=steps, size=batch),
        validation=seen("validation"),
        test=seen("test"),
        example=drive.seen(parts["train"], steps)[0][:2],
        calibration=list(seen("train")),
        train_sample=seen("train"),
        metric_name="mean absolute error",
    )


def some_blocks(starts: Tensor, part: float) -> Tensor:
    """The first moments that lie in ``part`` of the blocks: neighbors are nearly the same."""
    blocks = (starts // BLOCK).unique()
    return starts[torch.isin(starts // BLOCK, blocks[some("driving", len(blocks), part)])]


@dataclass(frozen=True)
class Drive:
    """What was recorded.

    Attributes:
        pixels: ``[moment, camera, h, w, 3]``, bytes.
        steering: of each moment, -1 (left) to 1 (right).
        speed: of each moment, a share of the fastest.
    """

    pixels: Tensor
    steering: Tensor
    speed: Tensor

    def moving(self) -> Drive:
        """The moments in which the car does not stand."""
        drives = self.speed * FASTEST >= STANDS
        return Drive(self.pixels[drives], self.steering[drives], self.speed[drives])

    def wanted(self, moments: Tensor, cameras: Tensor) -> Tensor:
        """Steering, speed and camera ``[..., 3]`` of moments ``[...]`` from cameras ``[...]``."""
        turned = torch.tensor(list(CAMERAS.values()))[cameras]
        steering = (self.steering[moments] + turned).clamp(-1, 1)
        return torch.stack([steering, self.speed[moments], cameras.float()], dim=-1)

    def starts(self, part: str, steps: int, *, every: int | None = None) -> Tensor:
        """The first moments of a part's examples, each in one block with the moments after it.

        Args:
            part: ``train``, ``validation`` or ``test``.
            steps: moments of an example.
            every: from one example to the next; by default they share no moment.
        """
        found = []
        for block in range(-(-len(self.steering) // BLOCK)):
            begin, end = block * BLOCK, min((block + 1) * BLOCK, len(self.steering))
            if PARTS[part](block % 5) and end - begin >= steps:
                found.append(torch.arange(begin, end - steps + 1, every or steps))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def seen(self, starts: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Images ``[n, 3, h, w]`` and what is wanted ``[n, 3]``: each camera's moments in a row.

        With more than one step ``[n, steps, …]``.
        """
        moments = starts.repeat(len(CAMERAS))[:, None] + torch.arange(steps)
        cameras = torch.arange(len(CAMERAS)).repeat_interleave(len(starts))[:, None]
        cameras = cameras.expand_as(moments)
        images, wanted = scaled(self.pixels[moments, cameras]), self.wanted(moments, cameras)
        return (images, wanted) if steps > 1 else (images[:, 0], wanted[:, 0])


class Driven:
    """Batches of moments, each from a camera by chance, mirrored by chance, lighter or darker.

    In an epoch every moment is seen once from each camera on the average. Everything random comes
    from torch's generator, which a run sets from (seed, epoch).
    """

    def __init__(self, drive: Drive, starts: Tensor, *, steps: int, size: int) -> None:
        if size < 1:
            raise InputError(f"task driving: batch is {size}; it must be above 0")
        self.drive, self.starts = drive, starts
        self.steps, self.size = steps, max(1, size // steps)
        self.examples = -(-len(CAMERAS) * len(starts) // steps)

    def __len__(self) -> int:
        return -(-self.examples // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        times = -(-self.examples // len(self.starts))
        order = torch.cat([torch.randperm(len(self.starts)) for _ in range(times)])
        for chosen in order[: self.examples].split(self.size):
            starts = self.starts[chosen]
            moments = starts[:, None] + torch.arange(self.steps)  # [b, steps]
            camera = torch.randint(len(CAMERAS), (len(starts), 1)).expand_as(moments)
            images = self.varied(scaled(self.drive.pixels[moments, camera]))
            wanted = self.drive.wanted(moments, camera)
            mirrored = torch.rand(len(starts)) < 0.5
            images[mirrored] = images[mirrored].flip(-1)
            wanted[mirrored, :, 0] *= -1
            yield (images, wanted) if self.steps > 1 else (images[:, 0], wanted[:, 0])

    def varied(self, images: Tensor) -> Tensor:
        """Of other light and color, and up to four pixels higher or lower: ``[b, t, 3, h, w]``."""
        count = len(images)
        light = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, 1)
        tint = 0.3 * (torch.rand(count, 1, 3, 1, 1) - 0.5)
        images = (images * light + tint).clamp_(-1, 1)
        for image, shift in zip(images, torch.randint(-4, 5, (count,)).tolist(), strict=True):
            image.copy_(image.roll(shift, dims=-2))
        return images


class Eyes(nn.Module):
    """Five convolutions: an image ``[b, 3, 66, 200]`` to features ``[b, 1152]``."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 24, 5, 2), (24, 36, 5, 2), (36, 48, 5, 2), (48, 64, 3, 1), (64, 64, 3, 1)]
        self.layers = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(a, b, k, s, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, k, s in sizes
        ))  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """The features of each image."""
        return self.layers(images).flatten(1)  # type: ignore[no-any-return]


class Heads(nn.Module):
    """Steering by a tangent, speed by a line."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steering, self.speed = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[..., width]`` to two numbers ``[...]``."""
        return self.steering(features).tanh().squeeze(-1), self.speed(features).squeeze(-1)


class PilotNet(nn.Module):
    """Convolutions and three linear layers, to two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = Eyes()
        self.dropout = nn.Dropout(0.3)
        self.layers = nn.Sequential(
            nn.Linear(1152, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10),
            nn.ReLU(),
        )  # fmt: skip
        self.heads = Heads(10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[b, 3, 66, 200]`` to steering ``[b]`` and speed ``[b]``."""
        return self.heads(self.layers(self.dropout(self.eyes(images))))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """The same convolutions for each moment, a GRU over the moments, two heads."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.eyes = Eyes()
        self.dropout = nn.Dropout(0.3)
        self.narrow = nn.Linear(1152, 100)
        self.memory = nn.GRU(100, width, batch_first=True)
        self.heads = Heads(width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[b, t, 3, 66, 200]`` to steering ``[b, t]`` and speed ``[b, t]``."""
        seen = self.dropout(self.eyes(images.flatten(0, 1))).unflatten(0, images.shape[:2])
        states, _ = self.memory(F.relu(self.narrow(seen)))
        return self.heads(self.dropout(states))  # type: ignore[no-any-return]


NETWORKS = {"pilotnet": PilotNet, "recurrent": Recurrent}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Error of the steering (squared below 0.1, else absolute), and a tenth of the speed's."""
    images, wanted = batch
    steering, speed = model(images)
    return F.smooth_l1_loss(steering, wanted[..., 0], beta=0.1) + 0.1 * F.mse_loss(
        speed, wanted[..., 1]
    )


def errors(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """Of each image the absolute error of the steering, and the camera that saw it."""
    found, wanted = [], []
    for images, targets in batches:
        found.append(model(images)[0].flatten())
        wanted.append(targets.flatten(0, -2))
    truth = torch.cat(wanted)
    names = [list(CAMERAS)[int(camera)] for camera in truth[:, 2]]
    return Scores((torch.cat(found) - truth[:, 0]).abs(), names, "lower")


def scaled(pixels: Tensor) -> Tensor:
    """Bytes ``[..., h, w, 3]`` to floats ``[..., 3, h, w]``, -1 to 1."""
    return pixels.movedim(-1, -3).float().div_(127.5).sub_(1)


def read(path: Path) -> Drive:
    """A recorded drive, in the order of its log.

    Raises:
        InputError: if the archive or its log is missing or damaged, a number is out of range, an
            image is not there or of another size, or a moment lacks a camera.
    """
    with open_zip("driving", path) as archive:
        rows = _log(archive, path)
        moments: list[dict[str, Tensor]] = []
        numbers: list[tuple[float, float]] = []
        for line, row in enumerate(rows, 2):
            where = f"task driving: '{path}': log.csv, line {line}"
            try:
                camera, name = row["camera"], row["image"]
                steering, speed = float(row["steering"]), float(row["speed"])
                content = archive.read(name)
            except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
                raise InputError(f"{where}: {error}") from None
            image = read_image(f"{where}: '{name}'", content)
            if camera not in CAMERAS or not -1 <= steering <= 1 or not 0 <= speed < 1e3:
                raise InputError(
                    f"{where}: camera is '{camera}', steering {steering}, speed {speed}; they are "
                    f"{', '.join(CAMERAS)}; -1 to 1; 0 or more"
                )
            if image.size != (WIDTH, HEIGHT):
                raise InputError(f"{where}: '{name}' is {image.size}, not {(WIDTH, HEIGHT)}")
            if not moments or camera in moments[-1]:
                moments.append({})
                numbers.append((steering, speed / FASTEST))
            moments[-1][camera] = torch.from_numpy(np.asarray(image).copy())
    lacking = [i for i, seen in enumerate(moments) if set(seen) != set(CAMERAS)]
    if lacking or not moments:
        what = f"moment {lacking[0] + 1} lacks a camera" if lacking else "the log has no moments"
        raise InputError(f"task driving: '{path}': {what}")
    pixels = torch.stack([torch.stack([seen[c] for c in CAMERAS]) for seen in moments])
    steering_, speed_ = torch.tensor(numbers).unbind(1)
    return Drive(pixels, steering_, speed_)


def _log(archive: zipfile.ZipFile, path: Path) -> list[dict[str, str]]:
    try:
        text = archive.read("log.csv").decode("utf-8")
    except KeyError:
        raise InputError(f"task driving: '{path}' holds no log.csv") from None
    except (UnicodeError, zipfile.BadZipFile) as error:
        raise InputError(f"task driving: '{path}': log.csv: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    try:
        rows, names = list(reader), reader.fieldnames or ()
    except csv.Error as error:
        raise InputError(
            f"task driving: '{path}': log.csv, line {reader.line_num}: {error}"
        ) from None
    lacking = [name for name in COLUMNS if name not in names]
    if rows and lacking:
        raise InputError(
            f"task driving: '{path}': log.csv has no column '{lacking[0]}'; it has "
            f"{', '.join(names)}, and {', '.join(COLUMNS)} are needed"
        )
    for line, row in enumerate(rows, 2):
        if any(row[name] is None for name in COLUMNS):
            raise InputError(f"task driving: '{path}': log.csv, line {line} is too short")
    return rows
