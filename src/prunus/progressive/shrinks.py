"""The shrinks of a model so far: as plain values, and from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus.compaction.shrink import ShrinkStep, leave_out
from prunus.compaction.slicing.attributes import Attribute
from prunus.pruning.optimizers import AnyOptimizer
from prunus.pruning.space import PruningSpace
from prunus.types import Kept, Masks


class Shrunk(NamedTuple):
    """A shrink, and what was known of the model before it."""

    step: ShrinkStep
    space: PruningSpace
    initial_masks: Masks


def saved(shrinks: Sequence[Shrunk]) -> list[dict[str, Any]]:
    """Shrinks as plain values: the indices that stayed, and what the gate found."""
    found = [(s.step.kept, s.step.plan.comparison) for s in shrinks]
    return [{"kept": dict(k), "error": c.error, "effect": c.effect} for k, c in found]


def undoing(last: Shrunk, changed: Iterable[Attribute]) -> Shrunk:
    """The last shrink, which undoes as well what changed behind it."""
    plan = last.step.plan
    surgery = dataclasses.replace(plan.surgery, attributes=(*plan.surgery.attributes, *changed))
    plan = dataclasses.replace(plan, surgery=surgery)
    return last._replace(step=dataclasses.replace(last.step, plan=plan))


def original_kept(shrinks: Sequence[Shrunk]) -> Kept:
    """What is left after all shrinks, as indices into the tensors before the first one.

    For each sliced parameter and buffer a tuple with an entry a dimension: the kept indices in
    their order, or ``None`` where all of it is kept. For ``(None, i)``: ``small = dense[:, i]``.
    """
    found: dict[str, tuple[Tensor | None, ...]] = {}
    for step in (s.step for s in shrinks):
        for name, kept in step.kept.items():
            before = found.get(name, (None,) * len(kept))
            found[name] = tuple(
                old if new is None else new if old is None else old[new]
                for old, new in zip(before, kept, strict=True)
            )
    return found


def original_masks(shrinks: Sequence[Shrunk], masks: Masks) -> Masks:
    """Masks of what is left, and of the tensors before the first shrink: what went is False.

    Args:
        shrinks: all of them.
        masks: of the smaller model.
    """
    found = dict(masks)
    shapes = {n: shape for s in reversed(shrinks) for n, shape in s.step.tensors.items()}
    for name, kept in original_kept(shrinks).items():
        if name not in shapes:  # a buffer
            continue
        small = masks.get(name, torch.ones((1,) * len(kept), dtype=torch.bool))
        left = [n if i is None else len(i) for n, i in zip(small.shape, kept, strict=True)]
        whole = [n if i is None else size
                 for n, i, size in zip(small.shape, kept, shapes[name], strict=True)]  # fmt: skip
        mask = torch.zeros(whole, dtype=torch.bool, device=small.device)
        places = [torch.arange(n) if i is None else i for n, i in zip(whole, kept, strict=True)]
        index = [p.to(small.device) for p in places]
        mask[torch.meshgrid(*index, indexing="ij")] = small.expand(left)
        found[name] = mask
    return found


def as_saved(
    step: ShrinkStep, values: Mapping[str, Any], optimizer: AnyOptimizer | None
) -> ShrinkStep:
    """A shrink that was done again, with what the gate found the first time.

    Args:
        step: the shrink.
        values: as they were saved.
        optimizer: of the model, which trains no longer what went as a whole.
    """
    plan = step.plan
    found = dataclasses.replace(plan.comparison, error=values["error"], effect=values["effect"])
    left_out = leave_out(optimizer, step.gone)
    plan = dataclasses.replace(plan, comparison=found)
    return dataclasses.replace(step, plan=plan, left_out=left_out)


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
