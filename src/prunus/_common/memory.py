"""Memory of large temporaries, and of what lives on beside them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from prunus._common.parts import computable, parts

LARGE = 1 << 20
"""Bytes from which a tensor is worth a mapping of its own."""


def lasting(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor on the processor, not filled, whose memory is a mapping of its own.

    Any small object that a heap puts into the hole of a large one makes it too small for the next
    of that size, so that temporaries, layer after layer, take several times what they need.

    >>> lasting((2, 3), torch.bool).shape
    torch.Size([2, 3])
    """
    size = prod(shape) * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows has neither
        return torch.empty(tuple(shape), dtype=dtype)
    held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            held.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(held, dtype=dtype).view(tuple(shape))


def absolute(tensor: Tensor) -> Tensor:
    """|x|, of 16 bits and less in float32, in such memory and with no other temporary.

    >>> absolute(torch.tensor([-1.5, 2.0], dtype=torch.bfloat16))
    tensor([1.5000, 2.0000])
    """
    tensor = computable(tensor.detach())
    if tensor.device.type != "cpu" or not tensor.is_floating_point():
        return tensor.abs()
    made = lasting(tensor.shape, tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32)
    for part, size in parts(tensor, made) if tensor.dim() else [(tensor, made)]:
        size.copy_(part).abs_()
    return made


def both(one: Tensor, other: Tensor) -> Tensor:
    """What is true in two masks, which may broadcast, in such memory.

    >>> both(torch.tensor([[True], [False]]), torch.tensor([True, False]))
    tensor([[ True, False],
            [False, False]])
    """
    if one.device.type != "cpu":
        return one & other
    made = lasting(torch.broadcast_shapes(one.shape, other.shape), torch.bool)
    return torch.logical_and(one, other, out=made)


def close_holes() -> None:
    """Have the pages that lie free between others go back to the system (glibc; else nothing).

    What a heap holds after large temporaries is mostly holes, each a little too small for the next
    of that size. Unlike :func:`give_back` it changes nothing for the rest of the process.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back() -> None:
    """Have what is freed of a quarter of a megabyte or more go back to the system at once.

    glibc raises this bound as it goes, and keeps ever larger pieces in a heap with holes. Where
    another allocator is, nothing happens. It holds for the rest of the process.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**18)


_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h."""
