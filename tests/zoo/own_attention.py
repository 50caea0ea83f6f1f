"""torch's own transformer layers, and attention as people write it by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import STREAM, Entry, normal, reads, seeded, tokens, writes


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` between two linear layers."""

    def __init__(
        self, *, norm_first: bool, width: int = 24, heads: int = 4, inner: int = 37, layers: int = 2
    ) -> None:
        super().__init__()
        self.heads, self.inner, self.layers = heads, inner, layers
        self.embed = nn.Linear(5, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, inner, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(x)).mean(1))

    def units(self) -> dict[str, int]:
        return {"heads": self.layers * self.heads, "ffn neurons": self.layers * self.inner}


class Decoder(nn.Module):
    """``nn.TransformerDecoder``: causal self-attention and attention to a memory, time first."""

    def __init__(
        self, *, told: bool, width: int = 20, heads: int = 4, inner: int = 27, words: int = 31
    ) -> None:
        super().__init__()
        self.heads, self.inner, self.layers = heads, inner, 2
        self.causal = told or None
        self.embedding = nn.Embedding(words, width)
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(width, heads, inner), self.layers
        )
        self.out = nn.Linear(width, words)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.size(0))
        x = self.embedding(ids)
        return self.out(self.decoder(x, memory, tgt_mask=mask, tgt_is_causal=self.causal))

    def units(self) -> dict[str, int]:
        return {"heads": 2 * self.layers * self.heads, "ffn neurons": self.layers * self.inner}


class Sequence2Sequence(nn.Module):
    """``nn.Transformer`` with a causal mask, and padding masked in the memory."""

    def __init__(
        self, width: int = 18, heads: int = 6, inner: int = 25, layers: int = 2, words: int = 31
    ) -> None:
        super().__init__()
        self.heads, self.inner, self.layers = heads, inner, layers
        self.source = nn.Embedding(29, width)
        self.target = nn.Embedding(words, width)
        self.transformer = nn.Transformer(width, heads, layers, layers + 1, inner, batch_first=True)
        self.out = nn.Linear(width, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1))
        y = self.transformer(
            self.source(source),
            self.target(target),
            tgt_mask=mask.isinf(),
            tgt_is_causal=True,
            memory_key_padding_mask=source == 3,
        )
        return self.out(y)

    def units(self) -> dict[str, int]:
        encoder, decoder = self.layers, self.layers + 1
        return {
            "heads": (encoder + 2 * decoder) * self.heads,
            "ffn neurons": (encoder + decoder) * self.inner,
        }


class Attention(nn.Module):
    """``nn.MultiheadAttention`` without a norm: the stream is free as well."""

    def __init__(self, width: int = 15, heads: int = 5) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.embed = nn.Linear(4, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.embed(x))
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])

    def units(self) -> dict[str, int]:
        return {"heads": self.heads, "stream": self.width}


class TwoWidths(nn.Module):
    """Keys and values of their own widths: three projections instead of a packed one."""

    def __init__(self, width: int = 12, heads: int = 3, keys: int = 7, values: int = 10) -> None:
        super().__init__()
        self.width, self.heads, self.keys, self.values = width, heads, keys, values
        self.embed = nn.Linear(4, width)
        self.key, self.value = nn.Linear(5, keys), nn.Linear(5, values)
        self.attention = nn.MultiheadAttention(
            width, heads, kdim=keys, vdim=values, batch_first=True
        )
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        key, value = self.key(memory), self.value(memory)
        y, _ = self.attention(torch.relu(self.embed(x)), key, value, need_weights=False)
        return self.out(torch.tanh(y))

    def units(self) -> dict[str, int]:
        """No residual: what the attention reads and what it writes are apart."""
        read = self.width + self.keys + self.values
        return {"heads": self.heads, "read": read, "written": self.width}


class FusedBlock(nn.Module):
    """A vision transformer's block: queries, keys and values from one layer, unbound."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q * self.head_dim**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(b, n, c)) * self.gamma
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """As timm writes it: patches, a class token, fused queries, keys and values, a layer scale."""

    def __init__(self, width: int = 28, heads: int = 4, inner: int = 45, layers: int = 2) -> None:
        super().__init__()
        self.heads, self.inner, self.layers = heads, inner, layers
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 10, width))
        self.blocks = nn.Sequential(*(FusedBlock(width, heads, inner) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])

    def units(self) -> dict[str, int]:
        return {"heads": self.layers * self.heads, "ffn neurons": self.layers * self.inner}


class Einsum(nn.Module):
    """Attention by ``einsum``, with a bias per head and pair of positions."""

    def __init__(self, width: int = 14, heads: int = 3, head: int = 5, length: int = 6) -> None:
        super().__init__()
        self.heads, self.head = heads, head
        self.embed = nn.Linear(4, width)
        self.norm = nn.RMSNorm(width)
        self.q = nn.Linear(width, heads * head, bias=False)
        self.kv = nn.Linear(width, 2 * heads * head)
        self.o = nn.Linear(heads * head, width)
        self.bias = nn.Parameter(torch.randn(heads, length, length))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.head)
        k, v = (t.unflatten(-1, (self.heads, self.head)) for t in self.kv(x).chunk(2, dim=-1))
        scores = torch.einsum("bnhe,bmhe->bhnm", q, k) * self.head**-0.5 + self.bias
        y = torch.einsum("bhnm,bmhe->bnhe", torch.softmax(scores, dim=-1), v)
        return self.out(x + self.o(y.flatten(2)))

    def units(self) -> dict[str, int]:
        return {"heads": self.heads}


def pre_norm() -> Encoder:
    return Encoder(norm_first=True, width=21, heads=7, inner=33, layers=3)


def post_norm() -> Encoder:
    return Encoder(norm_first=False)


def told() -> Decoder:
    return Decoder(told=True)


def untold() -> Decoder:
    return Decoder(told=False)


LAYER = {
    "*.norm[123].*:0": STREAM,
    "*.in_proj_weight:1": STREAM,
    "*.out_proj.*:0": STREAM,
    "*.linear1.weight:1": STREAM,
    "*.linear2.*:0": STREAM,
}
EMBED = {"embed.*:[01]": STREAM, "out.weight:1": STREAM}
OUT = writes("out")

ROWS = "a row per word; " + STREAM
DECODER = LAYER | {"embedding.weight:[01]": ROWS, "out.weight:1": STREAM} | OUT

ENTRIES = [
    Entry(
        "torch encoder, post-norm",
        seeded(post_norm),
        normal(2, 6, 5),
        lambda: post_norm().units(),
        LAYER | EMBED | OUT,
        core=True,
    ),
    Entry(
        "torch encoder, pre-norm",
        seeded(pre_norm),
        normal(2, 6, 5),
        lambda: pre_norm().units(),
        LAYER | EMBED | OUT,
    ),
    Entry(
        "torch decoder",
        seeded(told),
        lambda: (tokens(31, 6, 2), normal(9, 2, 20)()),
        lambda: told().units(),
        DECODER,
    ),
    Entry(
        "torch decoder, mask examined",
        seeded(untold),
        lambda: (tokens(31, 6, 2), normal(9, 2, 20)()),
        lambda: untold().units(),
        DECODER,
        export=False,
        note="without tgt_is_causal torch compares the mask with a causal one and branches on it",
    ),
    Entry(
        "torch transformer",
        seeded(Sequence2Sequence),
        lambda: (tokens(29, 2, 8), tokens(31, 2, 6)),
        lambda: Sequence2Sequence().units(),
        LAYER
        | {"source.weight:[01]": ROWS}
        | {"target.weight:[01]": ROWS, "*coder.norm.*:0": STREAM}
        | {"out.weight:1": STREAM}
        | OUT,
    ),
    Entry(
        "attention without a norm",
        seeded(Attention),
        normal(2, 6, 4),
        lambda: Attention().units(),
        reads("embed") | OUT,
    ),
    Entry(
        "attention of two widths",
        seeded(TwoWidths),
        lambda: (normal(2, 6, 4)(), normal(2, 8, 5)()),
        lambda: TwoWidths().units(),
        reads("embed", "key", "value") | OUT,
    ),
    Entry(
        "vision transformer, fused",
        seeded(VisionTransformer),
        normal(2, 3, 12, 12),
        lambda: VisionTransformer().units(),
        {
            "patches.*:*": "reads the model's input; " + STREAM,
            "token:2": STREAM,
            "positions:[12]": "a row per position; " + STREAM,
            "*.gamma:0": STREAM,
            "*norm*:0": STREAM,
            "*.qkv.weight:1": STREAM,
            "*.proj.*:0": STREAM,
            "*.fc1.weight:1": STREAM,
            "*.fc2.*:0": STREAM,
            "head.*:[01]": "is the model's output; " + STREAM,
        },
    ),
    Entry(
        "attention by einsum",
        seeded(Einsum),
        normal(2, 6, 4),
        lambda: Einsum().units(),
        {
            "embed.*:[01]": "reads the model's input; " + STREAM,
            "norm.weight:0": STREAM,
            "q.weight:1": STREAM,
            "kv.weight:1": STREAM,
            "o.*:0": STREAM,
            "bias:[12]": "a pair of positions",
            "out.*:[01]": "is the model's output; " + STREAM,
        },
    ),
]
