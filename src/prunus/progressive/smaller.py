"""The end of a run: the model made physically smaller, with the optimizer that trained it."""

from __future__ import annotations

from collections.abc import Iterable

from torch.optim import Optimizer

from prunus.compaction.slicing.drop import emptied, find_drops, take_out
from prunus.compaction.slicing.parameters import unsliceable
from prunus.compaction.slicing.rescaling import rescale
from prunus.errors import InputError
from prunus.progressive.phase import carry
from prunus.progressive.result import Compaction
from prunus.progressive.shrinks import undoing
from prunus.progressive.state import RunContext, RunState
from prunus.progressive.train import takes_run
from prunus.pruning.optimizers import AnyOptimizer, class_of, each_of, optimizer_of

_NEW = "{} does not go on with the smaller model, build a new one: {}"
_ORDER = ("sliced", "attributes", "modules", "graph")


def compacted(job: RunContext, at: RunState) -> Compaction | None:
    """Make the final model physically smaller, if the recipe says so.

    The optimizer that trained it last goes on, where its state can be sliced; else a note says
    that it must be new.
    """
    engine = job.engine
    if engine.recipe.compact == "none":
        return None
    if engine.space.analysis is None:
        return _dropped(job)
    if engine.optimizer is not None and at.rounds[-1].verdict == "rejected":
        carry(engine.optimizer, at.optimizer)  # what it has is of the round that was undone
    going_on, new = sliceable(engine.optimizer)
    engine.shrink(going_on)
    if not engine.shrinks:
        return None
    plans = [s.step.plan for s in engine.shrinks]
    changed = rescale(engine.model)
    engine.shrinks[-1] = undoing(engine.shrinks[-1], changed)
    if job.train is not None and not takes_run(job.train):
        new = (_NEW.format("optimizer of train(model)", "its state has the old shapes"),)
    elif changed and going_on is not None and not new:
        new = (_NEW.format(class_of(going_on), "norms were rescaled"),)
    return Compaction(
        route=max((p.route for p in plans), key=_ORDER.index),
        units=sum(s.step.units for s in engine.shrinks),
        error=max(p.comparison.error for p in plans),
        effect=max(p.comparison.effect for p in plans),
        notes=(*_together(n for p in plans for n in p.notes), *new),
        attributes=(*(a for p in plans for a in p.surgery.attributes), *changed),
    )


def _together(notes: Iterable[str]) -> tuple[str, ...]:
    """Notes of all rounds: those of one head with their names together, each once.

    >>> _together(["became graphs: a, b", "odd", "became graphs: c, a"])
    ('became graphs: a, b, c', 'odd')
    """
    found: dict[str, dict[str, None]] = {}
    for note in notes:
        head, colon, names = note.partition(": ")
        found.setdefault(head + colon, {}).update(dict.fromkeys(names.split(", ")))
    return tuple(head + ", ".join(names) for head, names in found.items())


def sliceable(optimizer: AnyOptimizer | None) -> tuple[AnyOptimizer | None, tuple[str, ...]]:
    """Of what trained the model, what goes on with the smaller one; of the rest, why it does not.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1)
    >>> sliceable(torch.optim.Adafactor(model.parameters()))
    (None, ('Adafactor does not go on with the smaller model, build a new one: it keeps \
statistics of whole rows and columns, which mix kept and removed weights',))
    """
    fit: list[Optimizer] = []
    notes: list[str] = []
    for one in () if optimizer is None else each_of(optimizer):
        why = unsliceable(one)
        if why is None:
            fit.append(one)
        else:
            notes.append(_NEW.format(type(one).__name__, why))
    return optimizer_of(fit) if fit else None, tuple(notes)


def _dropped(job: RunContext) -> Compaction | None:
    """Without the modules of which nothing is left."""
    engine = job.engine
    if not emptied(engine.model, engine.masks):
        return None
    if job.example is None:
        raise InputError("compact: pass example=, an input, so that the result can be verified")
    drops = find_drops(engine.model, engine.masks, job.example)
    engine.dropped = take_out(engine.model, drops.left)
    left = {name for name, _ in engine.model.named_parameters()}
    engine.masks = {name: mask for name, mask in engine.masks.items() if name in left}
    return Compaction(
        route="modules",
        units=len(drops.left),
        error=drops.comparison.error,
        effect=drops.comparison.effect,
        notes=(f"taken out: {', '.join(drops.left)}",),
    )
