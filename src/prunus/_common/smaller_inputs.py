"""Inputs like a model's own, of other sizes: what a pass shows is often shown by a part of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus._common.inputs import Inputs
from prunus._common.nested import map_tensors, tensors_of

LARGE = 64
"""Sizes above this are those of pictures and sounds, a part of which is one too."""

_COSTLY = 2**14
"""Numbers of an input below which a whole pass is cheap."""


def parts_of(inputs: Inputs, parts: Sequence[int]) -> list[Inputs]:
    """A part of large pictures, once for each divisor of their sizes; none of what is cheap.

    Args:
        inputs: positional and keyword arguments.
        parts: divisors; of middling sizes the last one is taken alone.

    >>> [one.shape for ((one,), _) in parts_of(((torch.ones(1, 3, 224, 200),), {}), (4, 2))]
    [torch.Size([1, 3, 56, 50]), torch.Size([1, 3, 112, 100])]
    >>> parts_of(((torch.ones(1, 3, 32, 32),), {}), (4, 2))
    []
    """
    tensors = tensors_of(inputs)
    sizes = {size for t in tensors for size in t.shape[1:] if size > LARGE}
    if not sizes or max(t.numel() for t in tensors) < _COSTLY:
        return []
    few = parts if min(sizes) > 2 * LARGE else parts[-1:]
    return [
        resized(inputs, {d: {size: size // part for size in sizes} for d in range(1, 8)})
        for part in few
    ]


def resized(inputs: Inputs, sizes: dict[int, dict[int, int]]) -> Inputs:
    """Inputs whose dimensions of some sizes have other ones: cut, or repeated from the start.

    Args:
        inputs: positional and keyword arguments.
        sizes: by dimension, from a size to another.

    >>> ((made,), _) = resized(((torch.arange(3),), {}), {0: {3: 4}})
    >>> made
    tensor([0, 1, 2, 0])
    """

    def one(tensor: Tensor) -> Tensor:
        for d, size in enumerate(tensor.shape):
            new = sizes.get(d, {}).get(size)
            if new is not None and size:
                index = torch.arange(new, device=tensor.device) % size
                tensor = tensor.index_select(d, index)
        return tensor

    made: Inputs = map_tensors(one, inputs)
    return made
