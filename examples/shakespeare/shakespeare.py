"""Language modeling: the next character of Shakespeare, by a decoder-only transformer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.methods.catalog import from_file
from prunus.tasks._files import find_folder, read_text
from prunus.tasks._part import some, started
from prunus.tasks.base import Batches, Task

Layer = from_file(Path(__file__).parents[1] / "transformer.py", "Layer")


def shakespeare(
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    length: int = 128,
    layers: int = 4,
    width: int = 208,
    heads: int = 8,
    batch: int = 16,
    steps: int = 100,
    rate: float = 0.002,
    part: float = 1.0,
) -> Task:
    """Shakespeare: bits per character of a transformer (2.1 million parameters); AdamW.

    ``input.txt`` (.gz or not) in ``folder`` or ``$PRUNUS_DATA/shakespeare``: the first nine
    tenths train, ``steps`` batches of random places being an "epoch"; of the last tenth one half
    validates, the other tests; of the first, the first ``part`` trains. ``weights`` is a file to
    start from (the ``dense.safetensors`` of a run). The metric is judged over whole windows of
    ``length`` characters.

    Source: Karpathy 2015, tiny Shakespeare.
    """
    place = find_folder("shakespeare", folder, "shakespeare", "input.txt")
    text = read_text("shakespeare", place / "input.txt")
    letters = sorted(set(text))
    number = {c: i for i, c in enumerate(letters)}
    codes = torch.tensor([number[c] for c in text])
    first, second = len(codes) * 9 // 10, len(codes) * 95 // 100
    seen = codes[: len(some("shakespeare", first, part))]
    if second - first <= length or width % heads:
        raise InputError(
            f"task shakespeare: length {length} and width {width} of {heads} heads: a twentieth of "
            f"the text ({second - first} characters) must be longer, and heads divide the width"
        )

    if len(seen) <= length:
        raise InputError(
            f"task shakespeare: part {part} of the text is {len(seen)} characters; length {length} "
            "and one more are needed"
        )

    def model() -> nn.Module:
        return Transformer(len(letters), length, layers, width, heads)

    def windows(part: Tensor, most: int) -> Batches:
        return Batches(*cut(part, length, most), size=batch, shuffle=False)

    return Task(
        model=started("shakespeare", model, weights),
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.05
        ),
        loss=loss,
        metric=bits,
        train=Places(seen, length, size=batch, steps=steps),
        validation=windows(codes[first:second], 300),
        test=windows(codes[second:], 10_000),
        example=codes[: 2 * length].view(2, length),
        calibration=list(windows(seen, 8 * batch)),
        train_sample=windows(seen, 200),
        metric_name="bits per character",
    )


class Transformer(nn.Module):
    """Embeddings of characters and places, layers, a linear layer to the next character."""

    def __init__(self, letters: int, length: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, width)
        self.places = nn.Embedding(length, width)
        for table in (self.embedding, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.layers = nn.ModuleList(
            Layer(width, heads, 4 * width, causal=True) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, letters, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Characters ``[b, length]`` to scores ``[b, length, letters]`` of the next."""
        places = torch.arange(codes.shape[1], device=codes.device)
        x = self.embedding(codes) + self.places(places)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class Places:
    """Batches of windows that begin at random places of the text.

    The places come from torch's generator, which a run sets from (seed, epoch).
    """

    def __init__(self, codes: Tensor, length: int, *, size: int, steps: int) -> None:
        self.codes, self.length, self.size, self.steps = codes, length, size, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        ahead = torch.arange(self.length + 1)
        for _ in range(self.steps):
            start = torch.randint(len(self.codes) - self.length, (self.size, 1))
            window = self.codes[start + ahead]
            yield window[:, :-1], window[:, 1:]


def cut(codes: Tensor, length: int, most: int) -> tuple[Tensor, Tensor]:
    """Windows that follow each other, and the same one further: two of ``[n, length]``.

    >>> [x.tolist() for x in cut(torch.arange(7), 3, 9)]
    [[[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]]]
    """
    count = min(most, (len(codes) - 1) // length)
    ends = codes[1 : 1 + count * length]
    return codes[: count * length].view(count, length), ends.view(count, length)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the next characters, in nats."""
    codes, following = batch
    return F.cross_entropy(model(codes).flatten(0, 1), following.flatten())


def bits(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """−log2 of what the model gave the right character, mean of each window: ``[n]``."""
    found = []
    for codes, following in batches:
        scores = model(codes).transpose(1, 2)  # [b, letters, length]
        found.append(F.cross_entropy(scores, following, reduction="none").mean(1))
    return torch.cat(found).double() / math.log(2)
