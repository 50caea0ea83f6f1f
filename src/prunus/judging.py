"""The end of a round: measure, accept or roll back."""

from __future__ import annotations

import dataclasses
import math
from typing import SupportsFloat

import torch
from torch import nn
from torch.optim import Optimizer

from prunus import costs, randomness
from prunus.compaction.drop import emptied, find_drops, take_out
from prunus.compaction.optimizer import refuse_optimizer
from prunus.cutting import restore, revives
from prunus.distributed import number, once, settle
from prunus.errors import InputError, RunError
from prunus.guard import accepts, last_accepted
from prunus.masks import apply, check, finite
from prunus.position import Evaluate, Job, Position, model_state, put_back
from prunus.run import Limit
from prunus.serving import round_latency
from prunus.shrinking import shrink
from prunus.types import Compaction, Masks, Round


def judge(job: Job, at: Position, limit: Limit) -> None:
    pruner, recipe = job.pruner, job.pruner.recipe
    dense = at.phase == "dense"
    finite(pruner.model)
    settle(pruner.model, f"of round {at.index}")
    free = at.phase == "free" and pruner.masks
    trained = pruner.state(at.optimizer) if free else None
    apply(pruner.model, pruner.masks)
    check(pruner.model, pruner.masks)
    metric = score(job.evaluate, pruner.model, "evaluate")
    first = at.rounds[0].metric if at.rounds else metric
    first_latency = at.rounds[0].latency if at.rounds else {}
    if dense:
        verdict = "dense"
    elif metric is None or recipe.guard is None:
        verdict = "not judged" if metric is None else "accepted"
    else:
        verdict = "accepted" if accepts(recipe.guard, metric, first) else "rejected"
    made = Round(
        index=at.index,
        step=at.step,
        progress=0.0 if dense else at.progress,
        asked=pruner.start if dense else at.asked,
        achieved=pruner.reached,
        sparsity=pruner.sparsity,
        target=pruner.counts_in,
        metric=metric,
        verdict=verdict,
        train_metric=score(job.evaluate_train, pruner.model, "evaluate_train"),
        l1=pruner.l1,
        densities=pruner.densities,
        cost=costs.measure(pruner.model, job.example, pruner.masks),
        seconds=limit.seconds - at.round_began,
        latency={} if verdict == "rejected" else once(lambda: round_latency(job, first_latency)),
    )
    at.rounds.append(made)
    if trained is not None and verdict != "rejected":
        pruner.load(trained)
    if revives(pruner, "after") and verdict == "accepted" and at.progress < 1:
        restore(job, at)
    at.phase = "next"
    if verdict == "rejected":
        _roll_back(job, at)
    else:
        at.accepted = job.journal.store("accepted", model_state(job, at))
    event = dataclasses.asdict(made)
    job.journal.write("round", **event)
    job.watch({"event": "judged", "row": made, "of": recipe.rounds})


def score(evaluate: Evaluate | None, model: nn.Module, name: str) -> float | None:
    """A metric, with the model in eval mode and no trace left in it; the mean of the ranks'.

    Raises:
        InputError: if what comes back is no number.
        RunError: if it is not finite.
    """
    found = number(None if evaluate is None else _evaluated(evaluate, model, name), name)
    if found is not None and not math.isfinite(found):
        raise RunError(f"{name} returned {found}: the metric must be finite")
    return found


def _evaluated(evaluate: Evaluate, model: nn.Module, name: str) -> float:
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), randomness.kept():
            value: object = evaluate(model)
    finally:
        for module, training in modes:
            module.training = training
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise InputError(
            f"{name} returned {type(value).__name__}, not a number: return the metric as float"
        )
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} returned no number: {error}") from None


def _roll_back(job: Job, at: Position) -> None:
    assert at.accepted is not None
    put_back(job, at, job.journal.fetch(at.accepted))
    job.journal.write("rollback", to=last_accepted(at.rounds).index)


def final_masks(job: Job, at: Position) -> Masks:
    """Return to the last accepted round, removed weights exactly zero."""
    assert at.accepted is not None
    put_back(job, at, job.journal.fetch(at.accepted))
    apply(job.model, job.pruner.masks)
    return dict(job.pruner.masks)


_ORDER = ("sliced", "attributes", "modules", "graph")


def compacted(job: Job) -> Compaction | None:
    """Make the final model physically smaller, if the recipe says so."""
    pruner = job.pruner
    if pruner.recipe.compact == "none":
        return None
    if pruner.view.analysis is None:
        return _dropped(job)
    shrink(pruner, sliceable(pruner.optimizer))
    if not pruner.shrinks:
        return None
    plans = [s.plan for s in pruner.shrinks]
    return Compaction(
        route=max((p.route for p in plans), key=_ORDER.index),
        units=sum(s.units for s in pruner.shrinks),
        error=max(p.comparison.error for p in plans),
        effect=max(p.comparison.effect for p in plans),
        notes=tuple(dict.fromkeys(n for p in plans for n in p.notes)),
        attributes=tuple(a for p in plans for a in p.surgery.attributes),
    )


def sliceable(optimizer: Optimizer | None) -> Optimizer | None:
    """An optimizer that can go on with the smaller model after the run."""
    try:
        if optimizer is not None:
            refuse_optimizer(optimizer)
    except InputError:
        return None
    return optimizer


def _dropped(job: Job) -> Compaction | None:
    """Without the modules of which nothing is left."""
    pruner = job.pruner
    if not emptied(pruner.model, pruner.masks):
        return None
    if job.example is None:
        raise InputError("compact: give example=, an input, so that the result can be verified")
    drops = find_drops(pruner.model, pruner.masks, job.example)
    pruner.dropped = take_out(pruner.model, drops.names)
    left = {name for name, _ in pruner.model.named_parameters()}
    pruner.masks = {name: mask for name, mask in pruner.masks.items() if name in left}
    return Compaction(
        route="modules",
        units=len(drops.names),
        error=drops.comparison.error,
        effect=drops.comparison.effect,
        notes=(f"taken out: {', '.join(drops.names)}",),
    )


def final_cost(job: Job) -> dict[str, float | None]:
    """Of the model as it stands."""
    return dict(costs.measure(job.model, job.example, job.pruner.masks))
