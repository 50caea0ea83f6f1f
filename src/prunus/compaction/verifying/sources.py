"""How the values of one tensor are made for a comparison, whole or some rows at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus._common.parts import parts
from prunus._common.topk import count
from prunus.compaction.cut import take
from prunus.types import Indices

BLOCK = 2**17
"""Numbers of a matrix that are made at a time: they stay in a processor's cache."""

_PERIOD = 2**16
"""How many random numbers are drawn for what a mask removes; they are repeated over a tensor."""


@dataclass(frozen=True, eq=False)
class Source:
    """How the values of one tensor are made.

    Attributes:
        own: the model's.
        parameter: whether it is one.
        noise: makes constants random.
        mask: what is kept.
        fill: where random numbers for what is not come from, instead of zeros.
    """

    own: Tensor
    parameter: bool
    noise: Callable[[Tensor], Tensor] | None = None
    mask: Tensor | None = None
    fill: Callable[[], torch.Generator] | None = None

    @property
    def large(self) -> bool:
        """Whether its values are not held: a matrix, or one whose random numbers come late."""
        makes = self.own.is_floating_point() and not self.own.is_meta and self.parameter
        return makes and (self.own.dim() > 1 or self.fill is not None)

    def by_rows(self, kept: Indices | None) -> bool:
        """Whether some of the rows that stay can be made by themselves, and it is worth it."""
        alone = self.noise is None and self.own.dim() == 2 and (self.fill is None or kept is None)
        row_major = self.own.is_contiguous() and not self.own.is_meta
        return alone and row_major and self.own.numel() > BLOCK

    def blocks(self, kept: Indices | None, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The values of the rows that stay, some at a time: each is gone when the next is made.

        Args:
            kept: indices that stay; ``None`` for all.
            dtype: of the values.
        """
        rows, columns = (None, None) if kept is None else kept
        number = len(self.own) if rows is None else len(rows)
        width = self.own.shape[1] if columns is None else len(columns)
        mask = self._mask_of(columns)
        exact = self.own.dtype is dtype and self.fill is None
        room = self.own.new_empty(
            BLOCK + width, dtype=dtype if exact else wide_type(self.own.dtype)
        )
        noise = None
        if mask is not None and self.fill is not None:
            noise, other = self._noise(self._spread, BLOCK + width), torch.empty_like(room)
        for start in range(0, number, step := max(1, BLOCK // max(1, width))):
            some = slice(start, start + step)
            left = some if rows is None else rows[some].to(self.own.device)
            if rows is None:
                own = take(self.own[some], (None, columns))
            else:
                own = take(self.own, (rows[some], columns))
            values = room[: own.numel()].view(own.shape).copy_(own)
            if mask is not None:
                keeps = mask[left] if len(mask) > 1 else mask
                if noise is None:
                    values.mul_(keeps.to(values.dtype))
                else:
                    drawn = noise[start * width % _PERIOD :][: values.numel()]
                    filled = other[: values.numel()].view(values.shape)
                    values = torch.where(keeps, values, drawn.view(values.shape), out=filled)
            yield some, values.to(dtype)

    def _mask_of(self, columns: Tensor | None) -> Tensor | None:
        """What is kept of the columns that stay, as broadcastable as it was; ``None``: all."""
        if self.mask is None:
            return None
        mask = self.mask.view((1,) * (2 - self.mask.dim()) + tuple(self.mask.shape))
        mask = mask.to(self.own.device)
        if columns is not None and mask.shape[1] > 1:
            mask = mask.index_select(1, columns.to(mask.device))
        return None if bool(mask.all()) else mask

    def made(self, kept: Indices | None = None) -> Tensor:
        """The values of all indices, or of those that stay."""
        if not self.own.is_floating_point() and not self.own.is_complex():
            return self.own if kept is None else take(self.own, kept)
        early = kept is not None and self.noise is None and self.fill is None
        part = take(self.own, kept) if early and kept is not None else self.own
        values = part.to(wide_type(part.dtype))
        if self.noise is not None and not values.is_meta:
            values = self.noise(values)
        if self.mask is not None:
            mask = self.mask.to(values.device).expand(self.own.shape)
            mask = take(mask, kept) if early and kept is not None else mask
            values = values.clone() if values is self.own else values
            _mask(values, mask)
            if self.fill is not None and not values.is_meta:
                self._fill(values, mask)
        return values if kept is None or early else take(values, kept)

    def _fill(self, values: Tensor, kept: Tensor) -> None:
        """Random numbers, of the size of what is kept, in place of the zeros of what is removed."""
        if not values.numel():
            return
        spread, start = _deviation((part for (part,) in parts(values)), self._left), 0
        noise = self._noise(spread, max(part.numel() for (part,) in parts(values)))
        for part, mask in parts(values, kept):
            drawn = noise[start % _PERIOD :][: part.numel()].view(part.shape)
            torch.where(mask, part, drawn, out=part)
            start += part.numel()

    @property
    def _left(self) -> int:
        """How many values are kept."""
        assert self.mask is not None
        return count(self.mask) * (self.own.numel() // self.mask.numel())

    @functools.cached_property
    def _spread(self) -> float:
        """How far the values that are kept differ."""
        assert self.mask is not None
        mask = self.mask.to(self.own.device).expand(self.own.shape)
        wide = wide_type(self.own.dtype)
        return _deviation(
            (own.to(wide).mul_(kept) for own, kept in parts(self.own, mask)), self._left
        )

    def _noise(self, spread: float, most: int) -> Tensor:
        """Random numbers of a size, repeated: ``most`` follow on any of the first ones."""
        assert self.fill is not None
        number = min(_PERIOD, self.own.numel())
        drawn = torch.randn(number, generator=self.fill(), dtype=torch.float32) * spread
        return drawn.to(self.own.device).double().repeat(2 + most // number)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def _mask(values: Tensor, kept: Tensor) -> None:
    """Zero what is removed, in place."""
    for part, mask in parts(values, kept):
        part.mul_(mask)


def _deviation(values: Iterable[Tensor], number: int) -> float:
    """The standard deviation of so many values, in parts that are zero elsewhere."""
    total, squares = 0.0, 0.0
    for part in values:
        total += float(part.real.sum())
        squares += float(torch.linalg.vector_norm(part)) ** 2
    spread = (max(squares - total**2 / number, 0.0) / (number - 1)) ** 0.5 if number > 1 else 0.1
    return max(spread, 1e-3)
