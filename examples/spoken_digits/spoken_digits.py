"""Spoken digits: which digit is said? Log-mel features, convolutions, a GRU."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.tasks._files import find_folder, open_zip
from prunus.tasks._part import some, started
from prunus.tasks.base import Batches, Task, classification_loss, hits

RATE, WINDOW, HOP, BANDS, FRAMES = 8000, 256, 80, 40, 100
"""Samples a second, of a window and between windows; mel bands; frames of an example (1 s)."""


def spoken_digits(
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    batch: int = 32,
    rate: float = 0.002,
    part: float = 1.0,
) -> Task:
    """Spoken digits: log-mel features, a convolutional-recurrent network; AdamW.

    ``recordings.zip`` in ``folder`` or ``$PRUNUS_DATA/speech-digits`` holds
    ``<digit>_<speaker>_<index>.wav``. Index 0 to 4 tests (the set's own split), 5 to 7 validates,
    the rest trains, shifted in time and with bands and moments blanked out; ``part`` of it.
    ``weights`` is a file to start from (the ``dense.safetensors`` of a run).

    Source: Jackson et al. 2018, Free Spoken Digit Dataset.
    """
    place = find_folder("spoken_digits", folder, "speech-digits", "recordings.zip")
    features, classes, index = read(place / "recordings.zip")
    test, validation = index < 5, (index >= 5) & (index < 8)
    train = index >= 8
    seen = train.nonzero()[:, 0][some("spoken_digits", int(train.sum()), part)]
    if not all(bool(part.any()) for part in (test, validation, train)):
        raise InputError(
            f"task spoken_digits: '{place}' needs recordings with index 0 to 4 (test), 5 to 7 "
            "(validation) and above"
        )

    def plain(chosen: Tensor) -> Batches:
        return Batches(features[chosen], classes[chosen], size=100, shuffle=False)

    return Task(
        model=started("spoken_digits", SpeechNet, weights),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01),
        loss=classification_loss,
        metric=hits,
        train=Blanked(features[seen], classes[seen], size=batch),
        validation=plain(validation),
        test=plain(test),
        example=features[:2],
        calibration=list(Batches(features[seen], classes[seen], size=batch, shuffle=False)),
        train_sample=plain(seen),
    )


class SpeechNet(nn.Module):
    """Three convolutions over time and frequency, a GRU over time, a linear layer."""

    def __init__(self, width: int = 32, hidden: int = 96) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int, stride: tuple[int, int]) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            )

        self.convolutions = nn.Sequential(
            convolution(1, width, (2, 1)),
            convolution(width, 2 * width, (2, 2)),
            convolution(2 * width, 2 * width, (2, 2)),
        )
        self.gru = nn.GRU(2 * width * BANDS // 8, hidden, batch_first=True)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(hidden, 10)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[b, 1, bands, frames]`` to scores ``[b, 10]``."""
        x = self.convolutions(features)  # [b, channels, bands/8, frames/4]
        states, _ = self.gru(x.flatten(1, 2).transpose(1, 2))  # [b, frames/4, hidden]
        return self.head(self.dropout(states.mean(dim=1)))  # type: ignore[no-any-return]


class Blanked:
    """Batches shifted in time, with a few bands and moments set to the mean (SpecAugment).

    Everything random comes from torch's generator, which a run sets from (seed, epoch).
    """

    def __init__(self, features: Tensor, classes: Tensor, *, size: int) -> None:
        self.features, self.classes, self.size = features, classes, size

    def __len__(self) -> int:
        return -(-len(self.classes) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self.classes)).split(self.size):
            x = self.features[chosen].clone()  # [b, 1, bands, frames]
            for example in x[:, 0]:
                shift = int(torch.randint(-10, 11, ()))
                example.copy_(example.roll(shift, dims=1))
                for dim, most in ((0, 6), (1, 15)):
                    wide = int(torch.randint(0, most + 1, ()))
                    start = int(torch.randint(0, example.shape[dim] - wide + 1, ()))
                    example.narrow(dim, start, wide).zero_()
            yield x, self.classes[chosen]


def read(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``[n, 1, bands, frames]``, digits ``[n]`` and indices ``[n]`` of the recordings.

    Raises:
        InputError: as :func:`recordings` does.
    """
    found = recordings("spoken_digits", path)
    features = torch.stack([log_mel(one.sound) for one in found])[:, None]
    return features, *(torch.tensor([getattr(one, k) for one in found]) for k in ("digit", "index"))


@dataclass(frozen=True)
class Recording:
    """A digit as somebody said it, ``RATE`` samples a second."""

    digit: int
    speaker: str
    index: int
    sound: NDArray[np.int16]


def recordings(task: str, path: Path) -> list[Recording]:
    """The recordings of an archive, by name.

    Args:
        task: that asks, for messages.
        path: of the archive.

    Raises:
        InputError: if the archive is missing or holds none, or one is not 8 kHz mono, or misnamed.
    """
    found = []
    with open_zip(task, path) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".wav")):
            where = f"task {task}: '{name}' in '{path}'"
            try:
                digit, speaker, index = Path(name).stem.split("_")
                numbers = int(digit), int(index)
            except ValueError:
                numbers = -1, -1
            if not 0 <= numbers[0] <= 9 or numbers[1] < 0:
                raise InputError(f"{where} is no <digit>_<speaker>_<index>.wav")
            try:
                rate, sound = _whole(archive.read(name))
            except (ValueError, EOFError, zipfile.BadZipFile) as error:
                raise InputError(f"{where}: {error}") from None
            if rate != RATE or sound.ndim != 1:
                raise InputError(
                    f"task {task}: '{name}' has {rate} Hz and shape {sound.shape}; "
                    f"{RATE} Hz and one channel are needed"
                )
            if not len(sound) or not np.isfinite(sound).all():
                what = "holds samples that are no numbers" if len(sound) else "is empty"
                raise InputError(f"{where} {what}")
            found.append(Recording(numbers[0], speaker, numbers[1], sound))
    if not found:
        raise InputError(f"task {task}: '{path}' holds no .wav")
    return found


def _whole(content: bytes) -> tuple[int, NDArray[np.int16]]:
    """Rate and samples of a file; one that was cut off is refused, which scipy only mentions."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rate, sound = wavfile.read(io.BytesIO(content))
    cut = [str(one.message) for one in said if "EOF" in str(one.message)]
    if cut:
        raise ValueError(cut[0])
    return rate, sound


def log_mel(sound: NDArray[np.int16]) -> Tensor:
    """log(mel power + 1e-6) of one second, centered, mean 0 and deviation 1: ``[BANDS, FRAMES]``.

    >>> log_mel(np.sin(np.arange(8000)).astype(np.float32)).shape
    torch.Size([40, 100])
    """
    wanted = HOP * (FRAMES - 1) + WINDOW
    wave = as_wave(sound)
    start = max(0, (len(wave) - wanted) // 2)
    wave = wave[start : start + wanted]
    before = (wanted - len(wave)) // 2
    log = log_power(np.pad(wave, (before, wanted - len(wave) - before))).T
    return torch.from_numpy(((log - log.mean()) / (log.std() + 1e-9)).astype(np.float32))


def as_wave(sound: NDArray[np.int16]) -> NDArray[np.float64]:
    """Samples from -1 to 1."""
    if sound.dtype.kind == "u":  # silence is in the middle of bytes
        return sound.astype(np.float64) / 127.5 - 1
    scale = 1.0 if sound.dtype.kind == "f" else float(np.iinfo(sound.dtype).max)
    return sound.astype(np.float64) / scale


def log_power(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(mel power + 1e-6) of each window, ``[frames, BANDS]``.

    mel(f) = 2595·log10(1 + f/700); triangular bands of even width in mel, from 0 to RATE/2.

    Source: Davis & Mermelstein 1980.
    """
    windows = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(windows)) ** 2  # [frames, WINDOW/2 + 1]
    return np.log(power @ _bands() + 1e-6)  # type: ignore[no-any-return]


def _bands() -> NDArray[np.float64]:
    """Weights ``[WINDOW/2 + 1, BANDS]`` of the frequencies in each band."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    rise = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rise, fall), 0, None)
