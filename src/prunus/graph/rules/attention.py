"""Scaled dot-product attention, grouped-query attention included."""

from __future__ import annotations

import numpy as np

from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Fixed, Value


def attention(call: Call) -> Found:
    """softmax(q·kᵀ·scale + mask)·v over the last two dimensions; heads stand before them."""
    q, k, v = call.value("query"), call.value("key"), call.value("value")
    mask = call.value("attn_mask", "attn_bias")
    if q is None or k is None or v is None:
        return None
    call.summed((q, len(q.dims) - 1), (k, len(k.dims) - 1), what="a product")
    mixed = f"{call.where}: mixed by softmax"
    for value in (k, v):
        call.labels.pin(value.dims[-2], mixed)
    batch = [_batch(call, q, k, v, e) for e in range(len(q.dims) - 2)]
    if batch:
        call.labels.head(batch[-1])
    if mask is not None:
        _masked(call, mask, batch, mixed)
    tensor = call.out if not isinstance(call.out, (tuple, list)) else call.out[0]
    zero = [*list(v.zero[:-2]), False, v.zero[-1]]
    found = call.result([*batch, q.dims[-2], v.dims[-1]], zero, tensor)
    if tensor is call.out:
        return found
    return [found] + [
        call.fixed("a by-product", t) if hasattr(t, "shape") else None for t in call.out[1:]
    ]


def _batch(call: Call, q: Value, k: Value, v: Value, e: int) -> Dim:
    """A dimension before the last two; with grouped queries a key serves several of them."""
    key = call.labels.join(k.dims[e], v.dims[e])
    if q.shape[e] == k.shape[e]:
        return call.labels.join(q.dims[e], key)
    if k.shape[e] == 1:  # one key for all queries, each of which may go by itself
        call.labels.pin(key, f"{call.where}: broadcast")
        return q.dims[e]
    if isinstance(key, Fixed) or q.shape[e] % k.shape[e]:
        why = key.why if isinstance(key, Fixed) else f"{call.where}: broadcast"
        call.labels.pin(q.dims[e], why)
        call.labels.pin(key, why)
        return Fixed(why)
    call.labels.tie(q.dims[e], np.repeat(key, q.shape[e] // k.shape[e]))
    return q.dims[e]


def _masked(call: Call, mask: Value, batch: list[Dim], mixed: str) -> None:
    rank = len(batch) + 2
    for d, dim in enumerate(mask.dims):
        e = rank - len(mask.dims) + d
        if mask.shape[d] == 1:
            continue
        if e >= rank - 2:
            call.labels.pin(dim, mixed)
        else:
            batch[e] = call.labels.join(batch[e], dim)


RULES = dict.fromkeys(
    (
        "scaled_dot_product_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_attention_math",
    ),
    attention,
)
