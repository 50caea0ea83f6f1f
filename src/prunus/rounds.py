"""The loop, visible as a whole: prune, restore, retrain, judge, go on or roll back."""

from __future__ import annotations

from prunus.cutting import cut, revives
from prunus.errors import Interrupted
from prunus.guard import next_progress
from prunus.judging import judge
from prunus.position import Job, Position, save
from prunus.run import Limit
from prunus.training import train


def all_rounds(job: Job, at: Position) -> Position:
    """Run a job from a position to its end."""
    limit = Limit(job.pruner.recipe.limit, at.seconds)
    while at.phase != "end":
        if at.phase == "dense":
            train(job, at, limit, enforced=True)
            judge(job, at, limit)
            at.phase = "next"
        if at.phase == "next":
            _choose_next(job, at, limit)
            save(job, at, limit)
            if job.stop() and at.phase != "end":
                raise Interrupted("stopped")
        if at.phase == "revived":  # removed weights, back since the last round, train first
            train(job, at, limit, enforced=False)
            at.phase = "cut"
        if at.phase == "cut":
            enforced = cut(job, at)
            at.phase = "train" if enforced else "free"
        if at.phase in ("train", "free"):
            train(job, at, limit, enforced=at.phase == "train")
            judge(job, at, limit)
            at.phase = "next"
    return at


def _choose_next(job: Job, at: Position, limit: Limit) -> None:
    pruner = job.pruner
    at.round_began = limit.seconds
    progress, at.why = next_progress(at.rounds, pruner.recipe, pruner.asks)
    if progress is not None and limit.reached(at.step, at.per_epoch):
        progress, at.why = None, f"the limit of {limit.text} is reached"
    if progress is None:
        at.phase = "end"
        return
    at.progress, at.asked = progress, pruner.asks(progress)
    revived = revives(pruner, "after") and at.index > 1 and job.train is not None
    at.phase = "revived" if revived else "cut"
    job.watch({"event": "round", "round": at.index, "asked": at.asked})
