"""Every end says what was requested, what was achieved, and why it is not the same."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from helpers import quick, tiny_task


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Linear(4, 6))


def loop(recipe: dict[str, Any], *, promised: int, taken: int, **more: Any) -> prunus.Pruner:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = prunus.Pruner(model, recipe, optimizer, steps=promised, **more)
    for _ in range(taken):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).square().mean().backward()
        optimizer.step()
    return pruner


@pytest.mark.parametrize("rounds", [None, 4])
def test_a_loop_that_ends_early_warns_with_what_is_missing(rounds: int | None) -> None:
    recipe = {"target": 0.9, "schedule": "linear", "rounds": rounds}
    pruner = loop(recipe, promised=40, taken=15)
    assert f"sparsity {pruner.sparsity:.4g} of 0.9 requested" in pruner.reason  # not finished yet
    with pytest.warns(UserWarning, match=r"sparsity 0\.[1-8].* of 0\.9 requested"):
        pruner.finish()
    assert "ended" in pruner.reason
    assert f"sparsity {pruner.sparsity:.4g} of 0.9 requested" in pruner.reason
    assert pruner.reason in repr(pruner)


@pytest.mark.parametrize("taken", [39, 40, 60])
@pytest.mark.parametrize("rounds", [None, 4])
def test_a_loop_that_reaches_the_target_says_so_and_does_not_warn(
    rounds: int | None, taken: int
) -> None:
    recipe = {"target": 0.5, "schedule": {"name": "linear", "end": 0.9}, "rounds": rounds}
    pruner = loop(recipe, promised=40, taken=taken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.finish()
    assert "the target is reached" in pruner.reason


def test_less_than_the_model_has_already_removes_nothing_and_says_so() -> None:
    model = net()
    prunus.prune(model, {"target": 0.6})
    says = "nothing was removed: the model came with sparsity 0.6019, and 0.5 was requested"
    assert prunus.prune(model, {"target": 0.5}).reason == says
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = prunus.Pruner(model, {"target": 0.5}, optimizer, steps=1)
    optimizer.step()
    assert pruner.reason == says


def test_layers_that_a_structure_does_not_fit_are_named_at_the_end() -> None:
    recipe = {"structure": "2:4", "allocation": "uniform"}
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 4))
    reason = prunus.prune(model, recipe).reason
    assert reason.startswith("the target is reached; 2 of 3 layers in scope stay dense")
    assert "1.weight, 2.weight" in reason


def test_whole_units_and_rejections_say_how_far_it_went() -> None:
    result = prunus.prune(net(), {"structure": "neuron", "target": 0.2})
    assert result.reason == f"all rounds are done: sparsity {result.sparsity:.4g} of 0.2 requested"
    recipe = {"rounds": 2, "target": 0.8, "guard": {"max_drop": 0.1}, "schedule": "linear"}
    result = prunus.prune(net(), recipe, evaluate=lambda m: float((m[0].weight != 0).all()))
    assert result.reason.startswith("the guard")
    assert result.reason.endswith(": sparsity 0 of 0.8 requested")


def test_a_bound_is_told_as_the_part_that_it_counts() -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    recipe = {"structure": "channel", "target": {"max_macs": 0.5}, "rounds": 2, "limit": "0it"}
    reason = prunus.prune(model, recipe, evaluate=lambda m: 1.0, example=torch.ones(1, 8)).reason
    assert reason == "the limit of 0it is reached: part of the macs removed 0 of 0.5 requested"


def test_a_stop_by_time_is_told_with_both_figures() -> None:
    result = prunus.prune(tiny_task(), quick(rounds=4, dense="2it", retrain="1it", limit="3it"))
    assert result.reason.startswith("the limit of 3it is reached: sparsity 0.")
    assert result.reason.endswith(" of 0.5 requested")


@pytest.mark.parametrize("limit", [None, "4it"])
@pytest.mark.parametrize("rounds", [None, 2])
def test_a_training_that_ended_early_is_told(rounds: int | None, limit: str | None) -> None:
    task = tiny_task()

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.attach(optimizer)
        for k, (x, y) in enumerate(run.batches(task.train)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if limit is None and k == 3:
                return

    recipe = quick(rounds=rounds, dense=0, retrain="12it", limit=limit,
                   schedule="linear" if rounds else "cubic")  # fmt: skip
    result = prunus.prune(task.model(), recipe, train=train)
    note = "the training of round 1 ended after 4 of 12 optimizer steps"
    assert any(text.startswith(note) for text in result.notes) == (limit is None)
    if limit is not None:
        assert result.reason.startswith("the limit of 4it is reached: sparsity ")
    elif rounds is None:
        assert result.reason.startswith("the training ended after 4 optimizer steps, too early: ")
    assert (" of 0.5 requested" in result.reason) == (rounds is None or limit is not None)
