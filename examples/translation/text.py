"""Pairs of sentences, their byte-pair vocabulary, and batches of pairs of one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.errors import InputError
from prunus.tasks._files import read_text

NONE, BEGIN, END = 0, 1, 2
"""Tokens that are no text: an empty place, before the first word, behind the last one."""
LENGTH = 64
"""Tokens of a sentence at most, with its end; what is longer is cut off."""
PARTS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}

Pairs = tuple[list[str], list[str]]
Batch = dict[str, Any]


def read(folder: Path, part: str) -> Pairs:
    """The sentences of a part in both languages, line by line.

    Raises:
        InputError: if a file is missing or no UTF-8, is empty, or the two differ in lines.
    """
    files = [folder / f"{PARTS[part]}.{language}" for language in ("en", "de")]
    english, german = (_lines(read_text("translation", file)) for file in files)
    if len(english) != len(german):
        raise InputError(
            f"task translation: '{files[0]}' has {len(english)} lines and '{files[1].name}' "
            f"{len(german)}: a line must be the translation of the other file's"
        )
    pairs = [(a.strip(), b.strip()) for a, b in zip(english, german, strict=True)]
    for number, pair in enumerate(pairs, 1):
        if not all(pair):
            empty = files[0 if not pair[0] else 1]
            raise InputError(f"task translation: line {number} of '{empty}' is empty")
    if not pairs:
        raise InputError(f"task translation: '{files[0]}' holds no sentence")
    return [a for a, _ in pairs], [b for _, b in pairs]


def _lines(text: str) -> list[str]:
    """Lines end with a line feed alone: other characters that end lines may stand in a sentence."""
    return text.removesuffix("\n").split("\n") if text else []


def vocabulary_of(sentences: Sequence[str], size: int) -> Any:
    """A byte-level byte-pair tokenizer of both languages, made from the training text.

    Source: Sennrich, Haddow, Birch 2016, arXiv:1508.07909.

    Raises:
        ModuleNotFoundError: if ``tokenizers`` is not installed.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["[none]", "[begin]", "[end]"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(sentences, trainer)
    return made


def encode(tokenizer: Any, sentences: Sequence[str]) -> list[list[int]]:
    """The tokens of each sentence, and its end."""
    return [[*e.ids[: LENGTH - 1], END] for e in tokenizer.encode_batch(list(sentences))]


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """``[b, length]`` of the longest; empty places are ``NONE``.

    >>> padded([[3, 2], [2]]).tolist()
    [[3, 2], [2, 0]]
    """
    made = torch.full((len(rows), max(map(len, rows))), NONE)
    for row, tokens in zip(made, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return made


class PairBatches:
    """Batches of pairs that are about as long; a dictionary each.

    ``source [b, n]``, ``target [b, m]`` (what was said so far, from ``BEGIN`` on), ``labels``
    (``[b, m]``, the next token, ``NONE`` where there is none), and the texts.
    Shuffled, which pairs meet comes from torch's generator, which a run sets from (seed, epoch);
    else the order is that of the length.
    """

    def __init__(self, pairs: Pairs, tokenizer: Any, *, size: int, shuffle: bool) -> None:
        self.pairs, self.tokenizer, self.size, self.shuffle = pairs, tokenizer, size, shuffle
        self.sources, self.targets = (encode(tokenizer, side) for side in pairs)

    def __len__(self) -> int:
        return -(-len(self.sources) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.sources)
        order = torch.randperm(count).tolist() if self.shuffle else list(range(count))
        pool = 50 * self.size if self.shuffle else count
        sorted_ = [
            i
            for start in range(0, count, pool)
            for i in sorted(order[start : start + pool], key=self._length)
        ]
        batches = [sorted_[start : start + self.size] for start in range(0, count, self.size)]
        turns = torch.randperm(len(batches)).tolist() if self.shuffle else range(len(batches))
        for turn in turns:
            yield self.batch(batches[turn])

    def batch(self, chosen: Sequence[int]) -> Batch:
        """The pairs of these numbers."""
        targets = [self.targets[i] for i in chosen]
        return {
            "source": padded([self.sources[i] for i in chosen]),
            "target": padded([[BEGIN, *tokens[:-1]] for tokens in targets]),
            "labels": padded(targets),
            "english": [self.pairs[0][i] for i in chosen],
            "german": [self.pairs[1][i] for i in chosen],
        }

    def _length(self, number: int) -> tuple[int, int]:
        return len(self.targets[number]), len(self.sources[number])
