"""The end of a round: measure, accept or roll back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus import costs
from prunus._common import rng as randomness
from prunus._common.distributed import number as over_ranks
from prunus._common.distributed import on_rank_zero, synchronize, world_size
from prunus._common.metrics import Metric, MetricEstimate, number
from prunus._common.modules import evaluating
from prunus.compaction.slicing.drop import emptied, find_drops, take_out
from prunus.compaction.slicing.parameters import refuse_optimizer
from prunus.compaction.slicing.rescaling import rescale
from prunus.errors import InputError, RunError
from prunus.progressive.cut import restore, revives
from prunus.progressive.deploy_step import round_latency
from prunus.progressive.guard import accepts
from prunus.progressive.phase import Budget
from prunus.progressive.result import Compaction, Round, last_accepted
from prunus.progressive.state import RunContext, RunState, model_state, put_back
from prunus.pruning.masks import apply, check, finite
from prunus.pruning.masks import put_back as put_tensors
from prunus.types import Masks


def judge(job: RunContext, at: RunState, limit: Budget) -> None:
    engine, recipe = job.engine, job.engine.recipe
    dense = at.phase == "dense"
    finite(engine.model)
    synchronize(engine.model, f"of round {at.index}")
    free = at.phase == "free" and engine.masks
    trained = engine.state(at.optimizer) if free else None
    apply(engine.model, engine.masks)
    check(engine.model, engine.masks)
    metric = score(job.evaluate, engine.model, "evaluate")
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
        requested=engine.start if dense else at.requested,
        achieved=engine.achieved,
        sparsity=engine.sparsity,
        target=engine.counts_in,
        metric=metric,
        verdict=verdict,
        train_metric=score(job.evaluate_train, engine.model, "evaluate_train"),
        l1=engine.l1,
        densities=engine.densities,
        cost=costs.measure(engine.model, job.example, engine.masks),
        seconds=limit.seconds - at.round_began,
        latency={}
        if verdict == "rejected"
        else on_rank_zero(lambda: round_latency(job, first_latency)),
    )
    at.rounds.append(made)
    if trained is not None and verdict != "rejected":
        engine.load(trained)
    if revives(engine, "after") and verdict == "accepted" and at.progress < 1:
        restore(job, at)
    at.phase = "next"
    if verdict == "rejected":
        _roll_back(job, at)
    elif job.keeps:
        at.accepted = job.journal.store("accepted", model_state(job, at))
        if dense and job.again is not None:
            at.blobs["dense"] = at.accepted
    job.journal.write("round", **made.to_dict())
    job.on_event({"event": "judged", "row": made, "of": recipe.rounds})


def is_repeat(job: RunContext, at: RunState) -> bool:
    """Whether this cut is the one just rejected: whole units leave no smaller one."""
    last, engine = at.rounds[-1], job.engine
    return (
        last.verdict == "rejected"
        and not engine.recipe.trait("restore", "CHANGES")
        and engine.achieved == last.achieved
        and engine.densities == last.densities
    )


def reject_again(job: RunContext, at: RunState, limit: Budget) -> None:
    """Roll back without training: another try would differ by chance alone."""
    made = dataclasses.replace(
        at.rounds[-1], index=at.index, step=at.step, progress=at.progress, requested=at.requested,
        seconds=limit.seconds - at.round_began,
    )  # fmt: skip
    at.rounds.append(made)
    at.phase = "next"
    _roll_back(job, at)
    job.journal.write("round", **made.to_dict())
    job.note(f"round {made.index} would cut what round {made.index - 1} cut: not tried again")
    job.on_event({"event": "judged", "row": made, "of": job.engine.recipe.rounds})


def score(evaluate: Metric | None, model: nn.Module, name: str) -> float | None:
    """A metric as one number, the mean of the ranks'.

    Raises:
        InputError: if what comes back is no number.
        RunError: if it is not finite.
    """
    own = None if evaluate is None else number(values(evaluate, model, name), name)
    found = over_ranks(own, name)
    if found is not None and not math.isfinite(found):
        raise RunError(f"{name} returned {found}: the metric must be finite")
    return found


def values(evaluate: Metric, model: nn.Module, name: str) -> float | Tensor:
    """What evaluates, with the model in eval mode and no trace left in it."""
    with evaluating(model), torch.no_grad(), randomness.preserve_rng():
        return evaluate(model)


def test_estimate(job: RunContext, at: RunState, test: Metric | None) -> MetricEstimate | None:
    """What the test data say of the result, and beside it of the dense model of round 0.

    Raises:
        InputError: if what comes back is no number.
        RunError: if it is not finite.
    """
    if world_size() > 1 or test is None:
        mean = score(test, job.model, "test")
        return None if mean is None else MetricEstimate.of(mean)
    found = values(test, job.model, "test")
    if not math.isfinite(number(found, "test")):
        raise RunError(f"test returned {number(found, 'test')}: the metric must be finite")
    if not isinstance(found, Tensor) or job.again is None or "dense" not in at.blobs:
        return MetricEstimate.of(found)
    dense = job.again()
    put_tensors(dense, job.journal.fetch(at.blobs["dense"])["tensors"])
    return MetricEstimate.of(found, values(test, dense, "test"))


def _roll_back(job: RunContext, at: RunState) -> None:
    assert at.accepted is not None
    put_back(job, at, job.journal.fetch(at.accepted))
    job.journal.write("rollback", to=last_accepted(at.rounds).index)


def final_masks(job: RunContext, at: RunState) -> Masks:
    """Return to the last accepted round, removed weights exactly zero."""
    assert at.accepted is not None
    put_back(job, at, job.journal.fetch(at.accepted))
    apply(job.model, job.engine.masks)
    return dict(job.engine.masks)


_ORDER = ("sliced", "attributes", "modules", "graph")


def compacted(job: RunContext) -> Compaction | None:
    """Make the final model physically smaller, if the recipe says so."""
    engine = job.engine
    if engine.recipe.compact == "none":
        return None
    if engine.space.analysis is None:
        return _dropped(job)
    engine.shrink(sliceable(engine.optimizer))
    if not engine.shrinks:
        return None
    plans = [s.step.plan for s in engine.shrinks]
    changed = rescale(engine.model)
    return Compaction(
        route=max((p.route for p in plans), key=_ORDER.index),
        units=sum(s.step.units for s in engine.shrinks),
        error=max(p.comparison.error for p in plans),
        effect=max(p.comparison.effect for p in plans),
        notes=_together(n for p in plans for n in p.notes),
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


def sliceable(optimizer: Optimizer | None) -> Optimizer | None:
    """An optimizer that can go on with the smaller model after the run."""
    try:
        if optimizer is not None:
            refuse_optimizer(optimizer)
    except InputError:
        return None
    return optimizer


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
