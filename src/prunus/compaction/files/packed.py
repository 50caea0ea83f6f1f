"""Tensors with many zeros inside a plain safetensors file: a bit mask, and the values that stay.

A packed tensor ``NAME`` of n elements is stored under two or three names::

    NAME#mask     uint8 [⌈n / 8⌉]   bit i, lowest first, says whether element i is stored
    NAME#values   [ones]            the stored elements in order; every other one is zero
    NAME#scale    float32           only beside rounded int8: one for each output, of NAME's rank

and the manifest says what it was: ``{"NAME": {"dtype": "float32", "shape": [3, 4]}}``. What is
zero is decided by the bits: ``-0.0`` is stored like any other value, and so comes back.
``unpack.py`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prunus.errors import InputError

Values = Literal["float16", "bfloat16", "int8"]
Entries = dict[str, dict[str, Any]]

ROUNDED: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
"""What values may be rounded to."""

TYPES = {
    str(t).removeprefix("torch."): t
    for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
              torch.int16, torch.int8, torch.uint8, torch.bool)
}  # fmt: skip
"""Types of tensors that may be packed; others stay as they are."""


def pack(
    tensors: Mapping[str, Tensor],
    *,
    values: Values | None = None,
    rounded: Mapping[str, int] | None = None,
) -> tuple[dict[str, Tensor], Entries]:
    """Replace each tensor that is smaller as mask and values; the others stay.

    Without ``values`` all bits come back. With it, a rounded tensor comes back as
    ``values`` cast to its type, or as ``(values · scale)`` with ``scale = max|w| / 127`` of each
    output: ``|w − ŵ| ≤ scale / 2``. Zeros stay zeros.

    Args:
        tensors: contiguous, on the CPU, by name.
        values: what to round to.
        rounded: the tensors that may be rounded, each with its dimension of outputs.

    Returns:
        The tensors to store, and what the manifest must say of those that were packed.

    Raises:
        InputError: if a value does not fit into the type.

    >>> stored, entries = pack({"w": torch.eye(100)})
    >>> {name: (t.dtype, t.numel()) for name, t in stored.items()}
    {'w#mask': (torch.uint8, 1250), 'w#values': (torch.float32, 100)}
    >>> entries
    {'w': {'dtype': 'float32', 'shape': [100, 100]}}
    """
    stored: dict[str, Tensor] = {}
    entries: Entries = {}
    dims = rounded or {}
    for name, tensor in tensors.items():
        small, scale = tensor, None
        if values is not None and name in dims:
            small, scale = _round(name, tensor, values, dims[name])
        parts = _parts(name, small, scale, tensor.nbytes)
        if parts is None or any(key in tensors for key in parts):
            stored[name] = tensor
        else:
            stored |= parts
            dtype = str(tensor.dtype).removeprefix("torch.")
            entries[name] = {"dtype": dtype, "shape": list(tensor.shape)}
    return stored, entries


def _parts(name: str, tensor: Tensor, scale: Tensor | None, most: int) -> dict[str, Tensor] | None:
    """Mask and values, if they and what they cost in the header are smaller than ``most`` bytes."""
    if tensor.dtype not in TYPES.values() or not tensor.numel():
        return None
    bits = tensor.flatten().view(_word(tensor.dtype))
    ones = bits != 0
    count = int(ones.sum())
    own = (tensor.numel() + 7) // 8 + count * tensor.element_size()
    header = 256 + 4 * len(name.encode(errors="replace"))  # two or three entries in place of one
    if own + header + (0 if scale is None else scale.nbytes + 128) >= most:
        return None
    mask = torch.from_numpy(np.packbits(ones.numpy(), bitorder="little"))
    parts = {f"{name}#mask": mask, f"{name}#values": bits[ones].view(tensor.dtype)}
    return parts if scale is None else parts | {f"{name}#scale": scale}


def _word(dtype: torch.dtype) -> torch.dtype:
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def _round(name: str, tensor: Tensor, values: Values, dim: int) -> tuple[Tensor, Tensor | None]:
    """A tensor in a smaller type, and the scale of int8; as it is where none is smaller."""
    target = ROUNDED[values]
    whole = not tensor.is_floating_point() or tensor.dtype.itemsize <= target.itemsize
    if whole or not tensor.numel():
        return tensor, None
    if target != torch.int8:
        small = tensor.to(target)
        if bool((small.isinf() & tensor.isfinite()).any()):
            raise _too_large(name, tensor, f"{values} goes up to {torch.finfo(target).max:g}")
        return small, None
    real = tensor.float()
    others = [d for d in range(tensor.dim()) if d != dim]
    scale = real.abs().amax(others, keepdim=True) / 127
    if not bool((127 * scale).isfinite().all()):
        raise _too_large(name, tensor, "int8 needs finite values")
    steps = torch.where(scale > 0, scale, 1)  # an output of zeros has none
    return (real / steps).round_().clamp_(-127, 127).to(torch.int8), scale


def _too_large(name: str, tensor: Tensor, why: str) -> InputError:
    largest = tensor.abs().amax().item()
    return InputError(
        f"'{name}' reaches {largest:g}, which cannot be rounded ({why}): save it without values"
    )
