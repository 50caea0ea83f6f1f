"""Random inputs like an example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus._common.inputs import Inputs, arguments
from prunus._common.torch_internals import pytree
from prunus.errors import InputError


def random_inputs(example: Any, *, batch: int | None = None, seed: int = 0) -> Inputs:
    """Fresh inputs like an example, of another batch size if asked.

    Floats are standard normal, with no denormal number among them; integers are drawn from the
    example's own range, so that token ids stay known ones; bools are kept, and so are floats that
    are a mask (both 0 and 1 and nothing else, or ±∞ or the lowest number among them). The batch
    size is the leading dimension of the first tensor that has one; every tensor with the same
    leading size changes with it, and what is kept is repeated or cut.

    Args:
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        batch: the leading dimension wanted; ``None`` keeps the example's.
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
    leading = [len(t) for t in pytree.tree_leaves(given) if isinstance(t, Tensor) and t.dim()]
    if batch is not None and batch < 1:
        raise InputError(f"the batch size is {batch}; it must be at least 1")
    if batch is not None and not leading:
        raise InputError(
            f"a batch of {batch} cannot be made: no tensor of the example has a leading dimension"
        )
    generator = torch.Generator().manual_seed(seed)

    def fresh(value: Tensor) -> Tensor:
        if batch is not None and value.dim() and len(value) == leading[0]:
            return _fresh(value, (batch, *value.shape[1:]), generator)
        return _fresh(value, tuple(value.shape), generator)

    made: Inputs = pytree.tree_map_only(Tensor, fresh, given)
    return made


def _fresh(value: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """New values in the memory format of the old ones."""
    if value.is_meta or value.numel() == 0:
        return value.new_empty(shape)
    if value.dtype is torch.bool or _is_mask(value):
        made = value if value.shape == shape else _repeated(value, shape[0])
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


def _repeated(value: Tensor, count: int) -> Tensor:
    return value[torch.arange(count, device=value.device) % len(value)]


def _normal(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Drawn in float32 on the CPU; what the type has no normal number for becomes zero."""
    if dtype.is_complex:
        return torch.view_as_complex(_normal(torch.float32, (*shape, 2), generator)).to(dtype)
    made = torch.randn(shape, generator=generator)
    return made.masked_fill_(made.abs() < torch.finfo(dtype).tiny, 0).to(dtype)


def _is_mask(value: Tensor) -> bool:
    if not value.is_floating_point():
        return False
    wide = value.detach().float()
    if bool(wide.abs().max() >= torch.finfo(value.dtype).max / 2):
        return True
    two = bool(((wide == 0) | (wide == 1)).all())
    return two and bool(wide.min() < wide.max())
