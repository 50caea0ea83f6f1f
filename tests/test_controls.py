"""What the same budget gives without this pruning: control arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from helpers import tiny_task
from prunus.errors import InputError
from prunus.progressive.controls import Control, worth
from prunus.report.page import write_report

ARMS = ["dense_longer", "same_shape_from_scratch", "random_choice"]
RECIPE = {"rounds": 2, "dense": "6it", "retrain": "4it", "target": 0.5, "controls": ARMS}


class Trained:
    """A loop that notes what it is given: zeros and weights at the start and the end, steps."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.5)
        run.attach(optimizer)
        call: dict[str, Any] = {"model": model, "before": values(model), "steps": 0}
        for x in run.batches(torch.linspace(-1, 1, 64).reshape(4, 2, 8).unbind()):
            optimizer.zero_grad()
            (model(x) - x.sum()).square().mean().backward()
            optimizer.step()
            call["steps"] += 1
        self.calls.append({**call, "after": values(model)})


def values(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def items(model: nn.Module) -> prunus.Scores:
    x = torch.linspace(-1, 1, 80).reshape(10, 8)
    return prunus.Scores(model(x).sum(1), better="higher")


@pytest.mark.parametrize("recipe", [
    RECIPE,
    {**RECIPE, "structure": "channel", "compact": "end"},
    {**RECIPE, "structure": "channel", "compact": "every_round"},
    {**RECIPE, "rounds": None, "retrain": "8it"},
], ids=["weights", "smaller at the end", "smaller every round", "gradual"])  # fmt: skip
def test_each_arm_gets_the_budget_of_what_it_stands_for(recipe: dict[str, Any]) -> None:
    loop, model = Trained(), network()
    given = values(model)
    made = prunus.prune(model, recipe, train=loop, evaluate=items, example=torch.ones(2, 8))
    own, arms = [c for c in loop.calls if c["model"] is model], loop.calls[-3:]
    if recipe.get("rounds"):
        longer, shape, *drawn = [c for c in loop.calls if c["model"] is not model]
        arms = [longer, shape, drawn[-1]]
        assert len(drawn) == 2
    longer, shape, lot = arms
    dense = next(c for c in own if c["steps"] == 6)
    assert [c.steps for c in made.controls] == [8, 14, 8]
    assert (longer["steps"], shape["steps"]) == (8, 14)
    for name, start in dense["after"].items():  # goes on from the trained dense model
        assert torch.equal(longer["before"][name], start)
        assert bool((longer["after"][name] != 0).all())
    for name, mask in made.masks.items():  # what is left, from where the dense model began
        kept = mask.expand_as(given[name])
        assert torch.equal(shape["before"][name], given[name] * kept)
        assert torch.equal(shape["after"][name] != 0, kept)
    if not recipe.get("compact"):
        zeros = sum(int((v == 0).sum()) for v in lot["after"].values())
        assert zeros == sum(int((~m).sum()) for m in made.masks.values())
        assert any(bool((lot["after"][n] == 0).ne(~m).any()) for n, m in made.masks.items())


@pytest.mark.parametrize("recipe", [
    {**RECIPE, "target": "guard", "rounds": None, "guard": {"max_drop": 0}},
    {**RECIPE, "structure": "channel", "target": {"max_macs": 0.5}, "guard": {"max_drop": 0}},
    {**RECIPE, "structure": "2:4", "target": None, "allocation": "uniform", "rounds": 1},
    {**RECIPE, "target": {"sparsity": 0.5, "layers": {"0.*": 0.3}}},
], ids=["guard", "bound", "n:m", "layers"])  # fmt: skip
def test_arms_stand_beside_whatever_a_run_ends_with(recipe: dict[str, Any]) -> None:
    """Also where the guard accepts no round, so that nothing is removed."""
    judged = iter(range(100, 0, -1))

    def evaluate(model: nn.Module) -> float:
        return next(judged) / 100

    made = prunus.prune(network(), recipe, train=Trained(), test=items, example=torch.ones(2, 8),
                        evaluate=evaluate if "guard" in recipe else items)  # fmt: skip
    assert [arm.name for arm in made.controls] == ARMS
    assert made.sparsity == (0 if "guard" in recipe else pytest.approx(0.5, abs=0.02))


def test_the_arms_leave_the_result_as_it_is_without_them() -> None:
    without = {k: v for k, v in RECIPE.items() if k != "controls"}
    found = [prunus.prune(network(), r, train=Trained(), evaluate=items) for r in (RECIPE, without)]
    with_arms, alone = (values(f.model) for f in found)
    assert all(torch.equal(with_arms[n], alone[n]) for n in alone)
    assert [r.metric for r in found[0].rounds] == [r.metric for r in found[1].rounds]
    assert not found[1].controls


@pytest.mark.parametrize("stop", [16, 30, 45])
def test_arms_go_on_where_they_were_stopped(stop: int, tmp_path: Path) -> None:
    recipe = {**RECIPE, "snapshot": "1it"}
    whole = prunus.prune(network(), recipe, train=Trained(), evaluate=items)
    asked = iter([False] * stop)
    with pytest.raises(prunus.Interrupted):
        prunus.prune(network(), recipe, train=Trained(), evaluate=items, folder=tmp_path / "run",
                     should_stop=lambda: next(asked, True))  # fmt: skip
    loop = Trained()
    for _ in range(2):  # the second time all is read
        found = prunus.prune(network(), recipe, train=loop, evaluate=items, folder=tmp_path / "run")
        assert [str(c) for c in found.controls] == [str(c) for c in whole.controls]
        assert [c.change for c in found.controls] == [c.change for c in whole.controls]
    assert sum(c["steps"] for c in loop.calls) < 44, "what was trained is not trained again"


def test_report_and_json_say_what_pruning_was_worth(tmp_path: Path) -> None:
    recipe = {"rounds": 1, "dense": "2it", "retrain": "2it", "target": 0.5, "controls": ARMS[1:2]}
    found = prunus.prune(tiny_task(), recipe, folder=tmp_path / "run")
    plain = json.loads((tmp_path / "run" / "result.json").read_text())["controls"]
    assert [Control.from_dict(arm) for arm in plain["arms"]] == list(found.controls)
    assert plain["worth"] == found.worth != ""
    assert found.worth in write_report(tmp_path / "run").read_text().replace("&#39;", "'")
    assert found.worth in str(found)


@pytest.mark.parametrize(("change", "better", "says"), [
    ((0.02, 0.01, 0.03), "higher", "pruning was worth +2 points (+1 to +3) over training"),
    ((0.02, -0.01, 0.03), "higher", "directly, which chance may explain"),
    ((-0.02, -0.03, -0.01), "higher", "train the small one: .* better by 2 points (1 to 3)"),
    ((-0.02, -0.03, -0.01), "lower", "pruning was worth +2 points (+1 to +3) over training"),
    ((0.02, 0.01, 0.03), "lower", "train the small one: .* better by 2 points (1 to 3)"),
])  # fmt: skip
def test_what_it_was_worth_has_a_direction(
    change: tuple[float, float, float], better: str, says: str
) -> None:
    arm = Control("same_shape_from_scratch", 10, 0.9, 0.9 + change[0], change)
    head, _, tail = says.partition(".*")
    found = worth([arm], better)
    assert head in found
    assert tail in found


@pytest.mark.parametrize(("recipe", "more", "says"), [
    (RECIPE, {}, "pass train"),
    (RECIPE, {"train": lambda model: None}, "pass train"),
    ({**RECIPE, "controls": ["dense_longer"] * 2}, {"train": Trained()}, "named twice"),
    ({**RECIPE, "controls": ["another"]}, {"train": Trained()}, "controls"),
    ({**RECIPE, "structure": {"name": "hidden", "rotate": True}}, {"train": Trained()}, "leave co"),
])  # fmt: skip
def test_arms_that_cannot_be_trained_are_refused_before_work_starts(
    recipe: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    model = network()
    given = values(model)
    with pytest.raises(InputError, match=says):
        prunus.prune(model, recipe, evaluate=items, **more)
    assert all(torch.equal(given[n], v) for n, v in values(model).items())


def test_a_trained_model_needs_fresh_values_for_its_shape() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(4)), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.scale

    recipe = {**RECIPE, "dense": 0}
    with pytest.raises(InputError, match=r"controls: same_shape_from_scratch: .*reset_parameters"):
        prunus.prune(Own(), recipe, train=Trained(), evaluate=items)
    loop, model = Trained(), network()
    given = values(model)
    prunus.prune(model, recipe, train=loop, evaluate=items)
    shape = next(c for c in loop.calls if c["model"] is not model and c["steps"] == 8
                 and not torch.equal(c["before"]["0.bias"], given["0.bias"]))  # fmt: skip
    assert bool((shape["after"]["0.weight"] == 0).any())


def test_a_loop_of_ones_own_has_no_arms() -> None:
    model = network()
    with pytest.raises(InputError, match="controls train other models"):
        prunus.Pruner(model, RECIPE, torch.optim.SGD(model.parameters(), lr=0.1), steps=20)
