"""The words of the library as types, and the signature of each axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter's part in a group.

    Attributes:
        name: the parameter's name in ``model.named_parameters()``.
        index: one small integer vector per dimension, shaped to broadcast; their sum is the
            number of the unit to which an element belongs. An element with a negative entry
            is not of the group. ``None``: every element is its own unit, in storage order.
        scored: whether its elements count: in a unit's score and in the sparsity
            (a bias falls with its neuron but does neither).
    """

    name: str
    index: tuple[Tensor, ...] | None = None
    scored: bool = True


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters whose units fall together.

    Attributes:
        name: what reports call it.
        units: how many units it has.
        members: its parameters.
        shape: the shape of the weight it stands for, ``(out, in, ...)``.
        run: units in one local competition: the weights of one output neuron, the m of n:m.
            Units are numbered run by run.
        balanced: every run keeps the same number (n:m).
        sizes: weights per unit, ``[units]``; ``None`` when each unit is one weight.
        may_empty: whether all of its units may go (``layer``).
        classes: of coupled units: the class of each in the analysis that they come from.
        multiple_of: the number kept is a multiple of this, where the group is large enough.
        least: units that must stay.
        dense_units: how many the dense model had, where the model became smaller since.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    shape: tuple[int, ...]
    run: int
    balanced: bool = False
    sizes: Tensor | None = None
    may_empty: bool = False
    classes: tuple[int, ...] | None = None
    multiple_of: int = 1
    least: int = 1
    dense_units: int | None = None

    @property
    def weights(self) -> int:
        """How many weights its units hold together."""
        return self.units if self.sizes is None else int(self.sizes.sum())


@dataclass(frozen=True)
class Limits:
    """What an allocation must respect in one group.

    Attributes:
        least: units that must stay.
        most: units that can stay: those not removed already.
    """

    least: int
    most: int


Masks: TypeAlias = dict[str, Tensor]
"""Parameter name to bool, True = kept; of the parameter's shape or broadcastable to it."""

Indices: TypeAlias = tuple[Tensor | None, ...]
"""Of a tensor, by dimension: the int64 indices that stay, ascending; ``None``: all of them."""

Kept: TypeAlias = Mapping[str, Indices]
"""Indices by the name of a parameter or buffer."""

Units: TypeAlias = Mapping[Group, Tensor]
"""A group's unit scores, ``[units]``, float; −inf = removed already."""

Counts: TypeAlias = dict[Group, int | Tensor]
"""Units kept in a group; a tensor ``[units // run]`` counts run by run."""

Damage: TypeAlias = Mapping[Group, tuple[tuple[int, float], ...]]
"""Of each group pairs of units kept and the loss then, the most first."""

Criterion: TypeAlias = Callable[..., Tensor]
Allocation: TypeAlias = Callable[..., Counts]
Schedule: TypeAlias = Callable[..., float]
Rate: TypeAlias = Callable[..., float]
Repair: TypeAlias = Callable[..., None]
Restore: TypeAlias = Callable[..., "State"]


@dataclass
class State:
    """All that training changes: what a restore receives and returns.

    Attributes:
        tensors: parameters and buffers by their names in ``model.state_dict()``.
        optimizer: the ``"state"`` part of the optimizer's ``state_dict()``.
    """

    tensors: dict[str, Tensor]
    optimizer: dict[Any, Any]
