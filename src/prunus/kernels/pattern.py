"""How the zeros of a matrix lie, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunus.errors import InputError

LARGEST = 2**31 - 1 - 4096
"""Values and indices are counted in 32 bits."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where the values of a matrix are, row by row.

    Attributes:
        first: int64 ``[rows + 1]``, number of the first value of each row.
        column: int32 ``[values]``, rising within a row.
        rows, cols: of the matrix.
    """

    first: Tensor
    column: Tensor
    rows: int
    cols: int

    @classmethod
    def of(cls, kept: Tensor) -> Pattern:
        """Of a mask ``[rows, cols]``, or of a matrix's values that are not zero.

        >>> found = Pattern.of(torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 3.0]]))
        >>> found.first.tolist(), found.column.tolist()
        ([0, 1, 1, 3], [1, 0, 1])
        """
        if not isinstance(kept, Tensor) or kept.dim() != 2 or kept.device.type != "cpu":
            raise InputError(f"a pattern is of a matrix on the CPU, not of {described(kept)}")
        there = (kept.detach() != 0).contiguous()
        rows, cols = there.shape
        flat = np.flatnonzero(there.numpy())  # many times as fast as torch's
        if max(rows, cols, len(flat)) > LARGEST:
            raise InputError(
                f"a matrix of {rows}×{cols} with so many values is too large: split it"
            )
        begin = np.arange(rows + 1, dtype=np.int64) * cols
        first = np.searchsorted(flat, begin)
        column = (flat - np.repeat(begin[:-1], np.diff(first))).astype(np.int32)
        return cls(torch.from_numpy(first), torch.from_numpy(column), rows, cols)

    @property
    def values(self) -> int:
        """How many."""
        return int(self.column.numel())

    @property
    def density(self) -> float:
        """Values ÷ places, 0 to 1."""
        return self.values / max(1, self.rows * self.cols)

    def refuse(self) -> None:
        """One that came from a file, unless it is a pattern.

        Raises:
            InputError: if rows do not follow each other, or columns do not rise within a row.
        """
        fits = (
            self.first.dtype == torch.int64 and self.first.shape == (self.rows + 1,)
            and self.column.dtype == torch.int32 and self.column.dim() == 1
            and self.first.is_contiguous() and self.column.is_contiguous()
            and int(self.first[0]) == 0 and int(self.first[-1]) == self.values
            and bool((self.first.diff() >= 0).all())
        )  # fmt: skip
        if fits and self.values:
            place = self.flat()
            inside = bool(((self.column >= 0) & (self.column < self.cols)).all())
            fits = inside and bool((place.diff() > 0).all())
        if not fits:
            raise InputError(
                f"a pattern of {self.rows}×{self.cols} is damaged: its rows or columns are not in "
                "order; take it from the mask again"
            )

    def flat(self) -> Tensor:
        """int64 ``[values]``: the place of each value in the flattened matrix."""
        row = torch.repeat_interleave(torch.arange(self.rows), self.first.diff())
        return row * self.cols + self.column

    def transposed(self) -> tuple[Pattern, Tensor]:
        """The pattern of the transposed matrix, and the number here of each of its values.

        >>> turned, order = Pattern.of(torch.tensor([[0, 1], [1, 1]])).transposed()
        >>> turned.first.tolist(), turned.column.tolist(), order.tolist()
        ([0, 1, 3], [1, 0, 1], [1, 0, 2])
        """
        row = torch.repeat_interleave(torch.arange(self.rows, dtype=torch.int32), self.first.diff())
        column = self.column.numpy()
        if self.cols <= 1 << 16:
            column = column.astype(np.uint16)  # which numpy sorts by radix, ten times as fast
        order = torch.from_numpy(np.argsort(column, kind="stable"))
        first = torch.zeros(self.cols + 1, dtype=torch.int64)
        torch.cumsum(
            torch.bincount(self.column, minlength=self.cols)[: self.cols], 0, out=first[1:]
        )
        return Pattern(first, row[order].contiguous(), self.cols, self.rows), order


def described(value: object) -> str:
    """A tensor in a few words, anything else by its type."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} {tuple(value.shape)} on {value.device}"
