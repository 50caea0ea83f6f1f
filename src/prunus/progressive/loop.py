"""The loop, visible as a whole: prune, restore, retrain, judge, go on or roll back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from prunus.errors import Interrupted
from prunus.progressive.cut import cut, revives
from prunus.progressive.dense_once import train_once
from prunus.progressive.ending import ended
from prunus.progressive.guard import next_progress
from prunus.progressive.judge import is_repeat, judge, reject_again
from prunus.progressive.phase import Budget
from prunus.progressive.state import RunContext, RunState, remember, save
from prunus.progressive.train import train


def all_rounds(job: RunContext, at: RunState) -> None:
    """Go on with a run from where it is to its end."""
    limit = Budget(job.engine.recipe.limit, at.seconds)
    job.engine.tell = partial(remember, job, at)
    for enforced in phases(job, at, limit):
        work = partial(train, job, at, limit, enforced=enforced)
        work() if at.phase != "dense" or job.dense_file is None else train_once(job, at, work)


def phases(job: RunContext, at: RunState, limit: Budget) -> Iterator[bool]:
    """All of a run but its training: yields where that is due, and whether masks are enforced."""
    while at.phase != "end":
        if at.phase == "dense":
            yield True
            judge(job, at, limit)
            at.phase = "next"
        if at.phase == "next":
            _choose_next(job, at, limit)
            save(job, at, limit)
            if job.should_stop() and at.phase != "end":
                raise Interrupted("stopped")
        if at.phase == "revived":  # removed weights, back since the last round, train first
            yield False
            at.phase = "cut"
        if at.phase == "cut":
            enforced = cut(job, at)
            if is_repeat(job, at):
                reject_again(job, at, limit)
                continue
            at.phase = "train" if enforced else "free"
        if at.phase in ("train", "free"):
            yield at.phase == "train"
            judge(job, at, limit)
            at.phase = "next"


def _choose_next(job: RunContext, at: RunState, limit: Budget) -> None:
    engine = job.engine
    at.round_began = limit.seconds
    progress, at.reason = next_progress(at.rounds, engine.recipe, engine.scheduled)
    early = job.train is not None and not engine.recipe.in_rounds and engine.gradual.goes_on
    if (progress is not None or early) and limit.reached(at.step, at.per_epoch):
        progress, at.reason = None, f"the limit of {limit.text} is reached"
    elif progress is None and early and at.rounds[-1].accepted:
        at.reason = f"the training ended after {engine.gradual.step} optimizer steps, too early"
    if progress is None:
        at.phase, at.reason = "end", ended(engine, at.reason, at.rounds)
        return
    at.progress, at.requested = progress, engine.scheduled(progress)
    revived = revives(engine, "after") and at.index > 1 and job.train is not None
    at.phase = "revived" if revived else "cut"
    job.on_event({"event": "round", "round": at.index, "asked": at.requested})
