"""What a recipe would do: counts, reach, steps and estimated time, without training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from prunus import costs
from prunus._common import rng as randomness
from prunus._common.batch import find_batch
from prunus._common.inputs import arguments
from prunus._common.numbers import NONE, count, metric
from prunus._common.tables import Table
from prunus.cli.estimate import STEPS, Clock, estimate, lengths, readable
from prunus.cli.shared import show
from prunus.errors import InputError
from prunus.progressive.engine import PruningEngine
from prunus.progressive.result import counted
from prunus.progressive.selector import Sparsity
from prunus.pruning.decide import kept_units, kept_weights
from prunus.recipe.schema import Recipe
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task
from prunus.tasks.find import task_of

FORESEEN = 6
"""Rounds that are shown of a run that goes on until the guard says stop."""


@dataclass(frozen=True)
class Plan:
    """What ``prunus plan`` prints.

    Attributes:
        recipe: as it would run.
        counts: kept and all weights by group, at the target, for the weights as they are now.
        dense: layers in scope that the structure leaves dense.
        reachable: the highest sparsity that leaves a unit in every group.
        asked: the sparsity of each round, or of the end.
        steps: optimizer steps by phase.
        seconds: estimated from a short run; ``None``: no estimate, a note says why.
        cost: of the dense model.
        notes: what the reader should know.
        counted: what asked and reachable are parts of.
        why_dense: why layers stay dense.
        limits: smallest and largest sparsity by group, where the recipe has any.
    """

    recipe: Recipe
    counts: dict[str, tuple[int, int]]
    dense: list[str]
    reachable: float
    asked: list[float]
    steps: dict[str, int]
    seconds: float | None
    cost: dict[str, float | None]
    notes: list[str]
    counted: str = "sparsity"
    why_dense: str = "the structure does not fit its shape"
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def dry_run(recipe: Recipe, clock: Clock = time.perf_counter) -> Plan:
    """Build the task's model, choose once, time a short run of it.

    Args:
        recipe: that names a task.
        clock: seconds since some point.

    Raises:
        InputError: for everything that ``run`` would refuse before training.
    """
    if recipe.task is None:
        raise InputError("the recipe names no task: add task=digits, or task=my/task.py")
    notes = ["counts are for weights before training; training moves them between layers"]
    if recipe.target is not None and recipe.target.latency is not None:
        notes.append(
            "max_latency_ms: how much is removed is found by measuring when the run starts, so "
            "the counts and the requested sparsity do not apply here"
        )
    if recipe.until_guard:
        most = "" if recipe.rounds is None else f" (at most {recipe.rounds})"
        notes.append(f"target: guard: as many rounds as it accepts{most}; shown: all accepted")
    task = task_of(recipe)
    with randomness.preserve_rng():
        randomness.seed(recipe.seed)
        model = task.model()
        real = PruningEngine(model, recipe, calibration=task.calibration, loss=task.loss,
                      example=task.example)  # fmt: skip
        engine = real
        notes += real.space.notes
        if real.selector.reads_training:
            notes.append(f"{recipe.criterion.name} needs training; magnitude stands in for it here")
            stand_in = recipe.model_copy(update={"criterion": Spec(name="magnitude")})
            engine = PruningEngine(model, stand_in, example=task.example)
        asked = _asked(recipe, engine)
        counts = _counts(engine, asked[-1])
        grouped = {m.name for g in engine.space.groups for m in g.members}
        batch = find_batch(model, arguments(task.example)) if task.example is not None else None
        cost = dict(costs.measure(model, task.example, batch=batch))
        if batch is not None:
            notes += costs.notes(model, task.example, cost["macs"], batch)
        steps = _steps(recipe, task, len(asked))
        found = estimate(recipe, task, asked, clock)
    return Plan(
        recipe=recipe,
        counts=counts,
        dense=[la.name for la in engine.space.layers if la.name not in grouped],
        reachable=engine.space.reach(),
        asked=asked,
        steps=steps,
        seconds=found.seconds,
        cost=cost,
        notes=[*notes, *found.notes],
        counted=counted(engine.counts_in),
        limits={g.name: (c.least, c.most) for g, c in engine.space.caps.of.items()},
        **(
            {} if engine.space.analysis is None else {"why_dense": "prunus units says what pins it"}
        ),
    )


def _asked(recipe: Recipe, engine: PruningEngine) -> list[float]:
    if recipe.until_guard:
        assert recipe.target is not None
        asked, step, most = [engine.start], recipe.target.step, engine.space.reach()
        while len(asked) <= (recipe.rounds or FORESEEN) and asked[-1] < most:
            asked.append(min(asked[-1] + step * (1 - asked[-1]), most))
        return asked[1:]
    if not recipe.in_rounds:
        return [engine.scheduled(1.0)]
    rounds = recipe.rounds or 1
    return [engine.scheduled((i + 1) / rounds) for i in range(rounds)]


def _steps(recipe: Recipe, task: Task, rounds: int) -> dict[str, int]:
    dense, retrain, last = lengths(recipe, task)
    if not recipe.in_rounds:
        return {"dense": dense, "retraining": retrain, "whole": dense + retrain}
    ends = {} if recipe.last_retrain is None else {"last round": last}
    whole = dense + (rounds - 1) * retrain + last
    return {"dense": dense, "each round": retrain, **ends, "whole": whole}


def print_plan(plan: Plan, *, as_json: bool) -> None:
    """Show it, as text or as one JSON object."""
    if as_json:
        values: dict[str, Any] = {**vars(plan), "recipe": plan.recipe.to_dict()}
        click.echo(json.dumps(values))
        return
    whole = sum(total for _, total in plan.counts.values())
    left = sum(kept for kept, _ in plan.counts.values())
    counts = {**plan.counts, "all in scope": (left, whole)}
    rows = [
        (n, count(kept), count(of), metric(kept / of), *_limits(plan, n))
        for n, (kept, of) in counts.items()
    ]
    head = ("group", "kept", "of", "density", *(["limits"] if plan.limits else []))
    show(Table(head, rows))
    click.echo()
    for name in plan.dense:
        click.echo(f"stays dense   {name} ({plan.why_dense})")
    click.echo(f"reachable     {plan.counted}: at most {plan.reachable:.6g}")
    what = "" if plan.counted == "sparsity" else f"{plan.counted}: "
    click.echo(f"requested     {what}{', '.join(f'{s:.4g}' for s in plan.asked)}")
    click.echo("steps         " + ", ".join(f"{k} {v:,}" for k, v in plan.steps.items()))
    about = "not estimated (see the note)" if plan.seconds is None else (
        f"about {readable(plan.seconds)} (estimated from {2 * STEPS} steps)"
    )  # fmt: skip
    click.echo(f"time          {about}")
    for note in plan.notes:
        click.echo(f"note          {note}")


def _limits(plan: Plan, group: str) -> list[str]:
    """The sparsities between which a group ends, in a plan that has any."""
    if not plan.limits:
        return []
    return [limits_text(*plan.limits.get(group, (0.0, 1.0)))]


def limits_text(least: float, most: float) -> str:
    """Between which sparsities a group ends, for people.

    >>> limits_text(0.5, 0.5), limits_text(0, 0.3), limits_text(0.1, 0.3)
    ('sparsity 0.5', 'at most 0.3', 'at least 0.1, at most 0.3')
    """
    if least == most:
        return f"sparsity {most:g}"
    ends = [f"at least {least:g}"] * (least > 0) + [f"at most {most:g}"] * (most < 1)
    return ", ".join(ends) or NONE


def _counts(engine: PruningEngine, requested: float) -> dict[str, tuple[int, int]]:
    """Weights (of coupled groups: units) kept and all, by group, if so much were cut now."""
    goal, space, model = Sparsity(1.0, requested, engine.target), engine.space, engine.model
    masks, counts, _ = engine.selector.choose(
        model, space, engine.masks, goal, engine.running.tensors, known=engine.damage
    )
    if space.analysis is not None:
        return {g.name: (int(counts[g]), g.units) for g in space.groups}
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    alive = kept_units(space.groups, masks, shapes)
    return {g.name: (kept_weights(g, alive[g]), g.weights) for g in space.groups}
