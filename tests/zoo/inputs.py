"""What a model is called with: an entry's example, other values, other sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

Call = Callable[[Any, Any], Any]
"""What is asked of a model; the second argument turns float inputs into the model's type."""


def tensors_in(answer: Any) -> list[Tensor]:
    """The tensors of an answer of any form, in order; caches are no answers."""
    if isinstance(answer, Tensor):
        return [answer]
    if isinstance(answer, dict):
        return [t for k, v in answer.items() if k not in _CACHES for t in tensors_in(v)]
    if isinstance(answer, (list, tuple)):
        return [t for v in answer for t in tensors_in(v)]
    if hasattr(answer, "__dataclass_fields__"):
        return tensors_in(vars(answer))
    return []


_CACHES = ("past_key_values", "cache_params", "state", "attentions", "cross_attentions")


def calling(inputs: Any) -> Call:
    """Call the model with an input, a tuple of inputs, or keyword arguments."""

    def call(model: Any, typed: Any) -> Any:
        args, kwargs = arranged(typed(inputs))
        return model(*args, **kwargs)

    return call


def arranged(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def reflected(inputs: Any) -> Any:
    """Other values of the same kind: numbers of other sizes and signs, other ones of the ids."""

    def one(tensor: Tensor) -> Tensor:
        if tensor.dtype is torch.bool or (not tensor.is_floating_point() and _is_mask(tensor)):
            return tensor
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.flip(-1) * 0.8 if tensor.dim() else tensor * 0.8
        return tensor.max() + tensor.min() - tensor

    return _pytree.tree_map_only(Tensor, one, inputs)


def _is_mask(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def batched(inputs: Any, size: int) -> Any:
    """Examples hold two items, wherever that dimension stands; what has none stays."""

    def one(tensor: Tensor) -> Tensor:
        if 2 not in tensor.shape:
            return tensor
        where = list(tensor.shape).index(2)
        return tensor.index_select(where, torch.arange(size) % 2)

    return _pytree.tree_map_only(Tensor, one, inputs)


def sizes_of(inputs: Any) -> Iterator[tuple[str, Any]]:
    """Other batches, lengths and pictures."""
    yield "one item", batched(inputs, 1)
    yield "three items", batched(inputs, 3)
    found = {s for t in tensors_in(inputs) for s in t.shape if s > 2}
    for size in sorted(found, reverse=True)[:4]:
        for new in (size + 1, size - 2, 2 * size, size // 2):
            if new > 0 and new != 2:
                yield f"{size} becomes {new}", _stretched(inputs, {size: new})
    pictures = {t.shape[-2:] for t in tensors_in(inputs) if t.dim() >= 4}
    for high, wide in sorted(pictures)[:1]:
        yield "a larger picture", _stretched(inputs, {high: 2 * high, wide: 2 * wide})


def _stretched(inputs: Any, sizes: dict[int, int]) -> Any:
    """Every dimension of these sizes, but a first one of two, cut or repeated from the start."""

    def one(tensor: Tensor) -> Tensor:
        for d, size in enumerate(tensor.shape):
            if size in sizes:
                tensor = tensor.index_select(d, torch.arange(sizes[size]) % size)
        return tensor

    return _pytree.tree_map_only(Tensor, one, inputs)
