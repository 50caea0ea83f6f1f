"""Spoken sequences: which digits, one after the other? Recognizers of a stream, by CTC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunus import Scores
from prunus.errors import InputError
from prunus.methods.catalog import module_at
from prunus.tasks._files import find_folder
from prunus.tasks._part import some, started
from prunus.tasks.base import Task

SOUNDS = module_at(Path(__file__).parents[1] / "spoken_digits/spoken_digits.py")
STREAMS = module_at(Path(__file__).with_name("streams.py"))
MOST, GAP = 5, (400, 2400)
"""Digits of a sequence; samples of silence before, between and behind them (50 to 300 ms)."""
MEAN, SPREAD = -11.0, 4.0
"""About those of the logarithms; fixed, since a stream does not know what comes."""

Batch = dict[str, Tensor]


def spoken_sequences(
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    network: Literal["recurrent", "conformer"] = "recurrent",
    batch: int = 8,
    rate: float = 0.002,
    sequences: int = 720,
    part: float = 1.0,
) -> Task:
    """Spoken sequences: one to five digits of a speaker, by a stream with a state; AdamW.

    ``recordings.zip`` in ``folder`` or ``$PRUNUS_DATA/speech-digits``. Recordings of a speaker are
    joined with silence between them: those of index 8 and above, anew in every epoch, to
    ``sequences`` that train; 5 to 7 to 150 that validate, 0 to 4 to 300 that test. The metric is
    the word error rate of the whole set: (wrong + missing + added digits) ÷ digits. ``part`` of
    the training recordings train, joined to as many sequences; ``weights`` is a file to start from
    (the ``dense.safetensors`` of a run).

    Source: Jackson et al. 2018, Free Spoken Digit Dataset.
    """
    makers = {"recurrent": recurrent, "conformer": conformer}
    if network not in makers:
        raise InputError(
            f"task spoken_sequences: network is '{network}'; use {' or '.join(makers)}"
        )
    place = find_folder("spoken_sequences", folder, "speech-digits", "recordings.zip")
    every = SOUNDS.recordings("spoken_sequences", place / "recordings.zip")
    parts = {
        "train": [one for one in every if one.index >= 8],
        "validation": [one for one in every if 5 <= one.index < 8],
        "test": [one for one in every if one.index < 5],
    }
    kept = some("spoken_sequences", len(parts["train"]), part).tolist()
    parts["train"] = [parts["train"][i] for i in kept]
    for name, found in parts.items():
        if not found:
            raise InputError(
                f"task spoken_sequences: '{place}' has no recording for {name}: index 0 to 4 test, "
                "5 to 7 validate, the others train"
            )

    def joined(name: str, count: int, *, seed: int | None = None) -> Joined:
        return Joined(parts[name], count, size=batch, seed=seed)

    training = joined("train", sequences)
    return Task(
        model=started("spoken_sequences", makers[network], weights),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01),
        loss=loss,
        metric=errors,
        train=training,
        validation=joined("validation", 150, seed=1),
        test=joined("test", 300, seed=2),
        example=[_noise(2, 64), _noise(2, 96)],  # any length
        calibration=list(joined("train", 20 * batch, seed=3)),
        train_sample=joined("train", 150, seed=4),
        metric_name="word error rate",
    )


def _noise(count: int, frames: int) -> Tensor:
    source = torch.Generator().manual_seed(frames)
    return torch.randn(count, frames, SOUNDS.BANDS, generator=source)


def recurrent() -> nn.Module:
    """Two convolutions and two GRUs, 0.4 million parameters."""
    made: nn.Module = STREAMS.Recurrent(SOUNDS.BANDS, width=96, hidden=160, dropout=0.2)
    return made


def conformer() -> nn.Module:
    """Two convolutions and two blocks, 0.4 million parameters."""
    made: nn.Module = STREAMS.Conformer(SOUNDS.BANDS, width=96, heads=6, blocks=2, dropout=0.1)
    return made


class Joined:
    """Batches of joined recordings: a dictionary each; anew every epoch, or the same with a seed.

    ``features [b, frames, bands]``, ``lengths [b]`` (frames that are there), ``labels [b, l]``
    (digits + 1, 0 where there is none) and ``label_lengths [b]``. What is drawn comes from torch's
    generator, which a run sets from (seed, epoch).
    """

    def __init__(
        self, recordings: Sequence[Any], count: int, *, size: int, seed: int | None
    ) -> None:
        self.by_speaker: dict[str, list[Any]] = {}
        for one in recordings:
            self.by_speaker.setdefault(one.speaker, []).append(one)
        self.count, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[Batch]:
        source = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        left = self.count
        while left > 0:
            rows = [self._sequence(source) for _ in range(min(self.size, left))]
            left -= len(rows)
            yield together(rows)

    def _sequence(self, source: torch.Generator | None) -> tuple[Tensor, list[int]]:
        """Features ``[frames, bands]`` and labels of one to ``MOST`` digits."""

        def draw(end: int) -> int:
            return int(torch.randint(end, (), generator=source))

        speakers = list(self.by_speaker.values())
        said = speakers[draw(len(speakers))]
        chosen = [said[draw(len(said))] for _ in range(1 + draw(MOST))]
        pieces = [np.zeros(GAP[0] + draw(GAP[1] - GAP[0]))]
        for one in chosen:
            pieces += [SOUNDS.as_wave(one.sound), np.zeros(GAP[0] + draw(GAP[1] - GAP[0]))]
        return features(np.concatenate(pieces)), [one.digit + 1 for one in chosen]


def features(wave: Any) -> Tensor:
    """Log-mel features ``[frames, bands]`` of samples from -1 to 1, on a fixed scale."""
    log = (SOUNDS.log_power(wave) - MEAN) / SPREAD
    return torch.from_numpy(log.astype(np.float32))


def together(rows: Sequence[tuple[Tensor, list[int]]]) -> Batch:
    """A batch, each row filled up with silence; frames are a multiple of what one output takes."""
    lengths = torch.tensor([len(x) for x, _ in rows])
    most = -(-int(lengths.max()) // STREAMS.EVERY) * STREAMS.EVERY
    silence = float((np.log(1e-6) - MEAN) / SPREAD)
    padded = torch.full((len(rows), most, rows[0][0].shape[1]), silence)
    labels = torch.zeros(len(rows), max(len(y) for _, y in rows), dtype=torch.long)
    for i, (x, y) in enumerate(rows):
        padded[i, : len(x)] = x
        labels[i, : len(y)] = torch.tensor(y)
    return {
        "features": padded,
        "lengths": lengths,
        "labels": labels,
        "label_lengths": torch.tensor([len(y) for _, y in rows]),
    }


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own loss."""
    found: Tensor = model(**batch)
    return found


def errors(model: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Rows of (errors, digits) for each sequence; their figure is the word error rate."""
    rows = []
    for batch in batches:
        scores = model(batch["features"])
        ends = -(-batch["lengths"] // STREAMS.EVERY)
        for i, heard in enumerate(scores.argmax(2).tolist()):
            said = batch["labels"][i, : int(batch["label_lengths"][i])].tolist()
            rows.append([distance(collapsed(heard[: int(ends[i])]), said), len(said)])
    counts = torch.tensor(rows, dtype=torch.float64)
    return Scores(counts, better="lower", figure=lambda r: r[:, 0].sum() / r[:, 1].sum())


def collapsed(outputs: Sequence[int]) -> list[int]:
    """What the likeliest outputs say: repetitions once, blanks left out.

    >>> collapsed([0, 3, 3, 0, 3, 0])
    [3, 3]
    """
    before = [STREAMS.BLANK, *outputs[:-1]]
    pairs = zip(outputs, before, strict=True) if outputs else ()
    return [now for now, then in pairs if now not in (STREAMS.BLANK, then)]


def distance(heard: Sequence[int], said: Sequence[int]) -> int:
    """The fewest changed, added and missing ones that make one of the other.

    Source: Levenshtein 1966.

    >>> distance([1, 2, 4], [1, 3, 4, 4])
    2
    """
    costs = list(range(len(said) + 1))
    for i, one in enumerate(heard, 1):
        before, costs[0] = costs[0], i
        for j, other in enumerate(said, 1):
            found = min(costs[j] + 1, costs[j - 1] + 1, before + (one != other))
            before, costs[j] = costs[j], found
    return costs[-1]
