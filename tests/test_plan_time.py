"""The plan's time is within a factor of 1.5 of the run's, by a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus.progressive.engine as engines
import prunus.progressive.journal as journals
from helpers import tiny_task
from prunus._common.given import length_of
from prunus.cli import dry_run as plans
from prunus.progressive.prune import prune
from prunus.recipe.schema import Recipe
from prunus.tasks.base import Task, accuracy, classification_loss


class Clock:
    """Seconds that pass only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def slow(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slowed(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return slowed


def clocked(clock: Clock, **costs: float) -> Task:
    """A task whose losses, evaluations and calibration take time; a wide model takes more."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        width = next(model.parameters()).shape[0] / 16
        clock.now += costs.get("step", 1.0) * width if model.training else costs.get("signal", 0)
        return classification_loss(model, batch)

    def metric(model: nn.Module, batches: Any) -> Any:
        clock.now += costs.get("evaluation", 3.0) * (length_of(batches) or 1)
        return accuracy(model, batches)

    return tiny_task(loss=loss, metric=metric)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(journals, "freeze", made.slow(journals.freeze, 0.6))
    monkeypatch.setattr(engines, "shrink", made.slow(engines.shrink, 8.0))
    monkeypatch.setattr(engines, "build_space", made.slow(engines.build_space, 2.0))
    return made


ROUNDS: dict[str, Any] = {"task": "tiny", "dense": "4ep", "retrain": "3ep", "rounds": 4,
                          "target": 0.5}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "training": ({}, {}),
    "evaluations": ({"dense": "1ep", "retrain": "2it"}, {"evaluation": 40.0}),
    "rounds and signals": ({"rounds": 9, "retrain": "1it", "criterion": "sensitivity"},
                           {"signal": 9.0}),
    "no dense phase": ({"dense": 0, "rounds": 1}, {}),
    "snapshots": ({"snapshot": "1it", "retrain": "1ep"}, {"step": 0.1, "evaluation": 0.1}),
    "a smaller model each round": (
        {"structure": "channel", "compact": "every_round", "rounds": 3}, {"step": 4.0},
    ),
    "smaller at the end": ({"structure": "channel", "compact": "end", "dense": "1ep",
                            "retrain": "1ep"}, {}),
    "gradual": ({"rounds": None, "retrain": "6ep", "schedule": "cubic"}, {}),
    "gradual, with signals": (
        {"rounds": None, "retrain": "20ep", "schedule": "cubic", "criterion": "sensitivity"},
        {"signal": 5.0},
    ),
    "rewinding": ({"restore": {"name": "rewind", "k": "20it"}}, {}),
    "a longer end": ({"last_retrain": "30ep"}, {}),
    "a limit": ({"limit": "50it"}, {}),
    "learning from training": ({"criterion": "fisher_running", "rounds": 2}, {}),
}  # fmt: skip


def recipe_of(changes: dict[str, Any]) -> Recipe:
    values = {k: v for k, v in {**ROUNDS, **changes}.items() if v is not None}
    return Recipe.load({**values, "task": "digits"})


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_within_a_factor_of_one_and_a_half_of_the_run(
    kind: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    changes, costs = KINDS[kind]
    recipe, task = recipe_of(changes), clocked(clock, **costs)
    monkeypatch.setattr(plans, "task_of", lambda recipe: task)
    plan = plans.dry_run(recipe, clock)
    began = clock.now
    torch.manual_seed(0)
    prune(task, recipe, folder=tmp_path / "run", progress=False)
    taken = clock.now - began
    assert plan.seconds is not None, plan.notes
    assert taken / 1.5 < plan.seconds < taken * 1.5


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"target": {"step": 0.3}, "guard": {"max_drop": 0.5}}, "the guard decides how many"),
        ({"structure": "channel", "target": {"max_latency_ms": 0.5}, "compact": "end",
          "deploy": "onnxruntime"},
         "max_latency_ms is measured"),
        ({"deploy": "eager"}, "artifacts are built and timed"),
        ({"controls": ["dense_longer"]}, "controls are trained"),
    ],
)  # fmt: skip
def test_where_there_is_no_estimate_the_plan_says_so_and_why(
    changes: dict[str, Any], why: str, clock: Clock, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(plans, "task_of", lambda recipe: clocked(clock))
    plan = plans.dry_run(recipe_of(changes), clock)
    assert plan.seconds is None
    assert any(why in note and "the rest takes about" in note for note in plan.notes)
    plans.print_plan(plan, as_json=False)
    assert "time          not estimated (see the note)" in capsys.readouterr().out


def test_a_guard_that_may_reject_rounds_is_named_with_what_each_adds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "task_of", lambda recipe: clocked(clock))
    plan = plans.dry_run(recipe_of({"guard": {"max_drop": 0.01}}), clock)
    (note,) = [n for n in plan.notes if n.startswith("time:")]
    assert "if the guard accepts every round; each that it rejects adds 3" in note


def test_a_short_run_that_fails_leaves_the_rest_of_the_plan(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(model: nn.Module, batch: Any) -> Tensor:
        return classification_loss(model, batch) * float("nan")

    monkeypatch.setattr(plans, "task_of", lambda recipe: tiny_task(loss=nan))
    plan = plans.dry_run(recipe_of({}), clock)
    assert plan.seconds is None
    assert any("no estimate: a short run failed: the loss became nan" in n for n in plan.notes)
    assert plan.steps["whole"] == 4 * 8 + 4 * 3 * 8
