"""A label for every index of every dimension, and what relates labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Fixed:
    """A dimension none of whose indices can go.

    Attributes:
        why: for the user.
    """

    why: str


Dim: TypeAlias = Array | Fixed
"""One dimension of a value: a label per index, or fixed."""

Dims: TypeAlias = tuple[Dim, ...]


@dataclass(frozen=True)
class Value:
    """What is known of a tensor while labels travel.

    Attributes:
        dims: labels, or fixed.
        zero: for each dimension, whether the indices that a cut removes are zero in the masked
            model. Only then may they be left out of a sum.
        shape: sizes.
        even: for each dimension, whether they are, if not zero, what the operators before make of
            zeros: ``x − mean`` is, where x is zero. Not given: nowhere.
    """

    dims: Dims
    zero: tuple[bool, ...]
    shape: tuple[int, ...]
    even: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.dims) == len(self.zero) == len(self.shape)

    def known(self, d: int) -> bool:
        """Whether the removed indices of a dimension can be made again from zeros."""
        return self.zero[d] or (bool(self.even) and self.even[d])

    def all_fixed(self) -> bool:
        """Whether no index can go."""
        return all(isinstance(d, Fixed) for d in self.dims)


@dataclass(frozen=True)
class Site:
    """Dimensions that merge or split: an index of one stands for several of another.

    A merged index lives while all its factors live, and tensors stay rectangular; so each
    dimension loses indices through one partner at most.

    Attributes:
        where: the operator, for the user.
        sources: dimensions on one side.
        sinks: dimensions on the other side.
        pairs: ``(source, sink, [2, k] labels)`` that fall together if these two are partners.
    """

    where: str
    sources: tuple[Array, ...]
    sinks: tuple[Array, ...]
    pairs: tuple[tuple[int, int, Array], ...]


class Labels:
    """Collects labels, and what rules say about them; ``solve`` draws the conclusions.

    Args:
        hidden: whether indices that a norm counts may go, the zeros in their place counted on.
    """

    def __init__(self, *, hidden: bool = False) -> None:
        self.hidden = hidden
        self.count = 0
        self.ties: list[Array] = []
        self.pins: list[tuple[Array, str]] = []
        self.sites: list[Site] = []
        self.heads: list[Array] = []
        self.counted: list[Array] = []
        self.spared: list[Array] = []
        self.gone: list[Array] = []

    def fresh(self, size: int) -> Array:
        """Labels that nothing relates yet."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def tie(self, a: Dim, b: Dim) -> None:
        """Index by index, the labels fall together; beside a fixed dimension they stay."""
        self.join(a, b)

    def pin(self, dim: Dim, why: str) -> None:
        """These indices stay."""
        if not isinstance(dim, Fixed) and dim.size:
            self.pins.append((dim, why))

    def join(self, *dims: Dim) -> Dim:
        """Dimensions of one size whose indices fall together; fixed if one of them is.

        >>> labels = Labels()
        >>> labels.join(labels.fresh(2), Fixed("input"))
        Fixed(why='input')
        """
        fixed = next((d for d in dims if isinstance(d, Fixed)), None)
        free = [d for d in dims if not isinstance(d, Fixed)]
        if fixed is not None:
            for dim in free:
                self.pin(dim, fixed.why)
            return fixed
        for dim in free[1:]:
            if dim is not free[0]:
                self.ties.append(np.stack(np.broadcast_arrays(free[0], dim)))
        return free[0]

    def array(self, dim: Dim, size: int) -> Array:
        """A dimension as labels; of a fixed one pinned labels are made."""
        if not isinstance(dim, Fixed):
            return dim
        made = self.fresh(size)
        self.pin(made, dim.why)
        return made

    def factors(self, where: str, whole: Dim, parts: Sequence[Dim], sizes: Sequence[int]) -> None:
        """A site: ``whole`` counts through ``parts`` of these sizes, the last one fastest."""
        if isinstance(whole, Fixed):
            for part in parts:
                self.pin(part, whole.why)
            return
        numbers = np.unravel_index(np.arange(len(whole)), tuple(sizes))
        live = [
            (part, number)
            for part, number, size in zip(parts, numbers, sizes, strict=True)
            if not isinstance(part, Fixed) and size > 1
        ]
        if not live:
            self.pin(whole, next((p.why for p in parts if isinstance(p, Fixed)), "of size 1"))
            return
        pairs = tuple(
            (0, i, np.stack([whole, part[number]])) for i, (part, number) in enumerate(live)
        )
        self.sites.append(Site(where, (whole,), tuple(part for part, _ in live), pairs))

    def made(self, sizes: Sequence[int], why: str = "of size 1") -> Dims:
        """Labels for a new tensor; dimensions of size 1 are broadcast, and stay."""
        return tuple(self.fresh(int(n)) if int(n) != 1 else Fixed(why) for n in sizes)

    def spare(self, dim: Dim) -> None:
        """Removed indices of this dimension are sliced, and not masked: something else is zero."""
        if not isinstance(dim, Fixed):
            self.spared.append(dim)

    def head(self, dim: Dim) -> None:
        """These labels number attention heads."""
        if not isinstance(dim, Fixed):
            self.heads.append(dim)
