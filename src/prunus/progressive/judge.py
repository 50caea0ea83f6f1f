"""The end of a round: measure, accept or roll back."""

from __future__ import annotations

import dataclasses

from prunus._common.distributed import on_rank_zero, synchronize
from prunus._common.scores import Scores
from prunus.costs.l1 import sums as l1_sums
from prunus.progressive.adapt import hold_back, kept_of, let_go
from prunus.progressive.cut import restore, revives
from prunus.progressive.deploy_step import round_latency
from prunus.progressive.front import keep_front
from prunus.progressive.guard import (
    NOT_TRAINED,
    accepts,
    allowed_drop,
    baseline,
    refuse_unclear,
)
from prunus.progressive.phase import Budget
from prunus.progressive.result import Round, last_accepted
from prunus.progressive.scoring import mean_of, remember, score, scored, weigh
from prunus.progressive.state import RunContext, RunState, model_state, put_back
from prunus.progressive.verdict import asks_for_items, objection
from prunus.pruning.masks import apply, check, finite
from prunus.recipe import duration
from prunus.types import Masks


def judge(job: RunContext, at: RunState, limit: Budget) -> None:
    engine, recipe = job.engine, job.engine.recipe
    dense = at.phase == "dense"
    if job.trial is None:  # else nothing trained, and the masks were just applied
        finite(engine.model)
    synchronize(engine.model, f"of round {at.index}")
    free = at.phase == "free" and engine.masks
    trained = engine.state(at.optimizer) if free else None
    if job.trial is None:
        apply(engine.model, engine.masks)
        check(engine.model, engine.masks)
    found = scored(job.evaluate, engine.model, "evaluate", by_item=asks_for_items(recipe.guard))
    metric = mean_of(found, "evaluate")
    first_metric = at.rounds[0].metric if at.rounds else metric
    trains = duration.parse(recipe.dense.length).value > 0
    against = baseline(recipe.guard, at.rounds, trained=trains)
    first_latency = at.rounds[0].latency if at.rounds else {}
    items, why = (found if isinstance(found, Scores) else None), ""
    if dense:
        refuse_unclear(recipe.guard, job.metric_name, metric, untrained=job.untrained)
    else:
        whole = first_metric if job.train is None else None
        refuse_unclear(recipe.guard, job.metric_name, metric, whole=whole)
    if dense:
        verdict = "dense"
    elif metric is None or recipe.guard is None:
        verdict = "not judged" if metric is None else "accepted"
    else:
        verdict = "accepted" if accepts(recipe.guard, metric, against) else "rejected"
    weighed = weigh(job, at, items, against)
    if verdict == "accepted" and recipe.guard is not None and weighed and against is not None:
        why = objection(recipe.guard, allowed_drop(recipe.guard, against), weighed)
        verdict = "rejected" if why else verdict
    sums = l1_sums(engine.model)
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
        l1=engine.l1(sums),
        densities=engine.densities,
        cost=job.cost(sums),
        seconds=limit.seconds - at.round_began,
        latency={}
        if verdict == "rejected"
        else on_rank_zero(lambda: round_latency(job, first_latency)),
        evidence=weighed,
    )
    at.rounds.append(made)
    if recipe.keep == "front" and verdict != "rejected":
        keep_front(job, at)  # before removed weights may come back
    for text in job.cost_notes(made.cost) if dense else ():
        job.note(text)
    if not dense and baseline(recipe.guard, at.rounds, trained=trains) != against == first_metric:
        job.note(NOT_TRAINED.format(job.metric_name, against, metric, made.index))
    if trained is not None and verdict != "rejected":
        engine.load(trained)
    if revives(engine, "after") and verdict == "accepted" and at.progress < 1:
        restore(job, at)
    at.phase = "next"
    if why:
        job.note(f"round {made.index} is rejected: {why}")
    if items is not None and verdict != "rejected":
        remember(job, at, items)
    adapts = recipe.target is not None and recipe.target.adapt
    if verdict == "rejected":
        before = kept_of(engine)
        _roll_back(job, at)
        if adapts:
            hold_back(job, at, before)
    elif job.trial is not None:
        job.trial.accepted = engine.state_dict()
    elif job.keeps:
        at.accepted = job.journal.store("accepted", model_state(job, at))
        if dense and (job.again or job.teacher or recipe.controls):
            at.blobs["dense"] = at.accepted
    if adapts and verdict == "accepted":
        let_go(job, at)
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


def _roll_back(job: RunContext, at: RunState) -> None:
    if job.trial is not None:
        job.engine.load_state_dict(job.trial.accepted)
        job.trial.apply(job.engine.masks)
    else:
        assert at.accepted is not None
        put_back(job, at, job.journal.fetch(at.accepted))
    job.journal.write("rollback", to=last_accepted(at.rounds).index)


def final_masks(job: RunContext, at: RunState) -> Masks:
    """Return to the last accepted round, removed weights exactly zero."""
    if job.trial is None:
        assert at.accepted is not None
        put_back(job, at, job.journal.fetch(at.accepted))
    apply(job.model, job.engine.masks)
    return dict(job.engine.masks)
