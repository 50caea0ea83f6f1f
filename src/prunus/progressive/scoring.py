"""What a model scores, and what is remembered of it from round to round."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common import rng as randomness
from prunus._common.distributed import gather, world_size
from prunus._common.distributed import number as over_ranks
from prunus._common.loaders import keeping_generators, seed_generators
from prunus._common.metrics import Metric, MetricEstimate, Value, number
from prunus._common.modules import evaluating
from prunus._common.scores import Scores
from prunus._common.traces import without_trace
from prunus.errors import InputError, RunError
from prunus.progressive.guard import allowed_drop
from prunus.progressive.state import RunContext, RunState
from prunus.progressive.verdict import asks_for_items, evidence, refuse_unproven
from prunus.pruning.masks import put_back as put_tensors
from prunus.recipe.fields import Guard


def score(evaluate: Metric | None, model: nn.Module, name: str) -> float | None:
    """A metric as one number, the mean of the ranks'.

    Raises:
        InputError: if what comes back is no number.
        RunError: if it is not finite.
    """
    return mean_of(scored(evaluate, model, name), name)


def given_score(guard: Guard | None, evaluate: Metric | None, model: nn.Module) -> float | None:
    """What the model scores as it is given, before work starts.

    Raises:
        InputError: if the guard could never judge by it.
    """
    found = scored(evaluate, model, "evaluate", by_item=asks_for_items(guard))
    metric = mean_of(found, "evaluate")
    if guard is not None and metric is not None:
        items = found if isinstance(found, Scores) else None
        # Of a trained model's metric, which is not known yet, a relative drop may be all of it.
        allowed = guard.max_drop if guard.relative else allowed_drop(guard, metric)
        refuse_unproven(guard, items, allowed)
    return metric


def scored(
    evaluate: Metric | None, model: nn.Module, name: str, *, by_item: bool = False
) -> Value | None:
    """What evaluates: a number or a tensor of this rank, or the items of all ranks.

    Args:
        evaluate: ``None`` gives nothing.
        model: is as it was afterwards.
        name: of what evaluates, for messages.
        by_item: whether a tensor of values counts as :class:`prunus.Scores`.
    """
    own = None if evaluate is None else values(evaluate, model, name)
    if evaluate is not None and own is None:
        number(own, name)  # which says what to return
    own = (Scores.of(own) or own) if by_item else own
    if world_size() == 1:
        return own
    mine = own if isinstance(own, Scores) else None
    every = gather(None if mine is None else mine.to_dict())  # a figure may be no thing to send
    if None in every:
        if any(part is not None for part in every):
            raise InputError(f"{name} returned Scores on some ranks and something else on others")
        return own
    assert mine is not None
    return Scores.joined([mine.again(part) for part in every if part is not None])


def mean_of(found: Value | None, name: str) -> float | None:
    """The same as one number."""
    metric = over_ranks(None if found is None else number(found, name), name)
    if metric is not None and not math.isfinite(metric):
        raise RunError(f"{name} returned {metric}: the metric must be finite")
    return metric


def weigh(
    job: RunContext, at: RunState, items: Scores | None, against: float | None
) -> dict[str, Any]:
    """What the items say beside those of the model that a round is judged against."""
    guard = job.engine.recipe.guard
    if not at.rounds or "items" not in at.blobs:
        return {}
    if items is None:
        refuse_unproven(guard, None, 0.0)
        return {}
    kept = job.journal.fetch(at.blobs["items"])
    dense = against == at.rounds[0].metric
    return evidence(items.again(kept["dense" if dense else "best"]), items, guard)


def remember(job: RunContext, at: RunState, items: Scores) -> None:
    """The items of round 0, and of the best round that was accepted."""
    known = len(at.rounds) > 1
    if known and "items" not in at.blobs:  # the run began when evaluate returned a number
        return
    first = job.journal.fetch(at.blobs["items"]) if known else {}
    kept = first or {"dense": items.to_dict(), "best": items.to_dict()}
    guard = job.engine.recipe.guard
    sign = -1 if guard is not None and guard.better == "lower" else 1
    if first and sign * items.mean <= sign * items.again(kept["best"]).mean:
        return
    at.blobs["items"] = job.journal.store("items", {**kept, "best": items.to_dict()})


def values(evaluate: Metric, model: nn.Module, name: str) -> Value:
    """What evaluates, with the model in eval mode and no trace left in it.

    Raises:
        InputError: if weights have other values afterwards.
    """
    with (
        without_trace(model, name),
        evaluating(model),
        torch.no_grad(),
        randomness.preserve_rng(),
        keeping_generators(evaluate),
    ):
        seed_generators(evaluate, 0)  # wherever a training that shares them has led
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
    if not isinstance(found, Tensor | Scores) or job.again is None or "dense" not in at.blobs:
        return MetricEstimate.of(found)
    dense = job.again()
    put_tensors(dense, job.journal.fetch(at.blobs["dense"])["tensors"])
    return MetricEstimate.of(found, values(test, dense, "test"))
