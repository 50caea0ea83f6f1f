"""What a recipe would do: counts, reach, steps and estimated time, without training."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import click
import torch

from prunus import costs
from prunus._common import rng as randomness
from prunus._common.numbers import count, metric
from prunus._common.tables import Table
from prunus.cli.shared import show
from prunus.errors import InputError
from prunus.progressive.engine import PruningEngine
from prunus.progressive.judge import score
from prunus.progressive.result import counted
from prunus.pruning.decide import Cost
from prunus.recipe import duration
from prunus.recipe.fields import Spec
from prunus.recipe.schema import Recipe
from prunus.tasks.base import Task
from prunus.tasks.find import task_of

TIMED_STEPS = 10
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
        seconds: estimated, from a few measured steps.
        cost: of the dense model.
        notes: what the reader should know.
        counted: what asked and reachable are parts of.
        why_dense: why layers stay dense.
    """

    recipe: Recipe
    counts: dict[str, tuple[int, int]]
    dense: list[str]
    reachable: float
    asked: list[float]
    steps: dict[str, int]
    seconds: float
    cost: dict[str, float | None]
    notes: list[str]
    counted: str = "sparsity"
    why_dense: str = "the structure does not fit its shape"


def dry_run(recipe: Recipe) -> Plan:
    """Build the task's model, choose once, time a few steps on a copy.

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
        counts = engine.counts(asked[-1])
        grouped = {m.name for g in engine.space.groups for m in g.members}
        steps = _steps(recipe, task, len(asked))
        seconds = _seconds(task, model, steps["whole"], 1 + len(asked))
    return Plan(
        recipe=recipe,
        counts=counts,
        dense=[la.name for la in engine.space.layers if la.name not in grouped],
        reachable=_reachable(engine),
        asked=asked,
        steps=steps,
        seconds=seconds,
        cost=dict(costs.measure(model, task.example)),
        notes=notes,
        counted=counted(engine.counts_in),
        **(
            {} if engine.space.analysis is None else {"why_dense": "prunus units says what pins it"}
        ),
    )


def _reachable(engine: PruningEngine) -> float:
    least = {g: 0 if g.may_empty or g.balanced else g.least for g in engine.space.groups}
    return (engine.space.cost_model or Cost(engine.space.groups))({**least})


def _asked(recipe: Recipe, engine: PruningEngine) -> list[float]:
    if recipe.until_guard:
        assert recipe.target is not None
        asked, step, most = [engine.start], recipe.target.step, _reachable(engine)
        while len(asked) <= (recipe.rounds or FORESEEN) and asked[-1] < most:
            asked.append(min(asked[-1] + step * (1 - asked[-1]), most))
        return asked[1:]
    if not recipe.in_rounds:
        return [engine.scheduled(1.0)]
    rounds = recipe.rounds or 1
    return [engine.scheduled((i + 1) / rounds) for i in range(rounds)]


def _steps(recipe: Recipe, task: Task, rounds: int) -> dict[str, int]:
    per_epoch = len(task.train) if isinstance(task.train, Sized) else None
    dense, retrain, last = (
        duration.parse(d).steps(per_epoch=per_epoch, whole=0)
        for d in (recipe.dense.length, recipe.retrain, recipe.last_retrain or recipe.retrain)
    )
    if not recipe.in_rounds:
        return {"dense": dense, "retraining": retrain, "whole": dense + retrain}
    ends = {} if recipe.last_retrain is None else {"last round": last}
    whole = dense + (rounds - 1) * retrain + last
    return {"dense": dense, "each round": retrain, **ends, "whole": whole}


def _seconds(task: Task, model: torch.nn.Module, steps: int, judged: int) -> float:
    twin = copy.deepcopy(model).train()
    optimizer = task.optimizer(twin.parameters())
    times: list[float] = []
    for batch in task.train:
        began = time.perf_counter()
        optimizer.zero_grad()
        task.loss(twin, batch).backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
        if len(times) > TIMED_STEPS:
            break
    began = time.perf_counter()
    score(lambda m: task.metric(m, task.validation), model, "metric")
    judging = time.perf_counter() - began
    return statistics.median(times) * steps + judging * judged


def print_plan(plan: Plan, *, as_json: bool) -> None:
    """Show it, as text or as one JSON object."""
    if as_json:
        values: dict[str, Any] = {**vars(plan), "recipe": plan.recipe.to_dict()}
        click.echo(json.dumps(values))
        return
    whole = sum(total for _, total in plan.counts.values())
    left = sum(kept for kept, _ in plan.counts.values())
    counts = {**plan.counts, "all in scope": (left, whole)}
    rows = [(n, count(kept), count(of), metric(kept / of)) for n, (kept, of) in counts.items()]
    show(Table(("group", "kept", "of", "density"), rows))
    click.echo()
    for name in plan.dense:
        click.echo(f"stays dense   {name} ({plan.why_dense})")
    click.echo(f"reachable     {plan.counted}: at most {plan.reachable:.6g}")
    click.echo(f"requested     {', '.join(f'{s:.4g}' for s in plan.asked)}")
    click.echo("steps         " + ", ".join(f"{k} {v:,}" for k, v in plan.steps.items()))
    click.echo(f"time          about {_human(plan.seconds)} (estimated from {TIMED_STEPS} steps)")
    for note in plan.notes:
        click.echo(f"note          {note}")


def _human(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
