"""Rows that met a matrix before: their products are known, in whatever use they come again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHARE = 256
"""So many times more numbers than are kept of its products a matrix has."""


class Met:
    """The products of one matrix with rows, each computed once as long as they are few.

    A product is a function of the bits of its row and of the matrix: the uses of a model that
    differ in its mode, in autograd or in how often an item is repeated ask for the same ones.

    >>> calls, double = [], torch.tensor([[2.0]], dtype=torch.float64)
    >>> def product(rows):
    ...     calls.append(len(rows))
    ...     return rows @ double
    >>> met = Met(10)
    >>> rows = torch.tensor([[1.0], [3.0], [1.0]], dtype=torch.float64)
    >>> [met(some, product).flatten().tolist() for some in (rows[:1], rows)], calls
    ([[2.0], [2.0, 6.0, 2.0]], [1, 1])
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._rows: Tensor | None = None
        self._products = torch.empty(0)

    def __call__(self, rows: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """The products of some rows.

        Args:
            rows: ``[n, in]``.
            product: of rows that have not come yet, ``[n, out]``.
        """
        if rows.dtype is not torch.float64 or rows.dim() != 2 or not rows.numel():
            return product(rows)
        rows = rows.detach().contiguous()
        place = self._places(rows)
        new = (place < 0).nonzero().flatten()
        made = product(rows[new]) if len(new) else None
        if self._rows is None and made is not None:
            self._keep(rows, made)
            return made
        found = self._products[place.clamp(min=0)]
        if made is not None:
            found[new] = made
            self._keep(rows[new], made)
        return found

    def _places(self, rows: Tensor) -> Tensor:
        """Where each row stands among those that came; −1: nowhere."""
        nowhere = torch.full((len(rows),), -1, device=rows.device)
        if self._rows is None:
            return nowhere
        bits, known = rows.view(torch.int64), self._rows.view(torch.int64)
        alike, first = (bits.sum(1)[:, None] == known.sum(1)).max(1)
        same = alike & (bits == known[first]).all(1)
        return torch.where(same, first, nowhere)

    def _keep(self, rows: Tensor, products: Tensor) -> None:
        if self._rows is not None:
            rows = torch.cat([self._rows, rows])
            products = torch.cat([self._products, products])
        if rows.numel() + products.numel() <= self._room:
            self._rows, self._products = rows, products
