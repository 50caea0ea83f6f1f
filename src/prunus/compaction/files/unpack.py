"""Packed tensors of a file from anyone: checked at once, expanded one by one where they are needed.

Nothing that an entry claims costs memory before it was compared with the mask that is there.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus._common import kernels as native
from prunus.compaction.files.packed import ROUNDED, TYPES
from prunus.errors import InputError

MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class Packed:
    """A tensor in its parts.

    Attributes:
        dtype: of the tensor.
        shape: of the tensor.
        mask: uint8 ``[⌈n / 8⌉]`` for its n elements.
        values: ``[ones in the mask]``.
        scale: float32, to be broadcast over the tensor; only beside int8.
    """

    dtype: torch.dtype
    shape: torch.Size
    mask: Tensor
    values: Tensor
    scale: Tensor | None

    def whole(self, out: Tensor | None = None) -> Tensor:
        """The tensor: values cast to its type, times the scale.

        Args:
            out: contiguous memory of its type and shape to be written over; without it, new one.
        """
        count = self.shape.numel()
        if out is None:
            out = native.room(count, self.dtype).view(self.shape)
        if self.scale is None:
            return native.expand(self.mask, self.values.to(self.dtype), out)
        steps = native.expand(self.mask, self.values, native.room(count, torch.int8))
        real = out if self.dtype == torch.float32 else native.room(count, torch.float32)
        real.view(self.shape).copy_(steps.view(self.shape)).mul_(self.scale)
        return out if real is out else out.copy_(real.view(self.shape))


def whole(tensor: Tensor | Packed) -> Tensor:
    """A tensor of a file as it was."""
    return tensor.whole() if isinstance(tensor, Packed) else tensor


def unpack(stored: Mapping[str, Tensor], entries: Mapping[str, Any]) -> dict[str, Tensor | Packed]:
    """The tensors that a file stands for, in parts where they are packed.

    All parts belong to one tensor, and fit: :func:`whole` of each is a tensor, of at most 64 bytes
    (float64) for each byte of its mask.

    Args:
        stored: all tensors of the file.
        entries: the manifest's, unverified.

    Raises:
        InputError: if an entry is damaged, or its tensors do not fit it.

    >>> mask, values = torch.tensor([0b110], dtype=torch.uint8), torch.tensor([5.0, 6.0])
    >>> entries = {"w": {"dtype": "float32", "shape": [2, 2]}}
    >>> whole(unpack({"w#mask": mask, "w#values": values}, entries)["w"])
    tensor([[0., 5.],
            [6., 0.]])
    """
    rest: dict[str, Tensor | Packed] = dict(stored)
    found: dict[str, Tensor | Packed] = {}
    for name, entry in entries.items():
        parts = [f"{name}#{part}" for part in ("mask", "values", "scale")]
        if name in stored:
            raise _damaged(name, "is stored twice, packed and unpacked")
        dtype, shape = _claim(name, entry)
        for part in parts[:2]:
            if part not in stored:
                raise _damaged(name, f"has no {part.rpartition('#')[2]}")
        packed = Packed(dtype, torch.Size(shape), *(stored.get(part) for part in parts))  # type: ignore[arg-type]
        _check(name, packed)
        found[name] = packed
        for part in parts:
            rest.pop(part, None)
    return rest | found


def _claim(name: str, entry: Any) -> tuple[torch.dtype, list[int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape"}:
        raise _damaged(name, f"is described by {reprlib.repr(entry)}, not by dtype and shape")
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise _damaged(name, f"is of type {reprlib.repr(dtype)}; known: {', '.join(TYPES)}")
    if not is_shape(shape) or 0 in shape:
        raise _damaged(name, f"has the shape {reprlib.repr(shape)}")
    return TYPES[dtype], shape


def is_shape(shape: Any) -> bool:
    """Whether these are sizes that a tensor can have.

    >>> is_shape([2, 3]), is_shape([-1]), is_shape([2**40, 2**40]), is_shape([True])
    (True, False, False, False)
    """
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        return False
    sizes = all(type(n) is int and 0 <= n < 2**63 for n in shape)
    return sizes and math.prod(max(n, 1) for n in shape) < 2**63


def _check(name: str, packed: Packed) -> None:
    """Every part is as long as the others say, and of a type that belongs to the tensor's."""
    mask, values, scale = packed.mask, packed.values, packed.scale
    smaller = packed.dtype.is_floating_point and packed.dtype.itemsize > values.dtype.itemsize
    rounded = smaller and values.dtype in ROUNDED.values()
    own = values.dtype == packed.dtype and scale is None
    if not own and not (rounded and (values.dtype == torch.int8) == (scale is not None)):
        with_scale = "no scale" if scale is None else "a scale"
        raise _damaged(name, f"is {packed.dtype}, its values {values.dtype} with {with_scale}")
    count = packed.shape.numel()
    length = (count + 7) // 8
    if mask.dtype != torch.uint8 or tuple(mask.shape) != (length,):
        raise _damaged(
            name,
            f"has {count} elements and a mask {mask.dtype} {tuple(mask.shape)}, "
            f"not torch.uint8 ({length},)",
        )
    if count % 8 and int(mask[-1]) >> count % 8:
        raise _damaged(name, f"has a mask with bits beyond its {count} elements")
    ones = native.ones(mask)
    if tuple(values.shape) != (ones,):
        raise _damaged(name, f"has {ones} ones in its mask and values {tuple(values.shape)}")
    if scale is not None and not _is_scale(scale, packed.shape):
        raise _damaged(name, f"has a scale {scale.dtype} {tuple(scale.shape)}")


def _is_scale(scale: Tensor, shape: torch.Size) -> bool:
    if scale.dtype != torch.float32 or scale.dim() != len(shape):
        return False
    sizes = all(n in (1, m) for n, m in zip(scale.shape, shape, strict=True))
    return sizes and bool((scale.isfinite() & (scale >= 0)).all())


def _damaged(name: str, what: str) -> InputError:
    return InputError(f"the packed tensor {name[:80]!r} {what}: the file is damaged")
