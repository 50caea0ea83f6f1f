"""The shrinks of a model so far: as plain values, and from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus.compaction.shrink import ShrinkStep
from prunus.pruning.space import PruningSpace
from prunus.types import Masks


class Shrunk(NamedTuple):
    """A shrink, and what was known of the model before it."""

    step: ShrinkStep
    space: PruningSpace
    initial_masks: Masks


def saved(shrinks: Sequence[Shrunk]) -> list[dict[str, Any]]:
    """Shrinks as plain values: the indices that stayed, and what the gate found."""
    found = [(s.step.kept, s.step.plan.comparison) for s in shrinks]
    return [{"kept": dict(k), "error": c.error, "effect": c.effect} for k, c in found]


def as_saved(step: ShrinkStep, values: Mapping[str, Any]) -> ShrinkStep:
    """A shrink that was done again, with what the gate found the first time."""
    plan = step.plan
    found = dataclasses.replace(plan.comparison, error=values["error"], effect=values["effect"])
    return dataclasses.replace(step, plan=dataclasses.replace(plan, comparison=found))


def begins(shrinks: Sequence[Shrunk], steps: Iterable[Mapping[str, Any]]) -> bool:
    """Whether shrinks are the first of those saved."""
    own = [s.step.kept for s in shrinks]
    theirs = [values["kept"] for values in steps][: len(own)]
    return len(own) == len(theirs) and all(
        a.keys() == b.keys() and all(map(_same, a.values(), (b[k] for k in a)))
        for a, b in zip(own, theirs, strict=True)
    )


def _same(one: Iterable[Tensor | None], other: Iterable[Tensor | None]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)
