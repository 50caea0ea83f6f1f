"""Two senses: a written digit and a spoken one, the same or not? Two towers and a joint head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import Scores
from prunus.errors import InputError
from prunus.methods.catalog import module_at
from prunus.tasks._files import find_folder
from prunus.tasks._part import some, started
from prunus.tasks.base import Task
from prunus.tasks.mnist import HOLDS
from prunus.tasks.mnist import read as read_images

SOUNDS = module_at(Path(__file__).parents[1] / "spoken_digits/spoken_digits.py")
BOTH, NO_IMAGE, NO_SOUND = "both", "no image", "no sound"
MISSING = 0.1
"""Share of pairs that lack their image, and of those that lack their sound."""

Batch = dict[str, Any]


def two_senses(
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    batch: int = 64,
    rate: float = 0.002,
    images: int = 12_000,
    part: float = 1.0,
) -> Task:
    """Two senses: is the written digit the spoken one? Two towers, three heads; AdamW.

    ``mnist`` with the IDX files and ``speech-digits`` with ``recordings.zip``, in ``folder`` or
    ``$PRUNUS_DATA``. Recordings of index 8 and above train, each with three of the first ``images``
    images an epoch, one in two the same digit, one in ten without its image, one in ten without its
    sound. Index 5 to 7 with held-out training images validate, 0 to 4 with the test images test.
    ``part`` of the training recordings and images train; ``weights`` is a file to start from (the
    ``dense.safetensors`` of a run).

    Source: MNIST, LeCun et al. 1998; Free Spoken Digit Dataset, Jackson et al. 2018.
    """

    def place(name: str, holds: str) -> Path:
        return find_folder("two_senses", folder and folder / name, name, holds)

    seen, seen_digits = read_images(place("mnist", HOLDS), "train")
    unseen, unseen_digits = read_images(place("mnist", HOLDS), "test")
    for given in (seen, unseen):
        if given.shape[1:] != (1, 28, 28):
            sides = "×".join(map(str, given.shape[2:]))
            raise InputError(f"task two_senses: images of mnist are {sides}; 28×28 are needed")
    heard, said, index = SOUNDS.read(place("speech-digits", "recordings.zip") / "recordings.zip")
    held = len(seen) - len(seen) // 6
    count = len(some("two_senses", min(images, held), part))
    training = (index >= 8).nonzero()[:, 0]
    training = training[some("two_senses", len(training), part)]
    of_part = torch.zeros_like(index, dtype=torch.bool).scatter_(0, training, True)
    parts = {
        "train": (of_part, seen[:count], seen_digits[:count]),
        "validation": ((index >= 5) & (index < 8), seen[held:], seen_digits[held:]),
        "test": (index < 5, unseen, unseen_digits),
    }
    for name, (chosen, _, digits) in parts.items():
        if not bool(chosen.any()) or len(digits.unique()) < 2:
            raise InputError(
                f"task two_senses: nothing is left for {name}: recordings need index 0 to 4 "
                "(test), 5 to 7 (validation) and above, and images at least two digits"
            )

    def pairs(name: str, *, seed: int | None = None, per_sound: int = 3) -> Pairs:
        chosen, pictures, digits = parts[name]
        return Pairs(
            (pictures, digits), (heard[chosen], said[chosen]),
            size=batch, per_sound=per_sound, seed=seed,
        )  # fmt: skip

    first = next(iter(pairs("train", seed=0)))
    return Task(
        model=started("two_senses", TwoSenses, weights),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01),
        loss=loss,
        metric=right,
        train=pairs("train"),
        validation=pairs("validation", seed=1, per_sound=6),
        test=pairs("test", seed=2, per_sound=6),
        example={key: first[key][:2] for key in ("image", "sound", "present")},
        calibration=list(pairs("train", seed=3, per_sound=1)),
        train_sample=pairs("train", seed=4, per_sound=1),
    )


class Pairs:
    """Batches of an image and a recording each, drawn anew every epoch, or the same with a seed.

    A dictionary: ``image [b, 1, 28, 28]``, ``sound [b, 1, bands, frames]``, ``present [b, 2]`` (1
    or 0 for each of the two), ``digits [b, 2]`` and ``same [b]``: 1, 0, or one half where a sense
    is missing and nobody can know. What is drawn comes from torch's generator, which a run sets.
    """

    def __init__(
        self, seen: tuple[Tensor, Tensor], heard: tuple[Tensor, Tensor], *, size: int,
        per_sound: int, seed: int | None,
    ) -> None:  # fmt: skip
        self.seen, self.heard = seen, heard
        self.size, self.per_sound, self.seed = size, per_sound, seed

    def __len__(self) -> int:
        return -(-len(self.heard[1]) * self.per_sound // self.size)

    def __iter__(self) -> Iterator[Batch]:
        source = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        count = len(self.heard[1]) * self.per_sound
        sounds = torch.randperm(count, generator=source) % len(self.heard[1])
        same = torch.rand(count, generator=source) < 0.5
        chance = torch.rand(count, generator=source)
        draw = torch.rand(count, generator=source)
        pictures = self._pictures(self.heard[1][sounds], same, draw)
        lacks = torch.stack([chance < MISSING, (chance >= MISSING) & (chance < 2 * MISSING)], 1)
        for rows in torch.arange(count).split(self.size):
            yield self._batch(pictures[rows], sounds[rows], ~lacks[rows])

    def _pictures(self, said: Tensor, same: Tensor, draw: Tensor) -> Tensor:
        """For each recording an image: of its digit, or of another one."""
        found = torch.empty_like(said)
        for digit in said.unique():
            for wanted in (True, False):
                rows = ((said == digit) & (same == wanted)).nonzero()[:, 0]
                these = ((self.seen[1] == digit) == wanted).nonzero()[:, 0]
                if len(these) == 0:  # a digit that is never written: another one then
                    these = torch.arange(len(self.seen[1]))
                found[rows] = these[(draw[rows] * len(these)).long()]
        return found

    def _batch(self, pictures: Tensor, sounds: Tensor, present: Tensor) -> Batch:
        digits = torch.stack([self.seen[1][pictures], self.heard[1][sounds]], 1)
        same = (digits[:, 0] == digits[:, 1]).float()
        image, sound = self.seen[0][pictures], self.heard[0][sounds]
        return {
            "image": image * present[:, 0, None, None, None],
            "sound": sound * present[:, 1, None, None, None],
            "present": present.float(),
            "digits": digits,
            "same": torch.where(present.all(1), same, 0.5),
        }


class TwoSenses(nn.Module):
    """A tower of convolutions for each sense, a head for each, and one for both."""

    def __init__(self, width: int = 16, features: int = 64) -> None:
        super().__init__()
        self.image = tower(((1, width), (width, 2 * width)), 2 * width * 49, features)
        self.sound = tower(
            ((1, width), (width, 2 * width), (2 * width, 2 * width)), 2 * width * 5 * 12, features
        )
        self.absent = nn.Parameter(torch.zeros(2, features))  # what stands for a missing sense
        self.joint = nn.Sequential(nn.Linear(2 * features, 2 * features), nn.ReLU())
        self.same = nn.Linear(2 * features, 1)
        self.written, self.spoken = nn.Linear(features, 10), nn.Linear(features, 10)

    def forward(self, image: Tensor, sound: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """The logit ``[b]`` that both are the same; scores ``[b, 10]`` of each one's digit."""
        seen, heard = self.image(image), self.sound(sound)
        image_there, sound_there = present[:, :1], present[:, 1:]
        known = torch.cat(
            [
                seen * image_there + self.absent[0] * (1 - image_there),
                heard * sound_there + self.absent[1] * (1 - sound_there),
            ],
            dim=1,
        )
        return self.same(self.joint(known))[:, 0], self.written(seen), self.spoken(heard)


def tower(widths: tuple[tuple[int, int], ...], flat: int, features: int) -> nn.Sequential:
    """Convolutions, each halving the picture, and a linear layer."""
    layers: list[nn.Module] = []
    for inputs, outputs in widths:
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(flat, features), nn.ReLU()
    )


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of "the same", and of the digits of the senses that are there, in nats."""
    same, written, spoken = model(batch["image"], batch["sound"], batch["present"])
    found = F.binary_cross_entropy_with_logits(same, batch["same"])
    for column, scores in enumerate((written, spoken)):
        each = F.cross_entropy(scores, batch["digits"][:, column], reduction="none")
        there = batch["present"][:, column]
        found = found + 0.3 * (each * there).sum() / there.sum().clamp(min=1)
    return found


def right(model: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Of each pair whether "the same" is right; of one sense alone, whether its digit is."""
    items, groups = [], []
    for batch in batches:
        same, written, spoken = model(batch["image"], batch["sound"], batch["present"])
        digits = batch["digits"]
        alike = (same > 0) == (digits[:, 0] == digits[:, 1])
        named = [scores.argmax(1) == digits[:, i] for i, scores in enumerate((written, spoken))]
        image, sound = (batch["present"] > 0).unbind(1)
        items.append(torch.where(image & sound, alike, torch.where(image, named[0], named[1])))
        groups += [BOTH if i and s else NO_SOUND if i else NO_IMAGE
                   for i, s in zip(image.tolist(), sound.tolist(), strict=True)]  # fmt: skip
    return Scores(torch.cat(items).double(), groups, "higher")
