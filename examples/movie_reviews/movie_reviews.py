"""Movie reviews: is a sentence positive? A bidirectional LSTM, or a transformer encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.methods.catalog import from_file
from prunus.tasks._files import find_folder, read_text
from prunus.tasks._part import some, started
from prunus.tasks.base import Batches, Task, classification_loss, hits

Layer = from_file(Path(__file__).parents[1] / "transformer.py", "Layer")
LENGTH = 48
"""Tokens of a sentence; longer ones are cut, shorter ones filled up with zeros."""


def movie_reviews(
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    network: Literal["lstm", "transformer"] = "lstm",
    vocabulary: int = 6000,
    batch: int = 64,
    rate: float = 0.001,
    part: float = 1.0,
) -> Task:
    """Movie reviews: sentence polarity by a bidirectional LSTM or a transformer; AdamW.

    ``rt-polarity.pos`` and ``rt-polarity.neg`` (latin-1, .gz or not), a sentence a line, in
    ``folder`` or ``$PRUNUS_DATA/movie-reviews``. A tenth validates, a tenth tests, drawn with a
    fixed seed. Byte-pair encoding is trained on the rest with ``tokenizers``; ``part`` of the rest
    trains the network. ``weights`` is a file to start from (the ``dense.safetensors`` of a run).

    Source: Pang & Lee 2005, arXiv:cs/0506075.
    """
    networks = {"lstm": LSTM, "transformer": Transformer}
    if network not in networks:
        raise InputError(f"task movie_reviews: network is '{network}'; use {' or '.join(networks)}")
    place = find_folder("movie_reviews", folder, "movie-reviews", "rt-polarity.pos and .neg")
    sentences, classes = read(place)
    train, validation, test = split(len(sentences))
    tokens = encode(sentences, [sentences[i] for i in train.tolist()], vocabulary)
    size = int(tokens.max()) + 1
    train = train[some("movie_reviews", len(train), part)]

    def batches(chosen: Tensor, *, shuffle: bool = False) -> Batches:
        return Batches(tokens[chosen], classes[chosen], size=batch, shuffle=shuffle)

    return Task(
        model=started("movie_reviews", lambda: networks[network](size), weights),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05),
        loss=classification_loss,
        metric=hits,
        train=batches(train, shuffle=True),
        validation=batches(validation),
        test=batches(test),
        example=tokens[:2],
        calibration=list(batches(train[:1024])),
        train_sample=batches(train[:1000]),
    )


def split(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which sentences train, validate and test."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    tenth = max(1, count // 10)
    return order[: -2 * tenth], order[-2 * tenth : -tenth], order[-tenth:]


class LSTM(nn.Module):
    """Embedding, a bidirectional LSTM, the largest value of each feature over the words."""

    def __init__(self, vocabulary: int, width: int = 128, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(0.5)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[b, length]``, 0 = none, to scores ``[b, 2]``."""
        states, _ = self.lstm(self.dropout(self.embedding(tokens)))
        states = states.masked_fill((tokens == 0)[:, :, None], -1.0)  # of tanh the least
        return self.head(self.dropout(states.amax(dim=1)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Embeddings of tokens and places, two encoder layers, the mean over the words."""

    def __init__(self, vocabulary: int, width: int = 128, heads: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(LENGTH, width))
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(0.5)
        self.layers = nn.ModuleList(Layer(width, heads, 2 * width, dropout=0.3) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[b, length]``, 0 = none, to scores ``[b, 2]``."""
        there = tokens != 0
        x = self.dropout(self.embedding(tokens) + self.places)
        for layer in self.layers:
            x = layer(x, there[:, None, None])
        weight = there[:, :, None].to(x.dtype)
        mean = (self.norm(x) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.head(self.dropout(mean))  # type: ignore[no-any-return]


def read(folder: Path) -> tuple[list[str], Tensor]:
    """The sentences, positive ones first, and their classes ``[n]`` (1 = positive).

    Raises:
        InputError: if a file is missing or empty.
    """
    parts = []
    for kind in ("pos", "neg"):
        text = read_text("movie_reviews", folder / f"rt-polarity.{kind}", encoding="latin-1")
        parts.append([line.strip() for line in text.split("\n") if line.strip()])
    if min(len(p) for p in parts) < 2:
        raise InputError(f"task movie_reviews: '{folder}' holds fewer than two sentences of a kind")
    classes = [1] * len(parts[0]) + [0] * len(parts[1])
    return parts[0] + parts[1], torch.tensor(classes)


def encode(sentences: Sequence[str], fit: Sequence[str], vocabulary: int) -> Tensor:
    """Token numbers ``[n, LENGTH]`` of a byte-pair encoding trained on ``fit``; 0 = none.

    Raises:
        ModuleNotFoundError: if ``tokenizers`` is not installed.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token="[none]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["[none]"], show_progress=False
    )
    made.train_from_iterator(fit, trainer)
    tokens = torch.zeros(len(sentences), LENGTH, dtype=torch.long)
    for row, encoding in zip(tokens, made.encode_batch(list(sentences)), strict=True):
        ids = encoding.ids[:LENGTH]
        row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    return tokens
