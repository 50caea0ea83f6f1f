"""What can be removed from a model, and what cannot and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    solved = analysis.solved
    touched: dict[int, dict[Place, int]] = {}
    wanted = set(parameters)
    for name, value in analysis.tensors.items():
        for d, dim in enumerate(value.dims):
            if isinstance(dim, Fixed):
                continue
            classes = solved.of(dim)[solved.free(dim)]
            for found, number in zip(*np.unique(classes, return_counts=True), strict=True):
                touched.setdefault(int(found), {})[name, d] = int(number)
    kinds: dict[tuple[tuple[Place, int], ...], list[int]] = {}
    for found, where in touched.items():
        if any(name in wanted for name, _ in where):
            kinds.setdefault(tuple(where.items()), []).append(found)
    units = []
    for kind, members in kinds.items():
        places = tuple(place for place, _ in kind)
        first = next(p for p in places if p[0] in wanted)
        ordered = (first, *(p for p in places if p != first))
        classes = _in_order(analysis, first, members)
        first_class = classes[0]
        units.append(
            Coupled(
                ordered, classes, bool(solved.head[first_class]), bool(solved.hidden[first_class])
            )
        )
    return units


def _in_order(analysis: Analysis, place: Place, members: Sequence[int]) -> Array:
    """Classes in the order in which a dimension first meets them."""
    dim = analysis.tensors[place[0]].dims[place[1]]
    assert not isinstance(dim, Fixed)
    classes = analysis.solved.of(dim)
    own = classes[np.isin(classes, members)]
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
