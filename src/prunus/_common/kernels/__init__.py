"""Compiled kernels behind a thin door; without a C compiler numpy or torch does the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

try:
    from prunus._common.kernels import kernels
except ImportError:  # no compiler when the package was built
    kernels = None  # type: ignore[assignment]

THREADS = 4
"""With more threads than this, torch's parallel loop is the faster one."""


def available() -> bool:
    """Whether the kernel was compiled and this processor has the instructions that it is for."""
    return kernels is not None and kernels.instructions != ""


def keeper(weight: Tensor, mask: Tensor) -> Callable[[Tensor], None] | None:
    """A function that zeroes what the mask removes, in place, in tensors laid out like ``weight``.

    ``None`` where the kernel does not apply: it is for dense float32 on a CPU.

    Args:
        weight: any shape; only its layout is read.
        mask: bool, True = kept, broadcastable to it.

    >>> kept = torch.tensor([True, False, True])
    >>> values = torch.tensor([1.0, float("nan"), 3.0])
    >>> zero = keeper(values, kept)
    >>> if zero is not None: zero(values)
    >>> values.nan_to_num(0.0)
    tensor([1., 0., 3.])
    """
    dense = weight.device.type == "cpu" and weight.dtype == torch.float32
    if not (available() and dense and torch.get_num_threads() <= THREADS):
        return None
    laid_out = torch.empty_like(weight, dtype=torch.bool).copy_(mask)
    if laid_out.stride() != weight.stride():
        return None  # a view with gaps
    flat = laid_out.as_strided((laid_out.numel(),), (1,))
    bits = memoryview(np.packbits(flat.numpy(), bitorder="little").data)
    count, stride, shape = weight.numel(), weight.stride(), weight.shape

    def zero(values: Tensor) -> None:
        same = values.shape == shape and values.stride() == stride
        if same and values.dtype == torch.float32 and values.device.type == "cpu":
            kernels.keep(values.data_ptr(), bits, count)
        else:  # the model was cast or moved
            values.masked_fill_(~mask.to(values.device), 0)

    return zero


def expand(mask: Tensor, values: Tensor, out: Tensor) -> Tensor:
    """Write packed values where the bits of a mask are set, and zeros elsewhere.

    ``out[i] = values[ones before i]`` where bit i is set, else 0.

    Args:
        mask: uint8 ``[⌈n / 8⌉]``; bit i, from the lowest of each byte on, is element i's.
        values: ``[ones]``, of 1, 2, 4 or 8 bytes each.
        out: n elements of the type of ``values``, contiguous, written over; all three on the CPU.

    Returns:
        ``out``.

    Raises:
        ValueError: if the mask is not of that length (nothing is written then), or has not as many
            ones as there are values.

    >>> expand(torch.tensor([0b101], dtype=torch.uint8), torch.tensor([7.0, 8.0]), torch.empty(4))
    tensor([7., 0., 8., 0.])
    """
    plain = mask.is_contiguous() and values.is_contiguous() and out.is_contiguous()
    length = (out.numel() + 7) // 8
    if mask.dtype != torch.uint8 or mask.numel() != length or values.dtype != out.dtype:
        raise ValueError(
            f"{out.numel()} elements of {out.dtype} take a mask of {length} bytes and values of "
            f"the same type, not {mask.numel()} of {mask.dtype} and {values.dtype}"
        )
    compiled = plain and getattr(kernels, "expand", None) is not None
    if not (_expand_compiled if compiled else _expand_plainly)(mask, values, out):
        raise ValueError(f"the mask must have {values.numel()} ones, one for each value")
    return out


def _expand_compiled(mask: Tensor, values: Tensor, out: Tensor) -> bool:
    addresses = out.data_ptr(), mask.data_ptr(), values.data_ptr()
    return kernels.expand(*addresses, values.numel(), out.numel(), out.element_size())


def _expand_plainly(mask: Tensor, values: Tensor, out: Tensor) -> bool:
    there = np.unpackbits(mask.numpy(), bitorder="little").view(bool)
    if np.count_nonzero(there) != values.numel() or there[out.numel() :].any():
        return False
    word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[out.element_size()]
    bits = out.view(-1).view(word).numpy()  # the bits alone: numpy has no bfloat16
    bits.fill(0)
    bits[there[: out.numel()]] = values.view(word).numpy()
    return True


def ones(mask: Tensor) -> int:
    """How many bits of a flat uint8 tensor are set.

    >>> ones(torch.tensor([255, 1, 2], dtype=torch.uint8))
    10
    """
    bits = mask.numpy()
    if not hasattr(np, "bitwise_count"):  # it came with numpy 2
        return int(np.count_nonzero(np.unpackbits(bits).view(bool)))
    words = bits.size // 8 * 8
    parts = (bits[:words].view(np.uint64), bits[words:])
    return sum(int(np.bitwise_count(part).sum(dtype=np.int64)) for part in parts)


def room(count: int, dtype: torch.dtype) -> Tensor:
    """``[count]`` elements that are still to be written.

    numpy asks the system for large pages and torch does not: a fresh tensor is then written three
    times as fast. It starts where torch's own would, at a multiple of 64 bytes.
    """
    size = count * dtype.itemsize
    raw = np.empty(size + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start : start + size]).view(dtype)
