"""Dict batches, lengths, tuples, two heads, a loss inside the model and a metric of the whole set:
the same network comes out of every door. (Several processes: test_distributed.py.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.tasks.base import Task
from tagging import EXAMPLE, HELD, RECIPE, TRAIN, errors, loss, network, optimizer


def by_task(folder: Path) -> prunus.Result:
    task = Task(
        model=network, optimizer=lambda p: torch.optim.AdamW(p, lr=0.03), loss=loss, metric=errors,
        train=TRAIN, validation=HELD, test=HELD, example=EXAMPLE, calibration=TRAIN,
        metric_name="error rate",
    )  # fmt: skip
    return prunus.prune(task, RECIPE, folder=folder)


def by_function(folder: Path) -> prunus.Result:
    def train(model: nn.Module, run: prunus.Run) -> None:
        own = optimizer(model)
        run.attach(own)
        for batch in run.batches(TRAIN):
            own.zero_grad()
            loss(model, batch).backward()
            own.step()

    return prunus.prune(
        network(), RECIPE, train=train, evaluate=lambda m: errors(m, HELD), calibration=TRAIN,
        loss=loss, example=EXAMPLE, folder=folder,
    )  # fmt: skip


def by_own_loop() -> prunus.Pruner:
    model = network()
    own = optimizer(model)
    for step in range(12):  # the dense training
        own.zero_grad()
        loss(model, TRAIN[step % len(TRAIN)]).backward()
        own.step()
    own = optimizer(model)
    pruner = prunus.Pruner(
        model, {**RECIPE, "dense": "0it", "compact": "none"}, own,
        steps_per_epoch=len(TRAIN), example=EXAMPLE, evaluate=lambda m: errors(m, HELD),
        calibration=TRAIN, loss=loss,
    )  # fmt: skip
    while not pruner.done:
        for batch in TRAIN:
            if pruner.done:
                break
            own.zero_grad()
            loss(model, batch).backward()
            own.step()
    pruner.finish()
    return pruner


DOORS: dict[str, Callable[[Path], prunus.Result]] = {"task": by_task, "function": by_function}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, prunus.Result]:
    """Of the doors that train by themselves; the tests only read them."""
    place = tmp_path_factory.mktemp("doors")
    return {name: door(place / name) for name, door in DOORS.items()}


@pytest.mark.parametrize("door", DOORS)
def test_a_model_of_dicts_tuples_and_its_own_loss_is_pruned_and_made_smaller(
    door: str, results: dict[str, prunus.Result]
) -> None:
    result = results[door]
    first, last = result.rounds[0], result.rounds[-1]
    assert first.metric is not None
    assert last.metric == errors(result.model.eval(), HELD).mean < 0.5
    hidden: Any = result.model.get_submodule("hidden")
    assert hidden.out_features <= 20
    assert result.compaction is not None
    assert result.compaction.error < 1e-12
    batch = HELD[0]
    scores, odd = result.model(batch["tokens"], batch["lengths"])
    assert scores.shape == (*batch["tokens"].shape, 3)
    assert odd.shape == (8,)
    assert isinstance(result.model(**batch), Tensor)  # it still has its loss
    served = prunus.deploy(result.model, example=EXAMPLE, runtime="eager").model
    assert torch.allclose(served(batch["tokens"], batch["lengths"])[0].double(), scores, atol=1e-6)


def test_every_door_takes_the_same_units(results: dict[str, prunus.Result]) -> None:
    task, function = results["task"], results["function"]
    assert [r.metric for r in task.rounds] == [r.metric for r in function.rounds]
    assert all(torch.equal(task.masks[n], m) for n, m in function.masks.items())
    own = by_own_loop()
    assert own.sparsity == pytest.approx(task.sparsity)
    assert {r.verdict for r in own.rounds} <= {"dense", "accepted"}
    assert errors(own.model, HELD).mean < 0.5
