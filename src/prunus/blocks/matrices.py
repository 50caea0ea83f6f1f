"""The matrices of a block, and what each of them multiplies while batches pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.torch_internals import TorchDispatchMode, schema


@dataclass(frozen=True)
class Matrix:
    """A matrix ``[out, in]`` as it lies in a parameter: whole, turned, or a part of a stack.

    Attributes:
        name: of the parameter, within the block.
        shape: ``(out, in)``.
        stride: of both, in numbers.
        offset: of its first number.
    """

    name: str
    shape: tuple[int, int]
    stride: tuple[int, int]
    offset: int

    def of(self, whole: Tensor) -> Tensor:
        """A view of it in the parameter, or in a mask of the parameter's shape.

        >>> Matrix("w", (2, 3), (1, 2), 0).of(torch.arange(6).view(3, 2)).tolist()
        [[0, 2, 4], [1, 3, 5]]
        """
        return whole.as_strided(self.shape, self.stride, self.offset + whole.storage_offset())


Hear = Callable[[Matrix, Tensor], None]
"""Gets a matrix and what it multiplies, ``[rows, in]``."""

_PLACES = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2),
           "_grouped_mm": (0, 1), "grouped_mm_fallback": (0, 1)}  # fmt: skip
"""Of a product: where what is multiplied is, and the matrix, which is ``[in, out]``."""
_TURNED = ("aten::linear",)
"""Products whose first is multiplied by the second, which is ``[out, in]``."""


class _Listener(TorchDispatchMode):
    def __init__(self, block: nn.Module, hear: Hear) -> None:
        super().__init__()
        self.hear = hear
        self._owners = {_memory(p): (n, p) for n, p in block.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, _, name = schema(func).name.rpartition("::")
        if f"{space}::{name}" in _TURNED:
            self._product(args[0], args[1])
        elif name in _PLACES:
            read, weight = (args[place] for place in _PLACES[name])
            if weight.dim() == 2:
                self._product(read, weight.T)
            elif read.dim() == 3:
                for rows, one in zip(read, weight, strict=True):
                    self._product(rows, one.T)
            else:  # rows in a row, those up to the n-th number by the n-th matrix
                ends = (args[2] if len(args) > 2 else kwargs["offs"]).tolist()
                for start, end, one in zip([0, *ends], ends, weight, strict=False):
                    self._product(read[start:end], one.T)
        return func(*args, **kwargs)

    def _product(self, read: Tensor, weight: Tensor) -> None:
        name, owner = self._owners.get(_memory(weight), ("", weight))
        if not name or not read.numel():
            return
        (out, inputs), (down, along) = weight.shape, weight.stride()
        offset = int(weight.storage_offset()) - int(owner.storage_offset())
        matrix = Matrix(name, (out, inputs), (down, along), offset)
        self.hear(matrix, read.detach().reshape(-1, inputs))


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


@contextmanager
def listening(block: nn.Module, hear: Hear) -> Iterator[None]:
    """Tell what each matrix of a block multiplies, at each product that multiplies anything.

    Products are found where they are computed, whatever module does it: linear layers, transposed
    ones (GPT-2's), packed projections, stacks of experts. A weight that is made from others first
    is not heard.

    Args:
        block: whose parameters.
        hear: gets the matrix and what it multiplies, ``[rows, in]``.

    >>> layer = nn.Linear(2, 3)
    >>> with torch.no_grad(), listening(layer, lambda matrix, read: print(matrix.name, read.shape)):
    ...     _ = layer(torch.ones(4, 5, 2))
    weight torch.Size([20, 2])
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it computes a layer in one piece
    try:
        with _Listener(block, hear):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
