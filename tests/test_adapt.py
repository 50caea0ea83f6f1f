"""A guard that learns from rejected rounds, and a run that keeps its best models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from helpers import tiny_task
from prunus.errors import InputError
from prunus.progressive.guard import _halved
from prunus.progressive.result import Round

ADAPT = {"target": {"adapt": True}, "guard": {"max_drop": 0.02}, "retrain": "2it"}
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """A branch that counts and one that hardly does, with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.needed = nn.Linear(6, 8)
        self.idle = copy.deepcopy(self.needed)

    def forward(self, x: Tensor) -> Tensor:
        return self.needed(x) + 1e-3 * self.idle(x)


def run(model: nn.Module, recipe: dict[str, Any], **more: Any) -> prunus.Result:
    """Judged and measured by how near the answers stay; nothing trains."""
    wanted = model(X).detach()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - wanted).square().mean()

    def evaluate(model: nn.Module) -> float:
        return 1 - float(loss(model, X)) / float(wanted.square().mean())

    return prunus.prune(
        model, recipe, evaluate=evaluate, calibration=[X], loss=loss, example=X,
        **more,
    )  # fmt: skip


def left(result: prunus.Result) -> dict[str, float]:
    return {name: float(mask.double().mean()) for name, mask in result.masks.items()}


@pytest.mark.parametrize("structure", ["weight", "neuron"])
def test_what_was_cut_too_far_is_held_back_and_the_rest_goes_on(structure: str) -> None:
    recipe = {"target": "guard", "guard": {"max_drop": 0.05}, "structure": structure,
              "scope": {"include": ["*"]}}  # fmt: skip
    fixed = run(Two(), recipe)
    adapts = run(Two(), {**recipe, "target": {"adapt": True}})
    if structure == "weight":  # magnitudes cannot tell them apart
        assert left(fixed)["needed.weight"] == pytest.approx(left(fixed)["idle.weight"], abs=0.02)
    assert left(adapts)["idle.weight"] < left(adapts)["needed.weight"]
    assert adapts.sparsity > fixed.sparsity
    assert adapts.rounds[-1].metric is not None
    assert all(r.metric is not None and r.metric >= 0.95 for r in adapts.rounds if r.accepted)


def test_the_same_step_is_tried_once_more_before_it_is_halved() -> None:
    def step(verdicts: str, *, adapts: bool) -> float:
        rows = [Round(i, 0, 0, 0, 0, 1.0, {"a": "accepted", "r": "rejected"}[v])
                for i, v in enumerate(verdicts)]  # fmt: skip
        return _halved(0.4, rows, adapts=adapts)

    assert [step(v, adapts=True) for v in ("a", "ar", "arr", "arrar", "arrarr")] == [
        0.4, 0.4, 0.2, 0.2, 0.1,
    ]  # fmt: skip
    assert [step(v, adapts=False) for v in ("a", "ar", "arr")] == [0.4, 0.2, 0.1]


@pytest.mark.parametrize(("stop", "more"), [
    (9, {}), (21, {}), (15, {"structure": "channel", "compact": "every_round"}),
])  # fmt: skip
def test_it_goes_on_after_a_stop_as_without_one(
    stop: int, more: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {**ADAPT, "dense": "4it", "rounds": 6, "snapshot": "1it", **more}

    def evaluate(model: nn.Module) -> float:
        """Good down to 90 of its 178 parameters."""
        return float(sum(int(p.count_nonzero()) for p in model.parameters()) >= 90)

    def made(**options: Any) -> prunus.Result:
        return prunus.prune(tiny_task(noise=0.2), recipe, evaluate=evaluate, **options)

    whole, asked = made(), iter([False] * stop)
    with pytest.raises(prunus.Interrupted):
        made(folder=tmp_path / "run", should_stop=lambda: next(asked, True))
    found = made(folder=tmp_path / "run")
    assert any(not r.accepted for r in whole.rounds), "there is something to learn from"
    assert [r.achieved for r in found.rounds] == [r.achieved for r in whole.rounds]
    state, wanted = found.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("recipe", "more", "says"), [
    ({**ADAPT, "target": {"adapt": True, "sparsity": 0.5}, "rounds": 2}, {}, "where the guard"),
    (ADAPT, {"calibration": None}, "pass calibration"),
    ({**ADAPT, "structure": {"name": "hidden", "rotate": True}}, {}, "no group is cut by itself"),
    ({"target": 0.5, "keep": "front"}, {}, "gradual pruning has one"),
    ({"target": 0.5, "keep": "front", "rounds": 2}, {}, "pass folder="),
])  # fmt: skip
def test_what_cannot_be_is_refused(recipe: Any, more: dict[str, Any], says: str) -> None:
    options: dict[str, Any] = {"calibration": [X], "evaluate": lambda m: 1.0, **more,
                               "loss": lambda m, b: m(b).sum()}  # fmt: skip
    with pytest.raises(InputError, match=says):
        prunus.prune(Two(), recipe, **options)
    if "keep" in recipe and "rounds" in recipe:
        model = Two()
        with pytest.raises(InputError, match="your loop has no folder"):
            prunus.Pruner(model, recipe, torch.optim.SGD(model.parameters(), 0.1), steps=9)


def test_shares_of_the_damage_are_scored_by_what_the_training_has_shown() -> None:
    """A criterion that reads the training has its statistics there as well."""
    recipe = {**ADAPT, "dense": "6it", "rounds": 3, "criterion": "fisher_running"}
    asked = iter([1.0, 1.0, 0.0, 1.0, 1.0])
    result = prunus.prune(tiny_task(), recipe, evaluate=lambda m: next(asked, 1.0))
    assert [r.verdict for r in result.rounds[:2]] == ["dense", "rejected"]
    assert any(r.verdict == "accepted" for r in result.rounds[2:])


def test_the_front_has_the_models_that_were_judged_not_what_came_back_after() -> None:
    recipe = {"target": 0.8, "rounds": 3, "schedule": "linear", "retrain": "4it", "keep": "front",
              "restore": {"name": "revive", "values": "cut", "when": "after"}}  # fmt: skip
    result = prunus.prune(tiny_task(), recipe, folder="run")
    for index, path in result.front:
        opened = prunus.load(path, model=tiny_task().model())
        zeros = sum(int((p == 0).sum()) for n, p in opened.named_parameters() if p.dim() > 1)
        whole = sum(p.numel() for n, p in opened.named_parameters() if n in result.masks)
        assert zeros / whole == pytest.approx(result.rounds[index].achieved, abs=0.01)
    assert len(result.front) > 0


@pytest.mark.parametrize("compact", ["none", "every_round"])
def test_the_front_has_every_model_that_no_other_is_ahead_of(compact: str, tmp_path: Path) -> None:
    metrics = iter([0.97, 0.97, 0.98, 0.96, 0.97, 0.90])  # once before work starts
    recipe = {"target": 0.8, "rounds": 4, "schedule": "linear", "retrain": "2it", "keep": "front",
              "structure": "channel", "compact": compact}  # fmt: skip
    made: dict[int, float] = {}

    def evaluate(model: nn.Module) -> float:
        made[len(made) - 1] = float(model(torch.ones(1, 8)).detach().sum())
        return next(metrics)

    result = prunus.prune(tiny_task(), recipe, evaluate=evaluate, folder=tmp_path / "run")
    assert [index for index, _ in result.front] == [1, 3, 4]
    files = sorted(p.name for p in (tmp_path / "run" / "front").iterdir())
    assert files == ["round-1.safetensors", "round-3.safetensors", "round-4.safetensors"]
    for index, path in result.front:
        opened = prunus.load(path, model=tiny_task().model())
        answer = float(opened(torch.ones(1, 8)).detach().sum())
        assert answer == pytest.approx(made[index], rel=1e-5), "the model that was judged"
