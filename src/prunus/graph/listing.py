"""What can be removed from a model, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus._common.given import given_example, given_model
from prunus._common.kinds import given_choice
from prunus._common.numbers import count
from prunus._common.steps import takes_steps
from prunus.graph.analysis import Analysis, analyze
from prunus.graph.solve import Heads
from prunus.graph.units import Coupled, Pinned, coupled_units, pinned_dims


@dataclass(frozen=True)
class Units:
    """What can be removed from a model, and what cannot.

    Attributes:
        coupled: kinds of units, each with the dimensions that lose indices together.
        pinned: dimensions of parameters that stay, with the reason.
        unknown: operators without a rule, and how often they pinned something.
        how: how the model was traced.
        notes: what the traced graph takes as given.
    """

    coupled: Sequence[Coupled]
    pinned: Sequence[Pinned]
    unknown: dict[str, int]
    how: str
    notes: Sequence[str] = ()

    @property
    def total(self) -> int:
        """How many units there are."""
        return sum(len(c) for c in self.coupled)

    def __str__(self) -> str:
        return "\n".join(self.summary())

    def summary(self, most: int = 4) -> list[str]:
        """The table, a kind of unit or a reason a line.

        Args:
            most: dimensions named in a line before the rest is counted.
        """
        found = [f"{count(self.total)} units that can be removed"]
        for kind in self.coupled:
            word = "heads" if kind.head else "units"
            found.append(_line(len(kind), word, _places(kind.places, most)))
        reasons: dict[str, list[Pinned]] = {}
        for pin in self.pinned:
            reasons.setdefault(pin.why, []).append(pin)
        found.append(f"{count(len(self.pinned))} dimensions that stay")
        for why, pins in reasons.items():
            found.append(
                _line(len(pins), "stay", f"{why}: {_places([p.place for p in pins], most)}")
            )
        for name, number in self.unknown.items():
            found.append(f"no rule for the operator {name} (met {number} times): its operands stay")
        return [*found, *(f"note: {note}" for note in self.notes)]


@takes_steps
def units(model: nn.Module, example: Any, *, heads: Heads = "whole", hidden: bool = False) -> Units:
    """What can be removed from a model, and what cannot and why. The model is not changed.

    A unit is the set of all slices of parameters that must go together: an output channel with
    its bias, its norm, the input channels that read it and whatever is added to it.

    Args:
        model: on any device, meta too.
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        heads: at attention, ``whole`` heads are units, or the same ``dims`` of every head.
        hidden: whether the widths that norms count are units, too.

    Raises:
        InputError: if the model cannot be traced.

    >>> import torch
    >>> print(units(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4)))
    3 units that can be removed
          3 units  0.weight[0], 0.bias[0], 2.weight[1]
    3 dimensions that stay
          1 stay   input input: 0.weight[1]
          2 stay   the model's output: 2.weight[0], 2.bias[0]
    """
    example = given_example(given_model(model, "units"), example)
    given_choice(heads, "heads", ("whole", "dims"))
    return table(model, analyze(model, example, heads=heads, hidden=hidden))


def table(model: nn.Module, analysis: Analysis) -> Units:
    """The same from an analysis."""
    names = list(dict.fromkeys(analysis.names[n] for n, _ in model.named_parameters()))
    return Units(
        coupled=coupled_units(analysis, names),
        pinned=pinned_dims(analysis, names),
        unknown=dict(analysis.unknown),
        how=analysis.traced.how,
        notes=analysis.notes,
    )


def _line(number: int, word: str, text: str) -> str:
    return f"{count(number):>7} {word:<5}  {text}"


def _places(places: Sequence[tuple[str, int]], most: int) -> str:
    named = ", ".join(f"{name}[{d}]" for name, d in places[:most])
    return named if len(places) <= most else f"{named} and {len(places) - most} more"
