"""What 20 and 40 % of a hidden width cost: by rotation, by score, at random.

    PRUNUS_DATA=~/data python benchmarks/rotation.py      (ten minutes of one core)

A decoder of characters under RMS norms (width 128, three layers) is trained for 1,500 steps on the
Shakespeare text, and then cut once, without training behind the cut. Loss in nats per character on
text that was not trained on.
"""

from __future__ import annotations

import copy
import gzip
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus

LENGTH, WIDTH, STEPS = 64, 128, int(os.environ.get("STEPS", "1500"))
Batch = tuple[Tensor, Tensor]
WAYS = {
    "rotation": {"structure": {"name": "hidden", "rotate": True}},
    "magnitude": {"structure": "hidden"},
    "fisher": {"structure": "hidden", "criterion": "fisher"},
    "random": {"structure": "hidden", "criterion": "random"},
}


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, length, width]`` to the same."""
        heads = (
            z.unflatten(-1, (4, -1)).transpose(1, 2) for z in self.qkv(self.n1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.n2(x))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Characters to scores of the next one."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.words, self.pos = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.last, self.head = nn.RMSNorm(WIDTH, eps=1e-5), nn.Linear(WIDTH, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[b, length]`` to ``[b, length, characters]``."""
        x = self.words(tokens) + self.pos(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))  # type: ignore[no-any-return]


def batch(text: Tensor, source: torch.Generator, size: int = 32) -> Batch:
    """Pieces of a text, and the same one character later."""
    starts = torch.randint(0, len(text) - LENGTH - 1, (size,), generator=source)
    both = torch.stack([text[i : i + LENGTH + 1] for i in starts])
    return both[:, :-1], both[:, 1:]


def loss(model: nn.Module, given: Batch) -> Tensor:
    """Nats per character."""
    return F.cross_entropy(model(given[0]).flatten(0, 1), given[1].flatten())


def trained(text: Tensor, characters: int) -> nn.Module:
    """A dense decoder."""
    torch.manual_seed(0)
    model, source = Decoder(characters), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model, batch(text, source)).backward()
        optimizer.step()
        rate.step()
    return model


def main() -> None:
    """Train, cut, print."""
    path = Path(os.environ["PRUNUS_DATA"]) / "shakespeare" / "input.txt.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    number = {c: i for i, c in enumerate(sorted(set(text)))}
    data = torch.tensor([number[c] for c in text])
    train, held_out = data[: int(len(data) * 0.9)], data[int(len(data) * 0.9) :]
    model = trained(train, len(number))

    def batches(of: Tensor, seeds: range, size: int) -> list[Batch]:
        return [batch(of, torch.Generator().manual_seed(k), size) for k in seeds]

    judged, calibration = batches(held_out, range(9, 20), 64), batches(train, range(20), 32)

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(loss(model.eval(), b)) for b in judged) / len(judged)

    print(f"dense: {score(model):.3f}")
    for share in (0.2, 0.4):
        for name, recipe in WAYS.items():
            for seed in range(3) if name == "random" else (0,):
                result = prunus.prune(
                    copy.deepcopy(model),
                    {**recipe, "target": share, "compact": "end", "seed": seed},
                    calibration=calibration, loss=loss, example=judged[0][0][:2],
                )  # fmt: skip
                width = result.model.words.embedding_dim  # type: ignore[union-attr]
                print(f"{share:.0%} {name} ({seed}): width {width}, {score(result.model):.3f}")


if __name__ == "__main__":
    main()
