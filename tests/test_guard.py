"""A guard judges against a trained model, and in the direction that was said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from helpers import quick, tiny_task
from prunus.errors import InputError
from prunus.recipe.schema import Recipe

WAYS = ("prune", "pruner")


def judged(
    values: list[float], *, dense: str = "0it", way: str = "prune", **guard: Any
) -> tuple[list[str], str]:
    """Verdicts and reason of a run whose rounds get these metrics, the dense one's first.

    With ``dense``, the first is of the model as it was given.
    """
    left = iter(values)
    recipe = {"rounds": 4, "retrain": "2it", "dense": dense, "schedule": "linear", "target": 0.8,
              "guard": {"max_drop": 0.01, **guard}}  # fmt: skip
    if way == "prune":
        last = [values[0]]

        def evaluate(model: nn.Module) -> float:
            last[0] = next(left, last[0])
            return last[0]

        if dense == "0it":  # evaluate is tried once, before work starts
            left = iter([values[0], *values])
        result = prunus.prune(tiny_task(), recipe, evaluate=evaluate)
        return [r.verdict for r in result.rounds], result.reason
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = prunus.Pruner(model, recipe, optimizer, evaluate=lambda m: next(left, values[-1]))
    while not pruner.done:
        model(torch.ones(2, 8)).square().mean().backward()
        optimizer.step()
    return [r.verdict for r in pruner.rounds], pruner.reason


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("guard", "values"), [
    ({}, [0.08, 0.777, 0.970, 0.383]),
    ({}, [0.30, 0.55, 0.54, 0.31]),
    ({"relative": True}, [0.1, 0.5, 0.6, 0.2]),
    ({"better": "lower"}, [2.3, 0.7, 0.2, 1.9]),
    ({"better": "higher"}, [3.0, 20.0, 30.0, 8.0]),
    ({"better": "higher"}, [-2.3, -0.7, -0.2, -1.9]),
])  # fmt: skip
def test_rounds_after_an_untrained_model_are_judged_against_the_best_so_far(
    way: str, guard: dict[str, Any], values: list[float]
) -> None:
    verdicts, reason = judged(values, way=way, **guard)
    assert "rejected" in verdicts
    assert verdicts.index("rejected") <= 3
    assert "better than round 0 by far" in reason


@pytest.mark.parametrize(("dense", "values"), [
    ("0it", [0.90, 0.905, 0.93, 0.895, 0.891]),  # trained elsewhere, bettered a little
    ("2it", [0.1, 0.90, 0.95, 0.97, 0.895, 0.891]),  # trained here
])  # fmt: skip
def test_a_trained_model_stays_what_rounds_are_judged_against(
    dense: str, values: list[float]
) -> None:
    verdicts, reason = judged(values, dense=dense)
    assert verdicts == ["dense", *["accepted"] * 4]
    assert "better than round 0" not in reason


def test_a_dense_training_of_one_step_trains_no_model() -> None:
    assert "rejected" in judged([0.08, 0.09, 0.777, 0.970, 0.383], dense="1it")[0]


def test_whoever_watches_is_told_that_the_dense_model_was_not_trained() -> None:
    metrics, events = iter([0.1, 0.1, 0.8, 0.9, 0.9, 0.9]), []
    recipe = quick(dense=0, rounds=4, guard={"max_drop": 0.01})
    prunus.prune(tiny_task(), recipe, evaluate=lambda m: next(metrics), on_event=events.append)
    notes = [e["text"] for e in events if e["event"] == "note"]
    assert sum("round 0 (accuracy 0.1) was not fully trained" in text for text in notes) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dense", ["0it", "3it"])
@pytest.mark.parametrize("value", [2.3, -0.4, 93.0])
def test_a_metric_outside_of_0_to_1_needs_a_direction_before_work_starts(
    way: str, dense: str, value: float
) -> None:
    with pytest.raises(InputError, match=r"outside 0 to 1: say guard\.better=lower"):
        judged([value] * 9, way=way, dense=dense)
    assert judged([value] * 9, way=way, dense=dense, better="higher")[0][0] == "dense"
    assert judged([value] * 9, way=way, dense=dense, better="lower")[0][0] == "dense"


@pytest.mark.parametrize("way", WAYS)
def test_a_metric_that_fell_as_the_dense_model_trained_needs_a_direction_after_round_0(
    way: str,
) -> None:
    falls = [0.7, 0.3, 0.25, 0.2, 0.2, 0.2]
    with pytest.raises(InputError, match=r"fell from 0\.7 to 0\.3 .* as a loss does"):
        judged(falls, way=way, dense="3it")
    assert judged(falls, way=way, dense="3it", better="lower")[0] == ["dense", *["accepted"] * 4]


def test_a_metric_that_is_called_an_error_needs_a_direction() -> None:
    model, recipe = nn.Linear(4, 2), {"rounds": 1, "target": 0.5, "guard": {"max_drop": 0.1}}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name in ("loss", "word error", "val_mse", "eval/loss", "valLoss", "logloss", "top1_err",
                 "PPL", "cross-entropy"):  # fmt: skip
        with pytest.raises(InputError, match=f"by its name the {name} may be an error"):
            prunus.prune(model, recipe, evaluate=lambda m: 0.5, metric=name)
        with pytest.raises(InputError, match=f"by its name the {name} may be an error"):
            prunus.Pruner(model, recipe, optimizer, steps=2, evaluate=lambda m: 0.5, metric=name)
    task = dataclasses.replace(tiny_task(), metric_name="loss")
    with pytest.raises(InputError, match=r"guard\.better=lower"):
        prunus.prune(task, quick(guard={"max_drop": 0.1}))
    assert bool((model.weight != 0).all())


def test_what_was_not_said_stays_unsaid_in_files_and_changes_no_fingerprint() -> None:
    unsaid, said = (
        Recipe(rounds=2, guard={"max_drop": 0.02, **more})  # type: ignore[arg-type]
        for more in ({}, {"better": "higher"})
    )
    assert unsaid.digest() == said.digest()
    for recipe in (unsaid, said):
        again = Recipe.load(recipe.to_dict())
        assert again.guard is not None
        assert again.guard.says_better == (recipe is said)
        changed = Recipe.load(recipe, ["target=0.5"])
        assert changed.guard is not None
        assert changed.guard.says_better == (recipe is said)


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("last", [0.4, 1.1])
def test_an_error_that_rises_as_weights_go_needs_a_direction(rounds: int, last: float) -> None:
    """Of a trained model its loss lies between 0 and 1, and nothing trained says what it is."""
    recipe = {"rounds": rounds, "target": 0.8, "schedule": "linear", "guard": {"max_drop": 0.02}}

    def run(**guard: Any) -> list[str]:
        torch.manual_seed(0)
        left = iter([0.01, 0.01, *[last] * 9])
        wanted = {**recipe, "guard": {"max_drop": 0.02, **guard}}
        result = prunus.prune(nn.Linear(8, 4), wanted, evaluate=lambda m: next(left))
        return [r.verdict for r in result.rounds]

    says = "outside 0 to 1" if last > 1 else r"rose from 0\.01 to 0\.4 as weights were removed"
    with pytest.raises(InputError, match=rf"{says}.*guard\.better=lower"):
        run()
    assert run(better="lower")[1] == "rejected"
    assert run(better="higher")[1] == "accepted"


def test_a_round_whose_metric_leaves_0_to_1_needs_a_direction_in_a_loop_too() -> None:
    values = [0.01, 0.02, 1.3, 0.02, 0.02]
    with pytest.raises(InputError, match=r"the metric is 1\.3, outside 0 to 1"):
        judged(values, way="pruner")
    assert "rejected" in judged(values, way="pruner", better="lower")[0]


@pytest.mark.parametrize(
    "recipe",
    [
        {"target": 0.9},
        {"target": 0.9, "guard": {"better": "lower", "max_drop": 0.0}},  # put back
        {"target": {"max_macs": 0.5}, "structure": "channel", "compact": "end"},
        {"target": 0.5, "structure": "channel", "compact": "every_round", "rounds": 2},
        {"target": 0.9, "repair": "least_squares"},
    ],
)
def test_rounds_are_judged_by_the_weights_that_there_are_inside_autocast(
    recipe: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))

    @torch.no_grad()
    def size(model: nn.Module) -> float:
        return float(model(x).float().square().mean())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        size(model)  # autocast keeps casts of the weights until it ends
        result = prunus.prune(
            model, recipe, evaluate=size, calibration=[(x, y)], example=x[:2],
            loss=lambda m, b: nn.functional.cross_entropy(m(b[0]).float(), b[1]),
        )  # fmt: skip
    first, *later = (float(r.metric) for r in result.rounds)
    assert all(metric != first for metric in later)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert size(result.model) == pytest.approx(float(result.metric), rel=1e-3)
