"""Control arms: what the same budget of training gives without this pruning.

Source: Liu et al. 2018 (arXiv:1810.05270) on training the small shape from scratch; Gale et al.
2019 (arXiv:1902.09574) on random choice; arXiv:2606.14150 on doing both on one budget.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunus._common import rng as randomness
from prunus._common.metrics import Metric, MetricEstimate, number
from prunus._common.scores import Scores
from prunus.errors import InputError
from prunus.progressive.cut import fresh_values
from prunus.progressive.engine import PruningEngine
from prunus.progressive.folder import open_journal
from prunus.progressive.judge import final_masks, judge
from prunus.progressive.loop import all_rounds
from prunus.progressive.phase import Budget
from prunus.progressive.result import last_accepted
from prunus.progressive.scoring import scored
from prunus.progressive.state import RunContext, RunState, begin, save
from prunus.progressive.train import takes_run, train
from prunus.pruning.masks import apply, put_back
from prunus.recipe import duration
from prunus.recipe.fields import Target
from prunus.recipe.schema import Recipe
from prunus.types import Masks

FOLDER = "controls"
"""Where the arms' runs lie in a run's folder."""


@dataclass(frozen=True)
class Control:
    """An arm beside the pruned model.

    Attributes:
        name: ``dense_longer``, ``same_shape_from_scratch`` or ``random_choice``.
        steps: optimizer steps that it took.
        metric: on test data where there are some, else on validation data.
        pruned: the pruned model's, on the same.
        change: pruned minus control, item by item: mean, low and high with 95 % confidence;
            ``None`` where the metric is one number.
    """

    name: str
    steps: int
    metric: float
    pruned: float
    change: tuple[float, float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Control:
        """From what :meth:`to_dict` gave."""
        change = plain["change"]
        return cls(**{**plain, "change": None if change is None else tuple(change)})

    def __str__(self) -> str:
        found = self.change or (self.pruned - self.metric,)
        spread = "" if len(found) < 3 else f" ({found[1]:+.4f} to {found[2]:+.4f})"
        name = self.name.replace("_", " ")
        return f"{name}: {self.metric:.4f} after {self.steps} steps; pruned {found[0]:+.4f}{spread}"


def refuse_controls(engine: PruningEngine, training: Callable[..., Any] | None) -> None:
    """Arms that could not be trained, before work starts.

    Raises:
        InputError: with the reason.
    """
    recipe = engine.recipe
    if not recipe.controls:
        return
    if training is None or not takes_run(training):
        raise InputError(
            "controls train other models on the same budget: pass train(model, run), which calls "
            "run.attach(optimizer) and iterates over run.batches(loader)"
        )
    if (
        "same_shape_from_scratch" in recipe.controls
        and duration.parse(recipe.dense.length).value == 0
    ):
        fresh_values(engine.model, recipe.seed, 0, why="controls: same_shape_from_scratch")


def trained_controls(
    job: RunContext, at: RunState, masks: Masks, test: Metric | None
) -> tuple[Control, ...]:
    """Train every arm that the recipe asks for, and set it beside the pruned model.

    Each arm is a run of its own in the folder ``controls`` of the run: what is finished is not
    repeated, and a killed one goes on.

    Args:
        job: of the run, its model final.
        at: the end of the run.
        masks: of the model as it was given.
        test: by which models are compared; by default what the run was judged by.
    """
    judged, name = (job.evaluate, "evaluate") if test is None else (test, "test")
    found: list[Control] = []
    pruned = scored(judged, job.model, name, by_item=True)
    for index, arm in enumerate(job.engine.recipe.controls):
        job.note(f"control {arm.replace('_', ' ')}: training")
        with randomness.preserve_rng():
            randomness.seed(job.engine.recipe.seed, 13, index)
            model, steps = _ARMS[arm](job, at, masks)
        found.append(_control(arm, steps, scored(judged, model, name, by_item=True), pruned))
        job.note(f"control {found[-1]}")
    return tuple(found)


def controls_of(
    job: RunContext, at: RunState, shape: Masks, test: Metric | None
) -> tuple[Control, ...]:
    """The arms beside the result: those of a finished run are read."""
    if not job.engine.recipe.controls:
        return ()
    done = [e for e in job.journal.events if e["event"] == "controls"]
    if done:
        return tuple(Control.from_dict(plain) for plain in done[-1]["arms"])
    made = trained_controls(job, at, shape, test)
    job.journal.write("controls", arms=[arm.to_dict() for arm in made])
    return made


def _control(name: str, steps: int, control: Any, pruned: Any) -> Control:
    change = None
    if isinstance(control, Scores) and isinstance(pruned, Scores):
        change = MetricEstimate.of(pruned, control).change
    values = number(control, name), number(pruned, name)
    return Control(name, steps, *values, change)


def worth(controls: Sequence[Control], better: str) -> str:
    """What pruning was worth, in a sentence; empty without the arm that says so.

    >>> worth([Control("same_shape_from_scratch", 9, 0.90, 0.92, (0.02, 0.01, 0.03))], "higher")
    'pruning was worth +2 points (+1 to +3) over training this shape directly'
    >>> worth([Control("same_shape_from_scratch", 9, 0.92, 0.90, (-0.02, -0.03, -0.01))], "higher")
    'train the small one: this shape trained directly is better by 2 points (1 to 3)'
    """
    arm = next((c for c in controls if c.name == "same_shape_from_scratch"), None)
    if arm is None:
        return ""
    sign = -1.0 if better == "lower" else 1.0
    share = 0 <= arm.metric <= 1 and 0 <= arm.pruned <= 1
    scale, unit = (100.0, " points") if share else (1.0, "")
    mean, *ends = (sign * scale * x for x in arm.change or (arm.pruned - arm.metric,))
    low, high = (min(ends), max(ends)) if ends else (mean, mean)
    spread = f" ({low:+.3g} to {high:+.3g})" if ends else ""
    if high < 0:
        spread = f" ({-high:.3g} to {-low:.3g})" if ends else ""
        lost = f"{-mean:.3g}{unit}{spread}"
        return f"train the small one: this shape trained directly is better by {lost}"
    chance = "" if low > 0 else ", which chance may explain"
    return f"pruning was worth {mean:+.3g}{unit}{spread} over training this shape directly{chance}"


def _dense_longer(job: RunContext, at: RunState, masks: Masks) -> tuple[nn.Module, int]:
    """The dense model of round 0, trained on for as long as the pruned one was."""
    model, steps = _dense(job, at), at.step - at.rounds[0].step
    plain = {"structure": "weight", "scope": job.engine.recipe.scope.model_dump()}
    return _trained(job, model, {}, "dense_longer", steps, plain), steps


def _same_shape(job: RunContext, at: RunState, masks: Masks) -> tuple[nn.Module, int]:
    """What is left, from the values that the dense model started with, on the whole budget."""
    recipe = job.engine.recipe
    model = copy.deepcopy(_given(job))
    values = fresh_values(model, recipe.seed, 0) if recipe.dense.length == 0 else None
    put_back(model, values or job.journal.fetch(at.blobs["start"])["tensors"])
    units = ("structure", "scope", "allocation")
    shape = {k: v for k, v in recipe.to_dict().items() if k in units}
    if recipe.trait("structure", "N_OF_M") is not None:
        shape["target"] = None
    name = "same_shape_from_scratch"
    return _trained(job, model, masks, name, at.step, shape), at.step


def _random_choice(job: RunContext, at: RunState, masks: Masks) -> tuple[nn.Module, int]:
    """The same run from round 0 on, with units and weights drawn by lot."""
    recipe = job.engine.recipe
    values = {k: v for k, v in recipe.to_dict().items() if k not in _NOT_OF_ARMS}
    rounds = max(1, sum(r.accepted for r in at.rounds) - 1) if recipe.until_guard else recipe.rounds
    values |= {"criterion": "random", "dense": 0, "rounds": rounds}
    if recipe.trait("structure", "N_OF_M") is None:
        values["target"] = _reached(recipe.target, last_accepted(at.rounds).achieved)
    arm = _context(job, _dense(job, at), recipe.replaced(values))
    with open_journal(_place(job, "random_choice"), arm.engine) as journal:
        arm = dataclasses.replace(arm, journal=journal)
        its = begin(arm)
        all_rounds(arm, its)
        final_masks(arm, its)
    return arm.model, its.step


def _reached(target: Target | None, achieved: float) -> dict[str, Any]:
    """The target that asks for what was achieved."""
    layers = {"layers": dict(target.layers)} if target is not None and target.layers else {}
    bound = None if target is None else target.bound
    if bound is None or achieved <= 0:  # all of a cost would be an absolute number
        return {"sparsity": max(achieved, 0.0), **layers}
    return {f"max_{bound[0]}": 1 - achieved, **layers}


_ARMS: dict[str, Callable[[RunContext, RunState, Masks], tuple[nn.Module, int]]] = {
    "dense_longer": _dense_longer,
    "same_shape_from_scratch": _same_shape,
    "random_choice": _random_choice,
}
_NOT_OF_ARMS = ("name", "guard", "deploy", "quantize", "limit", "controls", "teacher", "keep")


def _trained(
    job: RunContext, model: nn.Module, masks: Masks, name: str, steps: int, plain: dict[str, Any]
) -> nn.Module:
    """A model under masks, trained once for so many steps by the plan of the retraining."""
    recipe = job.engine.recipe
    rate = recipe.learning_rate
    if rate is None or recipe.trait("learning_rate", "NEEDS_DENSE"):
        rate = recipe.dense.learning_rate
    dense = {"length": f"{steps}it", "learning_rate": rate.model_dump()}
    values = {"target": 0.5, **plain, "seed": recipe.seed, "rounds": 1, "dense": dense}
    apply(model, masks)
    arm = _context(job, model, recipe.replaced(values))
    arm.engine.masks = dict(masks)
    with open_journal(_place(job, name), arm.engine) as journal:
        arm = dataclasses.replace(arm, journal=journal)
        at = begin(arm)
        limit = Budget(None, at.seconds)
        if at.phase == "dense":
            train(arm, at, limit, enforced=True)
            judge(arm, at, limit)
            at.phase = "end"
            save(arm, at, limit)
    return arm.model


def _context(job: RunContext, model: nn.Module, recipe: Recipe) -> RunContext:
    chosen = job.engine.selector
    engine = PruningEngine(
        model, recipe, calibration=chosen.calibration, loss=chosen.loss, example=job.example
    )
    return dataclasses.replace(
        job, engine=engine, dense=None, again=None, teacher=None, trial=None, untrained=None,
        on_event=lambda event: job.on_event(event) if event["event"] == "step" else None,
    )  # fmt: skip


def _given(job: RunContext) -> nn.Module:
    assert job.dense is not None, "kept for controls"
    return job.dense


def _dense(job: RunContext, at: RunState) -> nn.Module:
    """The model of round 0."""
    model = copy.deepcopy(_given(job))
    put_back(model, job.journal.fetch(at.blobs["dense"])["tensors"])
    return model


def _place(job: RunContext, name: str) -> Path | None:
    return None if job.journal.folder is None else job.journal.folder / FOLDER / name
