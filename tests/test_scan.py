"""What removing part of each group alone costs, and an allocation that chooses by it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from helpers import tiny_task, weights
from prunus.cli.main import cli
from prunus.errors import InputError
from prunus.methods.allocations.measured import measured, monotone
from prunus.progressive.judge import judge
from prunus.pruning.decide import Cost, limits_of
from prunus.types import Damage, Group

MEASURED = {"allocation": "measured", "target": 0.5}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


BATCHES = [torch.linspace(-1, 1, 18).reshape(3, 6), torch.ones(2, 6)]


@given(
    curves=st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=4),
    levels=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_of_all_choices_of_levels_it_takes_one_that_loses_least(
    curves: list[list[int]], levels: int
) -> None:
    """Groups of five weights, of which one to five stay, beside every combination."""
    groups = weights(*[5] * len(curves))
    found: Damage = {
        g: ((5, 0.0), *((4 - i, float(x)) for i, x in enumerate(curve)))
        for g, curve in zip(groups, curves, strict=True)
    }
    target = levels / 5  # can be met by whole levels exactly
    cost, limits = Cost(groups), limits_of(groups, dict.fromkeys(groups))
    target = min(target, cost(dict.fromkeys(groups, 1)))
    scores = {g: torch.ones(5) for g in groups}
    counts = measured(scores, cost, target, limits, found)
    rises = {g: dict(monotone(pairs)) for g, pairs in found.items()}
    wanted = round((1 - target) * 5 * len(groups))
    every = itertools.product(range(1, 6), repeat=len(groups))
    least = min(
        sum(rises[g][k] for g, k in zip(groups, choice, strict=True))
        for choice in every
        if sum(choice) == wanted
    )
    assert sum(int(k) for k in counts.values()) == wanted
    assert sum(rises[g][int(k)] for g, k in counts.items()) == pytest.approx(least)


class Two(nn.Module):
    """Two layers, of which one hardly counts, though its weights are the larger ones."""

    def __init__(self) -> None:
        super().__init__()
        self.needed, self.idle = nn.Linear(6, 8), nn.Linear(6, 8)
        with torch.no_grad():
            self.idle.weight.mul_(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.needed(x) + 1e-3 * self.idle(x)


def test_what_hardly_counts_gives_most() -> None:
    torch.manual_seed(0)
    model = Two()
    wanted = [model(b).detach() for b in BATCHES]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        number = 0 if batch is BATCHES[0] else 1
        return (model(batch) - wanted[number]).square().mean()

    more = {"calibration": BATCHES, "loss": loss}
    scope = {"include": ["*"]}
    found = prunus.prune(model, {**MEASURED, "scope": scope}, **more)
    kept = {name: float(mask.double().mean()) for name, mask in found.masks.items()}
    assert found.sparsity == 0.5
    assert kept["needed.weight"] > 0.9
    assert kept["idle.weight"] < 0.1


def test_a_scan_is_what_masking_by_hand_gives_and_changes_nothing() -> None:
    model = network().train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    found = prunus.scan(model, BATCHES, squares)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert model.training
    for name, (units, losses) in found.groups.items():
        for part, loss in losses.items():
            twin = network()
            weight = twin.get_parameter(name)
            gone = round(part * units)
            flat = weight.detach().abs().flatten()
            with torch.no_grad():
                weight.view(-1)[flat.sort(stable=True).indices[:gone]] = 0
            by_hand = sum(float(squares(twin, b).detach()) for b in BATCHES) / len(BATCHES)
            assert loss == pytest.approx(by_hand, rel=1e-5)


def test_weights_are_there_again_when_the_loss_fails() -> None:
    model, calls = network(), [0]
    before = {n: p.clone() for n, p in model.named_parameters()}

    def fails(model: nn.Module, batch: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > 9:
            raise ZeroDivisionError("mine")
        return squares(model, batch)

    with pytest.raises(ZeroDivisionError):
        prunus.scan(model, BATCHES, fails)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("structure", ["weight", "channel", "head"])
def test_bounds_hold_and_repeat(structure: str) -> None:
    task = tiny_task(width=16)
    recipe: dict[str, Any] = {**MEASURED, "structure": structure, "dense": "4it", "rounds": 2,
                              "retrain": "2it"}  # fmt: skip
    if structure == "head":
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        task = tiny_task(model=lambda: nn.Sequential(encoder, nn.Linear(8, 2)),
                         example=torch.ones(1, 3, 8))  # fmt: skip
        made = prunus.prune(task.model(), {**recipe, "dense": 0, "rounds": None, "retrain": 0},
                            calibration=[torch.ones(2, 3, 8)], loss=squares,
                            example=task.example)  # fmt: skip
        assert 0 < made.sparsity <= 0.5
        return
    if structure == "channel":
        recipe["target"] = {"max_macs": 0.5}
    first, again = (prunus.prune(task, recipe) for _ in range(2))
    assert all(torch.equal(first.masks[n], again.masks[n]) for n in first.masks)
    if structure == "channel":
        assert first.rounds[-1].achieved >= 0.5
    else:
        assert first.sparsity == pytest.approx(0.5, abs=1e-2)


def test_a_killed_run_reads_what_it_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**MEASURED, "dense": "4it", "rounds": 2, "retrain": "3it", "snapshot": "100it"}
    whole = prunus.prune(tiny_task(), recipe)
    told: list[str] = []

    def killed(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(
        "prunus.progressive.loop.judge",
        lambda job, at, limit: (killed if at.index == 2 else judge)(job, at, limit),
    )
    with pytest.raises(MemoryError):
        prunus.prune(tiny_task(), recipe, folder=tmp_path / "run")
    monkeypatch.undo()
    found = prunus.prune(tiny_task(), recipe, folder=tmp_path / "run",
                         on_event=lambda event: told.append(event["event"]))  # fmt: skip
    assert "scan" not in told, "round 2 was measured before the kill"
    assert all(torch.equal(found.masks[n], whole.masks[n]) for n in whole.masks)


@pytest.mark.parametrize(("recipe", "more", "says"), [
    (MEASURED, {}, "pass calibration"),
    (MEASURED, {"calibration": BATCHES}, "pass calibration"),
    ({**MEASURED, "retrain": "4it"}, {"calibration": BATCHES, "loss": squares,
                                      "train": lambda model, run: None}, "set rounds"),
])  # fmt: skip
def test_what_it_needs_is_asked_for_before_work_starts(
    recipe: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        prunus.prune(network(), recipe, **more)
    if "train" in more:
        model = network()
        with pytest.raises(InputError, match=says):
            prunus.Pruner(model, recipe, torch.optim.SGD(model.parameters(), lr=0.1), steps=9,
                          calibration=BATCHES, loss=squares)  # fmt: skip


def test_the_command_shows_saves_and_finds_a_run(tmp_path: Path) -> None:
    run = ["run", "mlp", "--folder", str(tmp_path / "run")]
    short = ["dense=1ep", "retrain=1it", "rounds=1"]
    recipe = tmp_path / "mlp.yaml"
    recipe.write_text("task: mlp\ntarget: 0.5\n")
    done = CliRunner().invoke(cli, ["scan", str(recipe), *short, "--folder", str(tmp_path / "s")])
    assert done.exit_code == 0, done.output
    assert "loss at 0.5 removed" in done.output
    assert (tmp_path / "s" / "scan.png").stat().st_size > 1000
    run[1] = str(recipe)
    assert CliRunner().invoke(cli, [*run, *short]).exit_code == 0
    done = CliRunner().invoke(cli, ["scan", str(tmp_path / "run"), "--json"])
    plain = json.loads(done.output.splitlines()[-1])
    written = json.loads((tmp_path / "run" / "scan.json").read_text())
    assert plain["groups"] == written["groups"]


def test_a_criterion_that_reads_the_training_is_refused_where_there_was_none() -> None:
    with pytest.raises(InputError, match="reads gradients from the training"):
        prunus.scan(network(), BATCHES, squares, recipe={"criterion": "fisher_running"})


def test_a_scan_prints_as_a_table() -> None:
    found = prunus.scan(network(), BATCHES, squares)
    assert "next: allocation: measured" in repr(found)
    assert found._repr_html_().count("<tr>") == 3
    assert found.picture().axes
    groups: list[Group] = []
    prunus.scan(network(), BATCHES, squares, on_group=groups.append)  # type: ignore[arg-type]
    assert groups == ["0.weight", "2.weight"]
