"""The transformer layer of the examples; layers of both are named alike, for scopes of recipes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention of several heads: to what came before, or to the places that are there."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.size, self.causal = heads, width // heads, causal
        self.query, self.key, self.value, self.output = (
            nn.Linear(width, width, bias=not causal) for _ in range(4)
        )

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """``[b, length, width]`` to the same shape; ``present`` is ``[b, 1, 1, length]``."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, self.size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # [b, heads, length, size]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=present, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and two linear layers, each normed before and added."""

    def __init__(
        self, width: int, heads: int, inner: int, *, dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """``[b, length, width]`` to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x), present))
        hidden = self.dropout(F.gelu(self.up(self.norm2(x))))
        return x + self.dropout(self.down(hidden))  # type: ignore[no-any-return]
