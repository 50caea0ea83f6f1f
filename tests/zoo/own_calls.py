"""Models with more than one way to be called: optional arguments, masks, sizes, modes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import Entry, normal, seeded, tokens


class Optional(nn.Module):
    """A number and a tensor that may be left out, and a size that the code writes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(7, 22), nn.Linear(22, 14), nn.Linear(14, 3)

    def forward(self, x: Tensor, scale: float = 1.0, context: Tensor | None = None) -> Tensor:
        h = F.relu(self.first(x)).view(-1, 22) * scale
        if context is not None:
            h = h + context
        return self.out(F.relu(self.second(h)))


class Masked(nn.Module):
    """``nn.TransformerEncoder`` that takes padding and a mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(20, 4, 27, batch_first=True)
        self.embed = nn.Embedding(31, 20)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(20, 3)

    def forward(self, ids: Tensor, padding: Tensor | None = None, causal: bool = False) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]) if causal else None
        x = self.embed(ids)
        return self.out(self.encoder(x, mask=mask, src_key_padding_mask=padding))


class Weighing(nn.Module):
    """``nn.MultiheadAttention`` whose weights are asked for, or not, averaged, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.first, self.second = nn.Linear(16, 23), nn.Linear(23, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None, weights: bool = False) -> Any:
        h, w = self.attention(x, x, x, attn_mask=mask, need_weights=weights)
        out = self.second(F.gelu(self.first(h + x)))
        return (out, w) if weights else out


class Resolution(nn.Module):
    """Another way through the code for large pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.c, self.out = nn.Linear(12 * 16, 19), nn.Linear(19, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        if x.shape[-1] > 12:
            h = F.max_pool2d(F.relu(self.b(h)), 2) * 2
        return self.out(F.relu(self.c(F.adaptive_avg_pool2d(h, 4).flatten(1))))


class Auxiliary(nn.Module):
    """A second head, noise, and a moving average while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 11, 3), nn.BatchNorm2d(11)
        self.b, self.out, self.aux = nn.Conv2d(11, 14, 3), nn.Linear(14, 4), nn.Linear(11, 4)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.norm(self.a(x)))
        out = self.out(F.relu(self.b(h)).mean((2, 3)))
        if not self.training:
            return out
        with torch.no_grad():
            self.average.mul_(0.9).add_(0.1 * out.mean(0))
        return out, self.aux(h.mean((2, 3)) + 0.1 * torch.randn(4, 11)[: len(x)])


class Forced(nn.Module):
    """A recurrent decoder: its own answers are its inputs; while it trains, the targets are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(17, 8), nn.GRUCell(8, 13)
        self.encode, self.out = nn.Linear(6, 13), nn.Linear(13, 17)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        h, word, answers = torch.tanh(self.encode(x)), target[:, 0], []
        for t in range(target.shape[1]):
            h = self.cell(self.embed(word), h)
            answers.append(self.out(h))
            word = target[:, t] if self.training else answers[-1].argmax(-1)
        return torch.stack(answers, 1)


class Parts(nn.Module):
    """An argument says which of the answers are wanted; the example drops some."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 16), nn.Linear(16, 9)

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        y = self.out(F.relu(self.a(x)))
        return y[:, -3:] if last else y[:, :5]


class Tasks(nn.Module):
    """Heads of several tasks, one of them asked for by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.heads = nn.ModuleDict({"one": nn.Linear(16, 4), "two": nn.Linear(16, 3)})

    def forward(self, x: Tensor, task: str = "one") -> Tensor:
        return self.heads[task](F.relu(self.a(x)))


class Adapted(nn.Module):
    """A branch that is added on request, and features that are returned on request."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.side, self.out = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, adapt: bool = False, features: bool = False) -> Any:
        h = self.a(x)
        if adapt:
            h = h + self.side(x)
        y = self.out(F.relu(h))
        return (y, h) if features else y


class Doubtful(nn.Module):
    """Large values take another way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        if x.abs().max() > 10:
            h = F.relu(self.b(h))
        return self.out(h)


class Centered(nn.Module):
    """The batch's size is a divisor, and the picture's a number in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 21), nn.Linear(21, 13), nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.b(F.relu(self.a(x)).view(-1, 21)))
        return self.out(h - h.sum(0, keepdim=True) / x.shape[0])


class Sampling(nn.Module):
    """A hard choice by noise under ``if self.training``, by ``argmax`` otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.choose = nn.Linear(9, 16), nn.Linear(16, 6)
        self.values, self.out = nn.Linear(6, 12, bias=False), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.choose(torch.tanh(self.read(x)))
        if self.training:
            noise = -torch.rand(scores.shape).add(1e-6).log()
            choice = (scores - noise.log()).softmax(-1)
        else:
            choice = F.one_hot(scores.argmax(-1), 6).to(scores.dtype)
        return self.out(F.relu(self.values(choice)))


def _padding() -> Tensor:
    return torch.arange(7)[None] >= torch.tensor([[7], [4]])


def _masks() -> dict[str, Any]:
    ids = tokens(31, 2, 7)
    return {
        "padding": (ids, _padding()),
        "causal": {"ids": ids, "causal": True},
        "padding of floats": (ids, torch.zeros(2, 7).masked_fill(_padding(), float("-inf"))),
        "causal, padded": (ids, _padding(), True),
    }


def _weights() -> dict[str, Any]:
    x = normal(2, 6, 16)()
    mask = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    return {
        "a mask": (x, mask),
        "a mask for each head": (x, mask.expand(8, 6, 6)),
        "a mask of floats": (x, mask.float() * -3),
        "weights too": (x, mask, True),
    }


def _options() -> dict[str, Any]:
    x = normal(4, 7)()
    return {
        "another number": (x, 2.0),
        "an integer": (x, 2),
        "a tensor by name": {"x": x, "context": torch.full((4, 1), 0.3)},
        "what was left out, given": (x, 1.0, None),
    }


def _entry(name: str, make: Any, example: Any, units: dict[str, int], **more: Any) -> Entry:
    return Entry(name, seeded(make), example, lambda: units, None, **more)


ENTRIES = [
    _entry("optional arguments", Optional, normal(2, 7), {"a": 22, "b": 14}, calls=_options),
    _entry("masks of an encoder", Masked, lambda: tokens(31, 2, 7), {"heads": 8, "ffn": 54},
           calls=_masks),
    _entry("attention weights on request", Weighing, normal(2, 6, 16), {"heads": 4, "ffn": 23},
           calls=_weights),
    _entry("a branch on the resolution", Resolution, normal(2, 3, 8, 8), {"a": 12, "c": 19},
           calls=lambda: {"beyond the branch": normal(2, 3, 16, 16)()}),
    _entry("auxiliary head", Auxiliary, normal(2, 3, 9, 8), {"b": 14},
           note="what ``a`` writes goes with noise of a literal width in train mode, which stays"),
    _entry("teacher forcing", Forced, lambda: (normal(2, 6)(), tokens(17, 2, 5)),
           {"embedding": 8, "cell": 13}),
    _entry("answers that are dropped", Parts, normal(2, 6), {"a": 16},
           calls=lambda: {"the others": (normal(2, 6)(), True)}),
    _entry("heads by name", Tasks, normal(2, 6), {"a": 16},
           calls=lambda: {"the other task": (normal(2, 6)(), "two")}),
    _entry("branches on request", Adapted, normal(2, 6), {"a": 16},
           calls=lambda: {"adapted": (normal(2, 6)(), True),
                          "features too": (normal(2, 6)(), False, True)}),
    _entry("large values take another way", Doubtful, normal(2, 6), {"a": 16}, export=False,
           calls=lambda: {"large values": 20 * normal(2, 6)()}),
    _entry("the batch as a divisor", Centered, normal(2, 8), {"a": 21, "b": 13}),
    _entry("sampling in train mode", Sampling, normal(2, 9), {"read": 16, "values": 12}),
]  # fmt: skip
