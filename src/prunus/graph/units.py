"""What can be removed from a model, and what cannot and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.graph.analysis import Analysis
from prunus.graph.labels import Array, Fixed

Place = tuple[str, int]
"""A dimension of a parameter or buffer: its name and the dimension's number."""


@dataclass(frozen=True)
class Coupled:
    """Units of one kind: each takes the same number of indices from the same dimensions.

    Attributes:
        places: dimensions of parameters and buffers that lose indices together.
        classes: the class of each unit, in the order of the first place's indices. ``[units]``.
        head: whether these are attention heads.
        hidden: whether a norm counts them.
    """

    places: tuple[Place, ...]
    classes: Array
    head: bool
    hidden: bool = False

    @property
    def name(self) -> str:
        """The first parameter: for reports."""
        return self.places[0][0]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        places = [list(place) for place in self.places]
        return {"units": len(self), "head": self.head, "places": places}

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Pinned:
    """A dimension of which no index can go.

    Attributes:
        place: parameter and dimension.
        size: how many indices it has.
        why: the reason.
    """

    place: Place
    size: int
    why: str


def coupled_units(analysis: Analysis, parameters: Sequence[str]) -> list[Coupled]:
    """Free classes that touch a parameter, gathered by what they touch.

    Args:
        analysis: of the model.
        parameters: names of parameters (buffers alone make no unit).
    """
    solved, wanted = analysis.solved, set(parameters)
    tensors = analysis.tensors.items()
    dims = [((n, d), dim) for n, value in tensors for d, dim in enumerate(value.dims)]
    kind_of = np.zeros(len(solved.reason), dtype=np.int64)  # of each class
    touched: list[tuple[int, ...]] = [()]  # by each kind, numbers of places
    for place, (_, dim) in enumerate(dims):  # which splits a kind by how often it is touched
        if isinstance(dim, Fixed):
            continue
        found, times = np.unique(solved.of(dim)[solved.free(dim)], return_counts=True)
        base = len(dim) + 1
        parts, which = np.unique(kind_of[found] * base + times, return_inverse=True)
        kind_of[found] = len(touched) + which.reshape(-1)
        touched += [(*touched[part // base], place) for part in parts.tolist()]
    units = []
    kinds = zip(*np.unique(kind_of, return_index=True), strict=True)
    for kind, _ in sorted(kinds, key=lambda k: (touched[k[0]][:1], k[1])):
        places = [dims[place][0] for place in touched[kind]]
        first = next((p for p in places if p[0] in wanted), None)
        if first is not None:
            classes = _in_order(analysis, first, kind_of == kind)
            ordered = (first, *(p for p in places if p != first))
            head, hidden = bool(solved.head[classes[0]]), bool(solved.hidden[classes[0]])
            units.append(Coupled(ordered, classes, head, hidden))
    return units


def _in_order(analysis: Analysis, place: Place, members: NDArray[np.bool_]) -> Array:
    """Classes in the order in which a dimension first meets them."""
    dim = analysis.tensors[place[0]].dims[place[1]]
    assert not isinstance(dim, Fixed)
    classes = analysis.solved.of(dim)
    own = classes[members[classes]]
    _, first = np.unique(own, return_index=True)
    ordered: Array = own[np.sort(first)]
    return ordered


def pinned_dims(analysis: Analysis, parameters: Sequence[str]) -> list[Pinned]:
    """Dimensions of parameters of which no index can go, each with its reason."""
    found = []
    for name in parameters:
        value = analysis.tensors.get(name)
        if value is None:
            continue
        for d, dim in enumerate(value.dims):
            if isinstance(dim, Fixed) or not analysis.solved.free(dim).any():
                why = analysis.solved.why(dim) or "of no unit"
                found.append(Pinned((name, d), value.shape[d], why))
    return found
