"""Random inputs like an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus._common.inputs import Inputs, arguments
from prunus._common.nested import tensors_of, with_tensors
from prunus.errors import InputError


def random_inputs(
    example: Any,
    *,
    batch: int | None = None,
    dims: Sequence[int | None] | None = None,
    seed: int = 0,
) -> Inputs:
    """Fresh inputs like an example, of another batch size if asked.

    Floats are standard normal, with no denormal number among them; integers are drawn from the
    example's own range, so that token ids stay known ones; bools are kept, and so are floats that
    are a mask (both 0 and 1 and nothing else, or ±∞ or the lowest number among them). What is
    kept is repeated or cut to another batch size.

    Args:
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        batch: items wanted; ``None`` keeps the example's.
        dims: of each tensor the dimension that counts items; by default the leading one, of every
            tensor that is there as long as the first one.
        seed: the same numbers on every machine and device.

    Returns:
        Positional and keyword arguments.

    Raises:
        InputError: for a batch size below 1, or where no tensor has a leading dimension.

    >>> (image,), named = random_inputs(torch.zeros(1, 3, 8, 8), batch=4)
    >>> image.shape, named
    (torch.Size([4, 3, 8, 8]), {})
    >>> random_inputs({"ids": torch.tensor([[7, 7]])}, batch=2)
    ((), {'ids': tensor([[7, 7],
            [7, 7]])})
    """
    given = arguments(example)
    leading = [len(t) for t in tensors_of(given) if t.dim()]
    if batch is not None and batch < 1:
        raise InputError(f"the batch size is {batch}; it must be at least 1")
    if batch is not None and not leading:
        raise InputError(
            f"a batch of {batch} cannot be made: no tensor of the example has a leading dimension"
        )
    generator = torch.Generator().manual_seed(seed)

    tensors = tensors_of(given)
    if dims is None:
        dims = [0 if t.dim() and len(t) == leading[0] else None for t in tensors]

    def fresh(value: Tensor, d: int | None) -> Tensor:
        if batch is None or d is None:
            return _fresh(value, tuple(value.shape), 0, generator)
        shape = (*value.shape[:d], batch, *value.shape[d + 1 :])
        return _fresh(value, shape, d, generator)

    return with_tensors(given, map(fresh, tensors, dims))  # type: ignore[no-any-return]


def _fresh(value: Tensor, shape: tuple[int, ...], d: int, generator: torch.Generator) -> Tensor:
    """New values in the memory format of the old ones, of another size in one dimension."""
    if value.is_meta or value.numel() == 0:
        return value.new_empty(shape)
    if value.layout is not torch.strided:
        dense = value.to_dense()
        made = _fresh(dense, shape, d, generator)
        return _repeated(dense != 0, shape[d], d).mul(made).to_sparse(layout=value.layout)
    if value.dtype is torch.bool or is_mask(value):
        made = value if value.shape == shape else _repeated(value, shape[d], d)
    elif value.is_floating_point() or value.is_complex():
        made = _normal(value.dtype, shape, generator)
    else:
        low, high = int(value.min()), int(value.max())
        above = max(low + 1, min(high + 1, 2**63 - 1))  # randint leaves its end out
        made = torch.randint(low, above, shape, generator=generator).to(value.dtype)
    made = made.to(value.device)
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    if last and not value.is_contiguous():
        return made.contiguous(memory_format=torch.channels_last)
    return made


def _repeated(value: Tensor, count: int, d: int) -> Tensor:
    return value.index_select(d, torch.arange(count, device=value.device) % value.shape[d])


def _normal(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Drawn in float32 on the CPU; what the type has no normal number for becomes zero."""
    if dtype.is_complex:
        return torch.view_as_complex(_normal(torch.float32, (*shape, 2), generator)).to(dtype)
    made = torch.randn(shape, generator=generator)
    return made.masked_fill_(made.abs() < torch.finfo(dtype).tiny, 0).to(dtype)


def is_mask(value: Tensor) -> bool:
    """Whether floats are a mask: both 0 and 1 and nothing else, or the lowest number among them."""
    if not value.is_floating_point():
        return False
    wide = value.detach().float()
    if bool(wide.abs().max() >= torch.finfo(value.dtype).max / 2):
        return True
    two = bool(((wide == 0) | (wide == 1)).all())
    return two and bool(wide.min() < wide.max())
