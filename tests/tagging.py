"""A task with everything that is no tensor in, tensor out: for every door alike.

Batches are dictionaries of texts of different lengths; the model has two heads, answers with a
tuple, and gives its own loss when it is told the tags; its metric is one of the whole set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import Scores

Batch = dict[str, Tensor]
RECIPE: dict[str, Any] = {
    "dense": "12it", "retrain": "6it", "rounds": 2, "target": {"max_params": 0.6},
    "schedule": "linear", "criterion": "sensitivity", "structure": "channel",
    "guard": {"better": "lower", "max_drop": 0.9}, "compact": "end",
}  # fmt: skip


class Tagger(nn.Module):
    """A tag for each token, and how many of them are odd."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.hidden = nn.Linear(16, 32)
        self.tag, self.count = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(
        self, tokens: Tensor, lengths: Tensor, tags: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``[b, n]`` and ``[b]`` to scores ``[b, n, 3]`` and ``[b]``; with ``tags`` the loss."""
        x = F.relu(self.hidden(self.embedding(tokens)))
        there = torch.arange(tokens.shape[1]) < lengths[:, None]
        scores, odd = self.tag(x), (self.count(x)[..., 0] * there).sum(1)
        if tags is None:
            return scores, odd
        each = F.cross_entropy(scores.flatten(0, 1), tags.flatten(), reduction="none")
        named = ((each.view_as(there) * there).sum(1) / lengths).mean()
        return named + 0.1 * F.mse_loss(odd, ((tokens % 2) * there).sum(1).to(odd))


def network() -> Tagger:
    """The same one every time."""
    torch.manual_seed(5)
    return Tagger().double()


def batches(count: int, *, seed: int) -> list[Batch]:
    """Of eight texts each; a token's tag is what is left of it, divided by three."""
    source = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        longest = 4 + number % 3
        tokens = torch.randint(1, 12, (8, longest), generator=source)
        lengths = torch.randint(2, longest + 1, (8,), generator=source)
        tokens = tokens * (torch.arange(longest) < lengths[:, None])
        made.append({"tokens": tokens, "lengths": lengths, "tags": tokens % 3})
    return made


def part(given: Sequence[Batch], rank: int, size: int) -> list[Batch]:
    """Every ``size``-th text of each batch."""
    return [{name: t[rank::size] for name, t in batch.items()} for batch in given]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own."""
    found: Tensor = model(**batch)
    return found


def errors(model: nn.Module, given: Iterable[Batch]) -> Scores:
    """Wrong tags ÷ tags of the whole set; rows are texts."""
    rows = []
    for batch in given:
        scores, _ = model(batch["tokens"], batch["lengths"])
        there = torch.arange(scores.shape[1]) < batch["lengths"][:, None]
        wrong = (scores.argmax(2) != batch["tags"]) & there
        rows.append(torch.stack([wrong.sum(1), batch["lengths"]], 1))
    return Scores(torch.cat(rows).double(), better="lower", figure=rate)


def rate(rows: Tensor) -> float:
    """Of rows (wrong, all)."""
    return float(rows[:, 0].sum() / rows[:, 1].sum())


EXAMPLE = [{k: b[k][:2] for k in ("tokens", "lengths")} for b in batches(2, seed=9)]
TRAIN, HELD = batches(6, seed=1), batches(3, seed=2)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Of all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=0.03)
