"""The two translators: a transformer of encoder and decoder, and a GRU with attention.

Both read a whole pair in ``forward`` (training), and one token at a time in ``start`` and ``step``,
with what was computed before in a cache. Sizes of heads, neurons and states are read off the
tensors, so that a pruned network decodes by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.methods.catalog import module_at

NONE = module_at(Path(__file__).with_name("text.py")).NONE
LENGTH = module_at(Path(__file__).with_name("text.py")).LENGTH
SMOOTHING = 0.1


@dataclass(frozen=True)
class Cache:
    """What decoding keeps from step to step, a row for each sentence.

    Attributes:
        present: ``[b, 1, 1, n]``, which places of the source hold a token.
        fixed: what the source gives: tensors ``[b, …]``.
        grown: what the steps so far give: tensors ``[b, …]``.
    """

    present: Tensor
    fixed: tuple[Tensor, ...]
    grown: tuple[Tensor, ...]

    def rows(self, chosen: Tensor) -> Cache:
        """The cache of some of its rows ``[c]``, which may repeat."""
        parts = (tuple(t[chosen] for t in part) for part in (self.fixed, self.grown))
        return Cache(self.present[chosen], *parts)


class Translator(nn.Module):
    """One table of tokens for both languages and the scores; the loss is the model's own."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.scale = width**0.5  # stays when the width is cut
        self.embedding = nn.Embedding(tokens, width, padding_idx=NONE)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[NONE] = 0

    def forward(self, source: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores ``[b, m, tokens]`` of what follows; with ``labels`` ``[b, m]`` their mean loss.

        The loss is the cross-entropy in nats with a tenth of the label spread over all tokens
        (Szegedy et al. 2015, arXiv:1512.00567), over the places that hold a label.

        Args:
            source: ``[b, n]``.
            target: ``[b, m]``, what was said so far.
            labels: the next tokens.
        """
        scores = self.scores(self.decode(source, target))
        if labels is None:
            return scores
        return F.cross_entropy(
            scores.flatten(0, 1), labels.flatten(), ignore_index=NONE, label_smoothing=SMOOTHING
        )

    def scores(self, states: Tensor) -> Tensor:
        """``[…, width]`` to ``[…, tokens]``."""
        return F.linear(states, self.embedding.weight)

    def decode(self, source: Tensor, target: Tensor) -> Tensor:
        """States ``[b, m, width]``, each of what was said up to its place."""
        raise NotImplementedError  # each network has its own

    def start(self, source: Tensor) -> Cache:
        """Read ``[b, n]``, before the first step."""
        raise NotImplementedError  # each network has its own

    def step(self, tokens: Tensor, place: int, cache: Cache) -> tuple[Tensor, Cache]:
        """Scores ``[b, tokens]`` of what follows the tokens ``[b]`` at a place, and the cache."""
        raise NotImplementedError  # each network has its own


class Attention(nn.Module):
    """Attention of several heads; keys and values come from what is read."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = width // heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[b, heads, n, size]`` of ``[b, n, width]``."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """``[b, m, width]`` to the same shape; ``mask`` broadcasts to ``[b, heads, m, n]``."""
        found = F.scaled_dot_product_attention(
            self._split(self.query(x)), keys, values, attn_mask=mask, is_causal=causal
        )
        return self.output(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.size)).transpose(1, 2)


class Feed(nn.Module):
    """Two linear layers, normed before and added."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, n, width]`` to the same shape."""
        inner = self.dropout(F.relu(self.up(self.norm(x))))
        return x + self.dropout(self.down(inner))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Attention among the source's places, and neurons."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed = Feed(width, inner, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """``[b, n, width]`` to the same shape."""
        normed = self.norm(x)
        found = self.attention(normed, *self.attention.read(normed), present)
        return self.feed(x + self.dropout(found))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention to what was said, attention to the source, and neurons."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.source_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.source = Attention(width, heads), Attention(width, heads)
        self.feed = Feed(width, inner, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, present: Tensor) -> Tensor:
        """``[b, m, width]`` to the same shape; ``memory`` is ``[b, n, width]``."""
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, *self.attention.read(normed), causal=True))
        found = self.source(self.source_norm(x), *self.source.read(memory), present)
        return self.feed(x + self.dropout(found))  # type: ignore[no-any-return]

    def step(self, x: Tensor, said: tuple[Tensor, Tensor], memory: tuple[Tensor, Tensor],
             present: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
        """The same of one place ``[b, 1, width]``, and the keys and values with it."""
        normed = self.norm(x)
        new = self.attention.read(normed)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(said, new, strict=True))
        x = x + self.attention(normed, keys, values)
        x = x + self.source(self.source_norm(x), *memory, present)
        return self.feed(x), (keys, values)


class Transformer(Translator):
    """Encoder and decoder layers, normed before (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(
        self, tokens: int, *, width: int, heads: int, inner: int, layers: tuple[int, int],
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__(tokens, width)
        self.places = nn.Embedding(LENGTH, width)
        nn.init.normal_(self.places.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        sizes = width, heads, inner, dropout
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(layers[0]))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(layers[1]))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def decode(self, source: Tensor, target: Tensor) -> Tensor:
        """States ``[b, m, width]``."""
        present = (source != NONE)[:, None, None]
        memory = self.encode(source, present)
        x = self.embed(target, torch.arange(target.shape[1], device=target.device))
        for layer in self.decoder:
            x = layer(x, memory, present)
        return self.decoder_norm(x)  # type: ignore[no-any-return]

    def encode(self, source: Tensor, present: Tensor) -> Tensor:
        """``[b, n]`` to ``[b, n, width]``."""
        x = self.embed(source, torch.arange(source.shape[1], device=source.device))
        for layer in self.encoder:
            x = layer(x, present)
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def embed(self, tokens: Tensor, places: Tensor) -> Tensor:
        """``[b, n]`` and ``[n]`` to ``[b, n, width]``."""
        return self.dropout(self.scale * self.embedding(tokens) + self.places(places))  # type: ignore[no-any-return]

    def start(self, source: Tensor) -> Cache:
        """Keys and values of the source for each layer; none of what is said yet."""
        present = (source != NONE)[:, None, None]
        memory = self.encode(source, present)
        fixed = [t for layer in self.decoder for t in layer.source.read(memory)]
        grown = [t for layer in self.decoder for t in layer.attention.read(memory[:, :0])]
        return Cache(present, tuple(fixed), tuple(grown))

    def step(self, tokens: Tensor, place: int, cache: Cache) -> tuple[Tensor, Cache]:
        """Scores ``[b, tokens]``."""
        x = self.embed(tokens[:, None], torch.tensor([place], device=tokens.device))
        grown: list[Tensor] = []
        for i, layer in enumerate(self.decoder):
            pair = slice(2 * i, 2 * i + 2)
            x, said = layer.step(x, cache.grown[pair], cache.fixed[pair], cache.present)
            grown += said
        found = self.scores(self.decoder_norm(x[:, 0]))
        return found, Cache(cache.present, cache.fixed, tuple(grown))


class Recurrent(Translator):
    """A GRU in both directions, a GRU that speaks, and attention between them.

    Source: Luong, Pham, Manning 2015, arXiv:1508.04025 (the score "general").
    """

    def __init__(self, tokens: int, *, width: int, hidden: int, dropout: float) -> None:
        super().__init__(tokens, width)
        self.encoder = nn.GRU(width, hidden, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.decoder = nn.GRU(width, hidden, batch_first=True)
        self.keys = nn.Linear(2 * hidden, hidden, bias=False)
        self.output = nn.Linear(3 * hidden, width)
        self.dropout = nn.Dropout(dropout)

    def decode(self, source: Tensor, target: Tensor) -> Tensor:
        """States ``[b, m, width]``."""
        memory, keys, state = self._read(source)
        said, _ = self.decoder(self._embed(target), state.contiguous())
        return self._attend(said, memory, keys, (source != NONE)[:, None])

    def start(self, source: Tensor) -> Cache:
        """What was read, and the state before the first word."""
        memory, keys, state = self._read(source)
        return Cache((source != NONE)[:, None], (memory, keys), (state.transpose(0, 1),))

    def step(self, tokens: Tensor, place: int, cache: Cache) -> tuple[Tensor, Cache]:
        """Scores ``[b, tokens]``."""
        before = cache.grown[0].transpose(0, 1).contiguous()
        said, state = self.decoder(self._embed(tokens[:, None]), before)
        found = self.scores(self._attend(said, *cache.fixed, cache.present)[:, 0])
        return found, Cache(cache.present, cache.fixed, (state.transpose(0, 1),))

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.scale * self.embedding(tokens))  # type: ignore[no-any-return]

    def _read(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is read ``[b, n, 2h]``, its keys ``[b, n, h]``, the first state ``[1, b, h]``."""
        memory, _ = self.encoder(self._embed(source))
        memory = self.dropout(memory)
        there = (source != NONE)[:, :, None].to(memory.dtype)
        mean = (memory * there).sum(1) / there.sum(1).clamp(min=1)
        return memory, self.keys(memory), torch.tanh(self.bridge(mean))[None]

    def _attend(self, said: Tensor, memory: Tensor, keys: Tensor, present: Tensor) -> Tensor:
        """``[b, m, h]`` to ``[b, m, width]``; ``present`` is ``[b, 1, n]``."""
        match = (said @ keys.transpose(1, 2)).masked_fill(~present, -1e4)
        seen = torch.softmax(match, dim=2) @ memory
        return self.dropout(torch.tanh(self.output(torch.cat([said, seen], dim=2))))  # type: ignore[no-any-return]
