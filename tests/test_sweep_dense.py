"""Trials with the same dense phase train it once, and end with the bits of runs that train it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from fresh import Pythons
from helpers import tiny_task
from prunus.progressive.prune import prune
from prunus.progressive.record import Record
from prunus.recipe.schema import Recipe
from prunus.sweep import Sweep, sweep
from prunus.tasks.base import Task
from test_sweep import _without_waiting_for_the_disk  # noqa: F401

BASE = {"dense": "2ep", "retrain": "1ep", "rounds": 2, "schedule": "linear", "target": 0.5}
STEPS = 16
"""Of the dense phase."""


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sweep", "summary"):
        monkeypatch.setattr(sys.modules[f"prunus.sweep.{module}"], "why_not", lambda: "slow")


def counting() -> tuple[Task, list[int]]:
    """A task with dropout, and the optimizer steps that its trainings took."""
    steps: list[int] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.2, momentum=0.9)
        made.register_step_post_hook(lambda *_: steps.append(1))
        return made

    return tiny_task(noise=0.2, optimizer=optimizer), steps


def alone(values: Mapping[str, Any], folder: str) -> tuple[bytes, list[float | None]]:
    result = prune(counting()[0], values, folder=folder, progress=False)
    return Path(folder, "model.safetensors").read_bytes(), [r.metric for r in result.rounds]


def assert_as_alone(done: Sweep, base: Mapping[str, Any]) -> None:
    for trial in done.trials:
        assert trial.state == "finished", trial.reason
        folder = done.folder / str(trial.name)
        recipe = Recipe.load(base, [f"{k}={v}" for k, v in trial.values.items()])
        weights, metrics = alone(recipe.to_dict(), f"alone-{trial.number}")
        assert (folder / "model.safetensors").read_bytes() == weights
        assert [r.metric for r in Record(folder).rounds] == metrics


SHARED: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "targets": ({}, {"target": [0.3, 0.6]}, STEPS + 32),
    "criteria": ({}, {"criterion": ["magnitude", "wanda"]}, STEPS + 2 * 16),
    "guards, lengths and rounds": (
        {"guard": {"max_drop": 0.5}}, {"retrain": ["1ep", "2ep"], "rounds": [1, 2]}, STEPS + 72,
    ),
    "gradual": ({"rounds": None, "retrain": "3ep"}, {"schedule": ["cubic", "linear"]}, STEPS + 48),
    "rewinding": ({"restore": {"name": "rewind", "k": "5it"}}, {"target": [0.3, 0.6]}, STEPS + 32),
    "rewinding to the start": (
        {"restore": {"name": "rewind", "k": "0it"}}, {"target": [0.3, 0.6]}, STEPS + 32,
    ),
    "what the criterion learns": ({"criterion": "fisher_running"}, {"target": [0.3, 0.6]},
                                  STEPS + 32),
    "smaller": ({"structure": "channel", "compact": "every_round"}, {"target": [0.3, 0.5]},
                STEPS + 32),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_trials_that_share_the_dense_phase_train_it_once_with_the_bits_of_runs_alone(
    name: str,
) -> None:
    changes, space, steps = SHARED[name]
    task, taken = counting()
    base = {k: v for k, v in {**BASE, **changes}.items() if v is not None}
    done = sweep(base, space, task=task, folder="out")
    assert len(taken) == steps
    assert_as_alone(done, base)


@pytest.mark.parametrize(
    "space",
    [{"dense": ["1ep", "2ep"]}, {"seed": [0, 1]}, {"learning_rate": ["null", "hold_decay"]},
     {"restore": ["{name: rewind, k: 3it}", "{name: rewind, k: 5it}"]}],
)  # fmt: skip
def test_trials_whose_dense_phases_differ_train_their_own(space: dict[str, Any]) -> None:
    task, steps = counting()
    done = sweep(BASE, space, task=task, folder="out")
    assert len(list(Path("out/.dense").glob("*.lock"))) == 2
    assert len(steps) >= 2 * 16 + 8 + STEPS
    assert_as_alone(done, BASE)


def test_a_sweep_that_is_stopped_goes_on_with_the_dense_model_that_is_there() -> None:
    task, steps = counting()
    judged: list[int] = []

    def watch(event: Mapping[str, Any]) -> None:
        judged.extend([event["row"].index] if event["event"] == "judged" else [])

    def go(**more: Any) -> Sweep:
        return sweep(BASE, {"target": [0.3, 0.6]}, task=task, folder="out", on_event=watch, **more)

    with pytest.raises(prunus.Interrupted):
        go(should_stop=lambda: len(steps) == 5)  # in the middle of the dense phase
    with pytest.raises(prunus.Interrupted):
        go(should_stop=lambda: len(judged) == 4)  # in the second trial
    done = go()
    assert len(steps) == STEPS + 32
    assert_as_alone(done, BASE)


def test_a_dense_model_that_is_damaged_is_trained_again() -> None:
    task, steps = counting()
    grid = {"target": [0.3, 0.6]}
    sweep(BASE, grid, task=task, folder="out", trials=1)
    (file,) = (p for p in Path("out/.dense").iterdir() if p.suffix != ".lock")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = sweep(BASE, grid, task=task, folder="out")
    assert len(steps) == 2 * STEPS + 32
    assert_as_alone(done, BASE)


WORKER = """
import os, time
from pathlib import Path
import torch
from helpers import tiny_task
from prunus.sweep import sweep
from prunus.tasks.base import classification_loss

losses = []

def loss(model, batch):
    losses.append(1)
    if len(losses) == int(os.environ.get("STUCK_AT", "-1")):
        Path("stuck").write_text("here")
        time.sleep(60)
    return classification_loss(model, batch)

BASE = {"dense": "2ep", "retrain": "1ep", "rounds": 2, "schedule": "linear", "target": 0.5}
done = sweep(BASE, {"target": [0.3, 0.6]}, task=tiny_task(noise=0.2, loss=loss), folder="out")
print(len(losses))
"""


def test_a_worker_waits_for_the_dense_model_of_another_and_trains_it_if_that_one_dies(
    python: Pythons,
) -> None:
    paths = os.pathsep.join(sys.path)
    other = python.start(WORKER, env={"PYTHONPATH": paths, "STUCK_AT": "5"})
    while not Path("stuck").exists():
        time.sleep(0.02)
    notes: list[str] = []

    def watch(event: Mapping[str, Any]) -> None:
        notes.append(event.get("text", ""))
        if "waiting for the dense model" in notes[-1]:
            os.kill(other.pid, signal.SIGKILL)

    task, steps = counting()
    done = sweep(BASE, {"target": [0.3, 0.6]}, task=task, folder="out", on_event=watch)
    assert other.wait().returncode == -signal.SIGKILL
    assert notes.count("waiting for the dense model, which another trial trains") == 1
    assert {t.state for t in done.trials} == {"finished"}
    assert len(steps) == STEPS + 32
    assert_as_alone(done, BASE)


def test_who_waits_can_be_stopped(python: Pythons) -> None:
    paths = os.pathsep.join(sys.path)
    other = python.start(WORKER, env={"PYTHONPATH": paths, "STUCK_AT": "5"})
    while not Path("stuck").exists():
        time.sleep(0.02)
    notes: list[str] = []
    task, steps = counting()
    try:
        with pytest.raises(prunus.Interrupted):
            sweep(BASE, {"target": [0.3, 0.6]}, task=task, folder="out",
                  on_event=lambda e: notes.append(e.get("text", "")),
                  should_stop=lambda: any("waiting" in n for n in notes))  # fmt: skip
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert steps == []
