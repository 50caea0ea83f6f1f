"""How long a run will take: pieces of a short one, timed, and how often each of them comes."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from prunus._common.given import length_of
from prunus._common.scores import Scores
from prunus.errors import PrunusError
from prunus.progressive.builtin import trainer
from prunus.progressive.gradual import Gradual
from prunus.progressive.prune import prune
from prunus.progressive.scoring import values
from prunus.recipe import duration
from prunus.recipe.schema import Recipe
from prunus.tasks.base import Task

STEPS = 12
"""Optimizer steps of each phase of the short run; a snapshot is written in the middle."""
Clock = Callable[[], float]


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        seconds: of all of it, or ``None``: no estimate.
        notes: what it leaves out, or why there is none.
    """

    seconds: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pieces:
    """Seconds of the parts of a run."""

    begin: float
    """Up to the first step."""
    dense: float
    """A step of the dense model."""
    step: float
    """A step of the pruned model."""
    cut: float
    """From one round's judgment to the next one's first step."""
    mid_cut: float
    """What a step takes more that cuts, where a schedule runs inside the training."""
    save: float
    """A snapshot between two steps."""
    judge: float
    """The end of a round, without evaluations."""
    finish: float
    """All behind the last round."""


def estimate(recipe: Recipe, task: Task, asked: Sequence[float], clock: Clock) -> Estimate:
    """Of a recipe for a task, from two trainings of a few steps, a cut and an evaluation.

    Args:
        recipe: that is to run.
        task: of it.
        asked: the sparsity of each round.
        clock: seconds since some point.
    """
    try:
        pieces = _timed(recipe, task, asked, clock)
        judging, closing = _evaluations(task, clock)
    except PrunusError as error:
        return Estimate(None, (f"time: no estimate: a short run failed: {error}",))
    seconds = _sum(recipe, task, asked, pieces) + judging * (1 + len(asked)) + closing
    text = f"about {readable(seconds)}"
    if (why := _unknown(recipe)) is not None:
        return Estimate(None, (f"time: no estimate, since {why}; the rest takes {text}",))
    if recipe.guard is None:
        return Estimate(seconds)
    again = pieces.cut + pieces.judge + judging + pieces.step * lengths(recipe, task)[1]
    return Estimate(
        seconds,
        (f"time: if the guard accepts every round; each that it rejects adds {readable(again)}",),
    )


def readable(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> readable(0.4), readable(12.3), readable(600), readable(7200)
    ('0.4 s', '12 s', '10 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 2 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _unknown(recipe: Recipe) -> str | None:
    """What of a run takes a time that a short one does not tell."""
    if recipe.until_guard:
        return "the guard decides how many rounds there are"
    if recipe.target is not None and recipe.target.latency is not None:
        return "max_latency_ms is measured again and again"
    if recipe.deploy is not None or recipe.quantize != "none":
        return "artifacts are built and timed at its end"
    return "controls are trained beside it" if recipe.controls else None


def _timed(recipe: Recipe, task: Task, asked: Sequence[float], clock: Clock) -> _Pieces:
    """A run of one round and a few steps, without judgment."""
    seen: dict[str, list[float]] = {"step 0": [], "step 1": [], "round": [], "judged": []}

    def watch(event: Mapping[str, Any]) -> None:
        name = event["event"]
        key = f"step {min(event['round'], 1)}" if name == "step" else name
        if key in seen:
            seen[key].append(clock())

    short = _short(recipe, task, asked)
    began = clock()
    with tempfile.TemporaryDirectory(prefix="prunus-") as folder:
        prune(
            task.model(), short, train=trainer(task), calibration=task.calibration, loss=task.loss,
            example=task.example, folder=folder, on_event=watch,
        )  # fmt: skip
    ended = clock()
    dense, masked = seen["step 0"], seen["step 1"]
    first = _one(dense[1:]) if dense else 0.0
    half = len(masked) // 2
    cutting, plain = (masked[:half], masked[half:]) if not recipe.in_rounds else ([], masked)
    step = _one(plain)
    middle = [b - a for steps in (dense, masked) for a, b in pairwise(steps)]
    return _Pieces(
        begin=max(0.0, dense[0] - began - first) if dense else seen["judged"][0] - began,
        dense=first,
        step=step,
        cut=max(0.0, masked[0] - seen["round"][0] - step),
        mid_cut=max(0.0, _one(cutting) - step),
        save=_saves(dense or masked, middle),
        judge=seen["judged"][-1] - masked[-1],
        finish=ended - seen["judged"][-1],
    )


def _one(moments: Sequence[float]) -> float:
    """The seconds of a step."""
    found = [b - a for a, b in pairwise(moments)]
    return statistics.median(found) if found else 0.0


def _saves(moments: Sequence[float], every: Sequence[float]) -> float:
    """What the step behind the snapshot took longer than others."""
    at = len(moments) // 2
    if len(moments) < 4:
        return 0.0
    return max(0.0, moments[at] - moments[at - 1] - statistics.median(every))


def _short(recipe: Recipe, task: Task, asked: Sequence[float]) -> Recipe:
    """The recipe with one round of a few steps, and nothing that decides or comes after."""
    full = lengths(recipe, task)
    dense, retrain, _ = (f"{min(STEPS, n)}it" for n in full)
    dropped = ("guard", "deploy", "quantize", "controls", "limit", "last_retrain", "snapshot")
    plain = {k: v for k, v in recipe.to_dict().items() if k not in dropped}
    plain |= {"retrain": retrain, "snapshot": f"{STEPS // 2}it"}
    plain["dense"] = {**dict(recipe.dense), "length": dense}
    if recipe.in_rounds:
        plain["rounds"] = 1
    else:
        half = f"{max(1, min(STEPS, full[1]) // 2)}it"
        written = recipe.schedule.to_dict()
        own = written if isinstance(written, Mapping) else {"name": written}
        plain["schedule"] = {**own, "start": "0it", "end": half, "every": "1it"}
    if recipe.target is None or recipe.until_guard or recipe.target.latency is not None:
        plain["target"] = max(asked[-1], 1e-6)
    back: Any = recipe.trait("restore", "REWINDS_TO")
    if back is not None and duration.parse(back).value:
        plain["restore"] = {k: "1it" if v == back else v for k, v in dict(recipe.restore).items()}
    return recipe.replaced(plain)


def lengths(recipe: Recipe, task: Task) -> tuple[int, int, int]:
    """Optimizer steps of dense, of a round, and of the last one."""
    per_epoch = length_of(task.train)
    dense, retrain, last = (
        duration.parse(d).steps(per_epoch=per_epoch, whole=0)
        for d in (recipe.dense.length, recipe.retrain, recipe.last_retrain or recipe.retrain)
    )
    return dense, retrain, last


def _evaluations(task: Task, clock: Clock) -> tuple[float, float]:
    """Seconds of the evaluations of a round, and of those at both ends."""
    model: nn.Module = task.model()
    began = clock()
    found = values(lambda m: task.metric(m, task.validation), model, "metric")
    once = clock() - began
    sample, batches = 0.0, task.train_sample
    if batches is not None:
        began = clock()
        values(lambda m: task.metric(m, batches), model, "metric")
        sample = clock() - began
    lengths = length_of(task.test) if task.test is not None else 0, length_of(task.validation)
    share = lengths[0] / lengths[1] if lengths[0] is not None and lengths[1] else 1.0
    tests = 2 if isinstance(found, Tensor | Scores) else 1  # by items the dense model as well
    return once + sample, once + share * once * tests


def _sum(recipe: Recipe, task: Task, asked: Sequence[float], of: _Pieces) -> float:
    dense, retrain, last = lengths(recipe, task)
    rounds = [retrain] * (len(asked) - 1) + [last if recipe.in_rounds else retrain]
    per_epoch = length_of(task.train)
    limit = None if recipe.limit is None else duration.parse(recipe.limit)
    most = None if limit is None or limit.unit == "min" else limit.steps(per_epoch=per_epoch)
    every = max(1, duration.parse(recipe.snapshot).steps(per_epoch=per_epoch or 1))
    shrinks = recipe.compact == "every_round"

    def trained(steps: int, of_one: float) -> float:
        return steps * of_one + max(0, steps - 1) // every * of.save

    taken = dense if most is None else min(dense, most)
    seconds = of.begin + trained(taken, of.dense) + of.judge + of.finish
    for number, steps in enumerate(rounds):
        if most is not None and taken >= most:
            break
        steps = steps if most is None else min(steps, most - taken)
        part = asked[number] / asked[-1] if shrinks and asked[-1] else 1.0
        one = of.dense + (of.step - of.dense) * part if of.dense else of.step
        seconds += of.cut + trained(steps, one) + of.judge
        taken += steps
    if not recipe.in_rounds:
        cuts = Gradual.over(retrain, recipe.schedule, per_epoch)
        seconds += of.mid_cut * ((cuts.last - cuts.first) // cuts.every + 1)
    return seconds if limit is None or limit.unit != "min" else min(seconds, limit.value * 60)
