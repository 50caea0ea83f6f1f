"""``nn.MultiheadAttention`` with fewer heads, or narrower ones: the same module, in every use.

Torch's own forward takes the sizes of its heads from ``embed_dim`` and ``num_heads``, so that it
cannot hold what is left of a cut. The module therefore becomes one of a class that reads them off
the tensors; it stays the same object, with its tensors, hooks, mode and attributes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prunus._common.modules import canonical_names, joined
from prunus._common.torch_internals import WithoutFastPath
from prunus.compaction.slicing.attributes import Attribute
from prunus.errors import InputError
from prunus.types import Indices, Kept

KEEPS = "heads"
"""The attribute of a narrow attention that a plain one has not."""


class NarrowAttention(WithoutFastPath, nn.MultiheadAttention):
    """What ``nn.MultiheadAttention`` computes when some of its heads, or of their rows, are zero.

    From outside it is the original: ``num_heads``, ``head_dim`` and ``embed_dim`` are those before
    the cut, masks for each head are given for all of them, and weights come back for all of them.
    A removed head, whose queries and keys are zero, attends evenly to whatever the masks leave it.

        head_i = softmax(q_i k_iᵀ / sqrt(head_dim) + mask_i) v_i,  out = [head_i, i in heads] Wᵀ + b

    An attention becomes one by :class:`Narrowing`; it is never called into being.

    Attributes:
        heads: the heads that stay, by their places among the ``num_heads`` of the original.

    >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
    >>> Narrowing("", None, (1,)).set(attention)
    >>> attention.in_proj_weight.data = torch.ones(12, 8)
    >>> attention.in_proj_bias.data = torch.ones(12)
    >>> attention.out_proj.weight.data = torch.ones(8, 4)
    >>> x = torch.ones(3, 5, 8)
    >>> [tuple(t.shape) for t in attention(x, x, x, average_attn_weights=False)]
    [(3, 5, 8), (3, 2, 5, 5)]
    """

    heads: tuple[int, ...]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The arguments and answers of ``nn.MultiheadAttention``, in its shapes and layouts.

        With N sequences of L queries and S keys:

        Args:
            query: ``[N, L, E]`` if ``batch_first``, else ``[L, N, E]``; or ``[L, E]``.
            key: ``[N, S, kdim]``, ``[S, N, kdim]`` or ``[S, kdim]``.
            value: ``[N, S, vdim]``, ``[S, N, vdim]`` or ``[S, vdim]``.
            key_padding_mask: ``[N, S]`` or ``[S]``: True, or what is added to the scores.
            need_weights: whether to return the weights.
            attn_mask: ``[L, S]`` or ``[N · num_heads, L, S]``, of the same kinds.
            average_attn_weights: over the heads, removed ones included.
            is_causal: says that ``attn_mask`` is the causal one.

        Returns:
            Output, shaped as the query, and ``None`` or weights ``[N, L, S]`` or
            ``[N, num_heads, L, S]``; without N for a query without.

        Raises:
            InputError: if a mask has another shape or type, or ``is_causal`` comes without one.

        Source: Vaswani et al., Attention Is All You Need (2017), arXiv:1706.03762.
        """
        if query.is_nested:
            masked = key_padding_mask is not None or attn_mask is not None
            if masked or query is not key or key is not value or not self.batch_first:
                raise InputError(
                    "a nested tensor must be query, key and value at once, without masks and with "
                    "batch_first, as in nn.MultiheadAttention: give a padded one and its mask"
                )
            return self._of_nested(query, need_weights, average_attn_weights)
        if query.dim() == 3:
            return self._of_batch(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        batch = 0 if self.batch_first else 1
        made = {id(t): t.unsqueeze(batch) for t in (query, key, value)}  # one tensor stays one
        padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        out, weights = self._of_batch(
            made[id(query)], made[id(key)], made[id(value)], padding, need_weights, attn_mask,
            average_attn_weights, is_causal,
        )  # fmt: skip
        return out.squeeze(batch), None if weights is None else weights.squeeze(0)

    def _of_batch(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        need_weights: bool,
        attention: Tensor | None,
        average: bool,
        is_causal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attention is None:
            raise InputError(
                "is_causal says of attn_mask that it is the causal mask: give both, for instance "
                "nn.Transformer.generate_square_subsequent_mask(length)"
            )
        hinted = is_causal and padding is None and not need_weights
        q, k, v = (self._by_head(t) for t in self._projected(query, key, value))
        mask = self._mask(None if hinted else attention, padding, q, k)
        k, v = self._extended(k, self.bias_k), self._extended(v, self.bias_v)
        if mask is not None:
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[3]))
        scale, dropout = self.head_dim**-0.5, self.dropout if self.training else 0.0
        own = self._of_heads(mask, self.heads)
        weights = None
        if need_weights:
            scores = (q * scale) @ k.transpose(-2, -1)
            weights = _dropped(torch.softmax(scores if own is None else scores + own, -1), dropout)
            out = weights @ v
            weights = self._every_head(weights, mask, dropout, average)
        else:
            out = F.scaled_dot_product_attention(q, k, v, own, dropout, hinted, scale=scale)
        out = out.permute((0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)).flatten(2)
        return F.linear(out, self.out_proj.weight, self.out_proj.bias), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values of all heads, in the layout of the inputs."""
        packed, biases = _packed(self), self.in_proj_bias
        sizes = widths(self)
        if packed is not None and query is key and key is value:
            return list(F.linear(query, packed, biases).split(sizes, -1))
        if packed is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = packed.split(sizes)
        parts = (None, None, None) if biases is None else biases.split(sizes)
        return [F.linear(*each) for each in zip((query, key, value), weights, parts, strict=True)]

    def _by_head(self, tensor: Tensor) -> Tensor:
        """``[N, heads, length, dims]`` of what a projection gives."""
        split: Tensor = tensor.unflatten(-1, (len(self.heads), -1))
        return split.permute((0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3))

    def _extended(self, tensor: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values with the learned one and the zero at the end that the module may add."""
        if bias is not None:
            own = bias.unflatten(-1, (len(self.heads), -1)).transpose(1, 2)
            tensor = torch.cat([tensor, own.expand(tensor.shape[0], -1, -1, -1)], 2)
        return F.pad(tensor, (0, 0, 0, 1)) if self.add_zero_attn else tensor

    def _mask(
        self, attention: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """What is added to the scores of the original's heads: ``[1 or N, 1 or num_heads, …]``."""
        batch, lengths = q.shape[0], (q.shape[2], k.shape[2])
        mask = None
        if attention is not None:
            shared = attention.dim() == 2
            shape = lengths if shared else (batch * self.num_heads, *lengths)
            mask = _added("attn_mask", attention, shape, q.dtype)
            mask = mask.reshape(-1, 1 if shared else self.num_heads, *lengths)
        if padding is not None:
            own = _added("key_padding_mask", padding, (batch, lengths[1]), q.dtype)[:, None, None]
            mask = own if mask is None else mask + own
        return mask

    def _of_heads(self, mask: Tensor | None, heads: tuple[int, ...]) -> Tensor | None:
        """The part of a mask that is for these heads."""
        if mask is None or mask.shape[1] == 1 or len(heads) == self.num_heads:
            return mask
        return torch.stack([mask[:, head] for head in heads], 1)

    def _every_head(
        self, weights: Tensor, mask: Tensor | None, dropout: float, average: bool
    ) -> Tensor:
        """The weights that are returned, with those of the heads that are gone."""
        gone = tuple(h for h in range(self.num_heads) if h not in self.heads)
        if not gone:
            return weights.mean(1) if average else weights
        seen = self._of_heads(mask, gone)
        seen = weights.new_zeros(1, 1, 1, weights.shape[3]) if seen is None else seen
        other = torch.softmax(seen, -1).to(weights.dtype)
        other = other.expand(other.shape[0], len(gone), *other.shape[2:])
        if dropout or not average:
            other = other.expand(weights.shape[0], -1, weights.shape[2], -1)
            other = _dropped(other, dropout)
        if average:
            mean: Tensor = (weights.sum(1) + other.sum(1)) / self.num_heads
            return mean
        every = (*weights.unbind(1), *other.unbind(1))
        by_head = dict(zip((*self.heads, *gone), every, strict=True))
        return torch.stack([by_head[head] for head in range(self.num_heads)], 1)

    def _of_nested(
        self, query: Tensor, need_weights: bool, average: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Sequences of several lengths in one tensor, as ``nn.TransformerEncoder`` makes them."""
        lengths = [len(sequence) for sequence in query.unbind()]
        padded = query.to_padded_tensor(0.0)
        places = torch.arange(padded.shape[1], device=padded.device)
        padding = places >= torch.tensor(lengths, device=padded.device)[:, None]
        out, weights = self._of_batch(
            padded, padded, padded, padding, need_weights, None, average, is_causal=False
        )
        rows = [row[:length] for row, length in zip(out, lengths, strict=True)]
        return torch.nested.as_nested_tensor(rows), weights

    def extra_repr(self) -> str:
        """What is left of the heads."""
        queries, _, values = (width // len(self.heads) for width in widths(self))
        kept = f"heads={self.heads} of {self.num_heads}"
        return f"{kept}, query_dims={queries}, value_dims={values} of {self.head_dim}"


def widths(attention: nn.MultiheadAttention) -> list[int]:
    """How many rows are for queries, for keys and for values.

    >>> widths(nn.MultiheadAttention(8, 2))
    [8, 8, 8]
    """
    values = int(attention.out_proj.weight.shape[1])
    packed = _packed(attention)
    queries = attention.q_proj_weight.shape[0] if packed is None else packed.shape[0] - values
    queries = int(queries) if packed is None else int(queries) // 2
    return [queries, queries, values]


def _packed(attention: nn.MultiheadAttention) -> Tensor | None:
    """The weights of queries, keys and values in one, where all have the same inputs."""
    return attention._parameters.get("in_proj_weight")


class Narrowing(Attribute):
    """An attention of torch's becomes a :class:`NarrowAttention`, or that one's heads change.

    Args:
        module: its name.
        before: the heads that it had; ``None``: it was torch's own.
        after: those that stay, by their places in the dense model.
    """

    def __init__(self, module: str, before: tuple[int, ...] | None, after: tuple[int, ...]) -> None:
        super().__init__(module, KEEPS, before, after)

    def set(self, model: nn.Module, *, back: bool = False) -> None:
        """Make the change, or take it back; the module stays the same object."""
        module = model.get_submodule(self.module)
        heads = self.before if back else self.after
        module.__class__ = nn.MultiheadAttention if heads is None else NarrowAttention
        vars(module).pop(KEEPS, None)
        if heads is not None:
            vars(module)[KEEPS] = heads


def narrowings(model: nn.Module, kept: Kept) -> list[Narrowing]:
    """The attentions of torch's that cannot hold what is left of them as they are.

    Classes derived from it are left alone: their code may be their own.

    Args:
        model: before the cut.
        kept: indices that stay, by the first name of each tensor.
    """
    names = canonical_names(model)
    found = []
    for path, module in model.named_modules():
        if type(module) not in (nn.MultiheadAttention, NarrowAttention):
            continue
        own = [key for key, p in module._parameters.items() if p is not None]
        cut = {key: kept[first] for key in own if (first := names[joined(path, key)]) in kept}
        before = module.heads if isinstance(module, NarrowAttention) else None
        after = _heads_left(module, cut)
        if after is not None and after != before:
            found.append(Narrowing(path, before, after))
    return found


def _heads_left(
    module: nn.MultiheadAttention, cut: Mapping[str, Indices]
) -> tuple[int, ...] | None:
    """The heads that stay; ``None`` if nothing changes for them, or they would be of many sizes."""
    first = "q_proj_weight" if _packed(module) is None else "in_proj_weight"
    rows, columns = _rows(module, cut), cut.get(first, (None, None))[1]
    if all(part.all() for part in rows) and columns is None:
        return None
    heads: tuple[int, ...] = getattr(module, KEEPS, tuple(range(module.num_heads)))
    queries, keys, values = (part.reshape(len(heads), -1) for part in rows)
    stay = queries.any(1)
    even = all(np.ptp(part.sum(1)[stay]) == 0 for part in (queries, values))
    if not even or (queries != keys).any() or (stay != values.any(1)).any():
        return None
    return tuple(heads[place] for place in np.flatnonzero(stay))


def _rows(module: nn.MultiheadAttention, cut: Mapping[str, Indices]) -> list[NDArray[np.bool_]]:
    """Which rows of queries, keys and values stay."""
    sizes = widths(module)
    if _packed(module) is None:
        keys = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        return [_stays(cut.get(key), size) for key, size in zip(keys, sizes, strict=True)]
    return np.split(_stays(cut.get("in_proj_weight"), sum(sizes)), np.cumsum(sizes[:2]))


def _stays(indices: Indices | None, size: int) -> NDArray[np.bool_]:
    left = indices[0] if indices else None
    return np.isin(np.arange(size), np.arange(size) if left is None else left.numpy())


def _dropped(weights: Tensor, dropout: float) -> Tensor:
    return F.dropout(weights, dropout) if dropout else weights


def _added(name: str, mask: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: where it is True, minus infinity."""
    if tuple(mask.shape) != tuple(shape):
        raise InputError(f"{name} has the shape {tuple(mask.shape)}; it must be {tuple(shape)}")
    if mask.is_floating_point():
        return mask
    if mask.dtype is not torch.bool:
        raise InputError(f"{name} is of {mask.dtype}; it must be bool or floating point")
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
