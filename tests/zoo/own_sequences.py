"""Sequences: Conformers, recurrences of today, dilated convolutions, experts, answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import Entry, normal, seeded, tokens


class Conformer(nn.Module):
    """Half a feed-forward layer, attention, a gated depthwise convolution, the other half."""

    def __init__(self, width: int = 16, heads: int = 4, inner: int = 23, size: int = 5) -> None:
        super().__init__()
        self.width = width
        self.before, self.behind = self._perceptron(width, inner), self._perceptron(width, inner)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.enter = nn.Conv1d(width, 2 * 18, 1)
        self.depth = nn.Conv1d(18, 18, size, padding=size // 2, groups=18)
        self.statistics, self.leave = nn.BatchNorm1d(18), nn.Conv1d(18, width, 1)
        self.last = nn.LayerNorm(width)

    @staticmethod
    def _perceptron(width: int, inner: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.SiLU(),
                             nn.Linear(inner, width))  # fmt: skip

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = x + self.before(x) / 2
        h = self.norm1(x)
        x = x + self.attention(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        h = F.glu(self.enter(self.norm2(x).transpose(1, 2)), 1)
        if padding is not None:
            h = h.masked_fill(padding[:, None], 0.0)
        x = x + self.leave(F.silu(self.statistics(self.depth(h)))).transpose(1, 2)
        return self.last(x + self.behind(x) / 2)


class SpeechRecognizer(nn.Module):
    """Frames are made fewer by convolutions, then two Conformers, then letters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.project, self.out = nn.Linear(8 * 3, 16), nn.Linear(16, 9)
        self.blocks = nn.ModuleList(Conformer() for _ in range(2))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        h = F.relu(self.b(F.relu(self.a(x[:, None]))))
        h = self.project(h.transpose(1, 2).flatten(2))
        for block in self.blocks:
            h = block(h, None if padding is None else padding[:, ::4])
        return self.out(h).log_softmax(-1)


class MatrixMemory(nn.Module):
    """xLSTM's mLSTM, in parallel: exponential gates, a decay between any two steps."""

    def __init__(self, width: int = 14, heads: int = 3, inner: int = 18) -> None:
        super().__init__()
        self.heads, self.inner = heads, inner
        self.norm, self.enter = nn.LayerNorm(width), nn.Linear(width, 2 * inner)
        self.q, self.k, self.v = (nn.Linear(inner, inner, bias=False) for _ in range(3))
        self.gates, self.leave = nn.Linear(inner, 2 * heads), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h, gate = self.enter(self.norm(x)).chunk(2, -1)
        q, k, v = (
            f(h).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        write, keep = self.gates(h).transpose(1, 2).chunk(2, 1)
        past = F.logsigmoid(keep).cumsum(-1)
        decay = past[..., :, None] - past[..., None, :] + write[..., None, :]
        later = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        decay = decay.masked_fill(later, float("-inf"))
        peak = decay.amax(-1, keepdim=True)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 * (decay - peak).exp()
        size = torch.maximum(scores.sum(-1, keepdim=True).abs(), (-peak).exp())
        h = (scores / size @ v).transpose(1, 2).flatten(2)
        return x + self.leave(h * F.silu(gate))


class ScalarMemory(nn.Module):
    """xLSTM's sLSTM, step by step: exponential gates held in range by a running maximum."""

    def __init__(self, width: int = 14, inner: int = 11) -> None:
        super().__init__()
        self.inner = inner
        self.read, self.recur = nn.Linear(width, 4 * inner), nn.Linear(inner, 4 * inner, bias=False)
        self.leave = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        h = c = n = x.new_zeros(x.shape[0], self.inner)
        m, answers = h, []
        for t in range(x.shape[1]):
            z, i, f, o = (self.read(x[:, t]) + self.recur(h)).chunk(4, -1)
            f = F.logsigmoid(f)
            new = torch.maximum(f + m, i)
            write, keep = (i - new).exp(), (f + m - new).exp()
            c, n, m = keep * c + write * z.tanh(), keep * n + write, new
            h = o.sigmoid() * c / n.clamp(min=1e-6)
            answers.append(h)
        return x + self.leave(torch.stack(answers, 1))


class TimeMix(nn.Module):
    """RWKV: a weighted past, decaying by channel, and a token shift in front of it."""

    def __init__(self, width: int = 12, inner: int = 15, ffn: int = 20) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Parameter(torch.rand(4, width))
        self.decay, self.first = nn.Parameter(torch.rand(inner)), nn.Parameter(torch.rand(inner))
        self.k, self.v, self.r = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.leave = nn.Linear(inner, width, bias=False)
        self.wide, self.narrow = nn.Linear(width, ffn), nn.Linear(ffn, width)

    @staticmethod
    def shifted(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, 0))[:, :-1]

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        mixed = [h * m + self.shifted(h) * (1 - m) for m in self.mix]
        k, v, r = self.k(mixed[0]), self.v(mixed[1]), self.r(mixed[2]).sigmoid()
        above = below = torch.zeros_like(k[:, 0])
        decay, answers = (-self.decay.exp()).exp(), []
        for t in range(x.shape[1]):
            now = (self.first + k[:, t]).exp()
            answers.append((above + now * v[:, t]) / (below + now))
            above = decay * above + k[:, t].exp() * v[:, t]
            below = decay * below + k[:, t].exp()
        x = x + self.leave(r * torch.stack(answers, 1))
        h = self.norm2(x)
        h = h * self.mix[3] + self.shifted(h) * (1 - self.mix[3])
        return x + self.narrow(F.relu(self.wide(h)) ** 2)


class Language(nn.Module):
    """Words, blocks, and the words again."""

    def __init__(self, width: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(29, width), nn.ModuleList(blocks)
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 29)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


class WaveNet(nn.Module):
    """Causal dilated convolutions with gates, a stream and a sum of skips."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, 8, 1)
        self.gated = nn.ModuleList(nn.Conv1d(8, 2 * 9, 2, dilation=2**i) for i in range(3))
        self.stay = nn.ModuleList(nn.Conv1d(9, 8, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(9, 12, 1) for _ in range(3))
        self.out = nn.Conv1d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.enter(x), 0
        for i, gated in enumerate(self.gated):
            value, gate = gated(F.pad(x, (2**i, 0))).chunk(2, 1)
            h = value.tanh() * gate.sigmoid()
            x, total = x + self.stay[i](h), total + self.skip[i](h)
        return self.out(F.relu(total))


class Experts(nn.Module):
    """A list of experts; each token goes to two, and some experts to no token."""

    def __init__(self, experts: int = 6) -> None:
        super().__init__()
        self.enter, self.router = nn.Linear(9, 16), nn.Linear(16, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 11), nn.SiLU(), nn.Linear(11, 16)) for _ in range(experts)
        )
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        y = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == k)
            if token.numel():
                y = y.index_add(0, token, expert(x[token]) * weights[token, slot, None])
        return self.out(self.norm(x + y))


class FusedExperts(nn.Module):
    """Experts as tensors of three dimensions, all of them run, weighed by the router."""

    def __init__(self, experts: int = 5) -> None:
        super().__init__()
        self.router = nn.Linear(10, experts)
        self.up = nn.Parameter(torch.randn(experts, 10, 26) / 3)
        self.down = nn.Parameter(torch.randn(experts, 13, 10) / 3)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        weights = torch.zeros_like(self.router(x)).scatter(-1, chosen, weights)
        value, gate = torch.einsum("btw,ewi->btei", x, self.up).chunk(2, -1)
        y = torch.einsum("btei,eiw->btew", value * F.silu(gate), self.down)
        return self.out(x + (y * weights[..., None]).sum(2))


@dataclass
class Answer:
    logits: Tensor
    features: Tensor
    extra: Tensor | None = None


class Heads(NamedTuple):
    first: Tensor
    rest: dict[str, list[Tensor]]


class Structured(nn.Module):
    """A dataclass comes out, in which a part is ``None``; a dictionary goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 16), nn.Linear(16, 9), nn.Linear(9, 4)

    def forward(self, inputs: dict[str, Tensor]) -> Answer:
        h = F.relu(self.a(inputs["x"]) * inputs["weight"])
        return Answer(self.out(F.relu(self.b(h))), h.mean(-1))


class Nested(nn.Module):
    """Named tuples, lists, dictionaries, a class and a complex number come out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.heads = nn.Linear(6, 17), nn.ModuleList(nn.Linear(17, n) for n in (3, 4))

    def forward(self, x: Tensor) -> Heads:
        h = torch.tanh(self.a(x))
        y = [head(h) for head in self.heads]
        return Heads(y[0], {"both": y, "turned": [torch.polar(y[0].exp(), y[0])]})


class Chosen(nn.Module):
    """Integers alone come out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 17), nn.Linear(17, 12), nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(x))))).argsort(-1)


class Unbatched(nn.Module):
    """A single sequence without a batch: an LSTM and convolutions take it so."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.out = nn.Conv1d(4, 10, 3), nn.LSTM(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(F.relu(self.conv(x)).t())[0])


def _entry(name: str, make: Any, example: Any, units: dict[str, int], **more: Any) -> Entry:
    return Entry(name, seeded(make), example, lambda: units, None, **more)


WORDS = {"example": lambda: tokens(29, 2, 7)}
BLOCK = {"heads": 4, "ffn": 2 * 23, "convolution": 18}

ENTRIES = [
    _entry("conformer", Conformer, normal(2, 11, 16), BLOCK,
           calls=lambda: {"padding": (normal(2, 11, 16)(), torch.arange(11)[None] >= _LENGTHS)}),
    _entry("speech recognizer", SpeechRecognizer, normal(2, 24, 12),
           {"a": 6, "b": 8} | {k: 2 * n for k, n in BLOCK.items()},
           calls=lambda: {"padding": (normal(2, 24, 12)(), torch.arange(24)[None] >= _LENGTHS)}),
    _entry("xlstm, matrix memory", lambda: Language(14, MatrixMemory(), MatrixMemory()),
           units={"read": 36, "values": 12, "keys": 12}, **WORDS),
    _entry("xlstm, scalar memory", lambda: Language(14, ScalarMemory()),
           units={"cells": 11}, **WORDS),
    _entry("rwkv", lambda: Language(12, TimeMix(), TimeMix()),
           units={"channels": 30, "ffn": 40}, **WORDS),
    _entry("wavenet", WaveNet, normal(2, 1, 20), {"stream": 8, "gated": 27, "skip": 12}),
    _entry("experts in a list", Experts, normal(8, 9), {"neurons of experts": 66}, export=False,
           note="no token of the example goes to one of the six, which is cut as the others are",
           calls=lambda: {"one token": normal(1, 9)(), "many tokens": normal(40, 9)() * 2}),
    _entry("experts in a tensor", FusedExperts, normal(2, 6, 10), {"neurons": 13}),
    _entry("a dataclass comes out", Structured,
           lambda: ({"x": normal(2, 5)(), "weight": normal(2, 1)()},), {"neurons": 9}),
    _entry("nested answers", Nested, normal(2, 6), {"neurons": 17}),
    _entry("integers come out", Chosen, normal(2, 6), {"neurons": 29}),
    _entry("no batch", Unbatched, normal(4, 9), {"channels": 10, "cells": 8}),
]  # fmt: skip
_LENGTHS = torch.tensor([[24], [8]])
