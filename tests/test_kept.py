"""After any number of shrinks, masks and kept indices speak of the model as it was given."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import prunus
from helpers import tiny_task
from prunus.types import Kept

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip


def train(model: nn.Module, run: prunus.Run) -> None:
    """Nothing changes, so that what is left can be compared with the dense weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run.attach(optimizer)
    for batch in run.batches([X, X]):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


def cut(dense: torch.Tensor, indices: tuple[torch.Tensor | None, ...]) -> torch.Tensor:
    for dim, index in enumerate(indices):
        dense = dense if index is None else dense.index_select(dim, index)
    return dense


def agrees(dense: nn.Module, small: nn.Module, kept: Kept) -> None:
    before, after = dense.state_dict(), small.state_dict()
    assert {n for n in before if before[n].shape != after[n].shape} == set(kept)
    same = [n for n in kept if "running" not in n]  # which batch norm changes in training
    assert all(torch.equal(cut(before[n], kept[n]), after[n]) for n in same)


@pytest.mark.parametrize("rounds", [None, 1, 3])
def test_kept_are_indices_of_the_original(rounds: int | None) -> None:
    model, dense = network(), network()
    recipe: dict[str, Any] = {"structure": "channel", "target": 0.6, "compact": "end",
                              "allocation": "uniform"}  # fmt: skip
    if rounds is not None:
        recipe |= {"rounds": rounds, "retrain": "2it", "compact": "every_round"}
    given = {} if rounds is None else {"train": train}
    result = prunus.prune(model, recipe, example=X, **given)
    agrees(dense, result.model, result.kept)
    masked = copy.deepcopy(dense)
    with torch.no_grad():
        for name, mask in result.masks.items():
            whole = mask.expand_as(masked.get_parameter(name))
            masked.get_parameter(name).mul_(whole)
            if name in result.kept:  # all of what is left, and nothing else
                assert torch.equal(cut(whole, result.kept[name]).all(), torch.tensor(True))
                assert int(whole.sum()) == result.model.get_parameter(name).numel()
    masked.eval(), result.model.eval()
    if rounds is None:  # else batch norm has seen data
        assert torch.allclose(masked.double()(X.double()), result.model.double()(X.double()))


def test_a_rejected_round_is_in_neither() -> None:
    model, dense = network(), network()
    judged = iter([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    recipe = {"structure": "channel", "target": 0.6, "compact": "every_round", "rounds": 2,
              "retrain": "2it", "schedule": "linear", "guard": {"max_drop": 0.1}}  # fmt: skip
    result = prunus.prune(model, recipe, train=train, evaluate=lambda m: next(judged), example=X)
    assert any(not r.accepted for r in result.rounds)
    agrees(dense, result.model, result.kept)


def test_a_stopped_run_knows_them_too() -> None:
    dense, seen = network(), []
    recipe = {"structure": "channel", "target": 0.6, "compact": "every_round", "rounds": 3,
              "retrain": "2it", "schedule": "linear"}  # fmt: skip
    with pytest.raises(prunus.Interrupted):
        prunus.prune(network(), recipe, train=train, example=X, folder="run",
                     on_event=seen.append,
                     should_stop=lambda: sum(e["event"] == "judged" for e in seen) > 2)  # fmt: skip
    result = prunus.prune(network(), recipe, train=train, example=X, folder="run")
    agrees(dense, result.model, result.kept)
    masks = load_file(Path("run/masks.safetensors"))
    assert masks.keys() == result.masks.keys()
    assert all(torch.equal(masks[n].bool(), m) for n, m in result.masks.items())


def test_a_result_pruned_again_speaks_of_what_it_was_given() -> None:
    first = prunus.prune(network(), {"structure": "channel", "target": 0.3, "compact": "end"},
                         example=X)  # fmt: skip
    before = copy.deepcopy(first.model)
    second = prunus.prune(first.model, {"structure": "channel", "target": 0.3, "compact": "end"},
                          example=X)  # fmt: skip
    agrees(before, second.model, second.kept)


def test_a_pruner_in_a_loop_knows_them_after_every_shrink() -> None:
    model, dense = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recipe = {"structure": "channel", "target": 0.6, "rounds": 3, "schedule": "linear",
              "compact": "every_round"}  # fmt: skip
    pruner = prunus.Pruner(model, recipe, optimizer, steps=9, example=X)
    sizes = []
    while not pruner.done:
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        agrees(dense, model, pruner.kept)
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert len(set(sizes)) > 2


def test_zeros_that_stay_in_the_small_model_stand_at_their_old_places() -> None:
    from prunus.progressive.shrinks import original_masks

    task = tiny_task()
    engine = prunus.progressive.engine.PruningEngine(
        task.model(),
        prunus.Recipe(structure="channel", target=0.5, compact="end"),
        example=task.example,
    )
    engine.cut(1.0)
    engine.shrink()
    small = torch.ones(engine.model[0].weight.shape, dtype=torch.bool)
    small[0, 0] = False
    masks = original_masks(engine.shrinks, {"0.weight": small})
    rows = prunus.progressive.shrinks.original_kept(engine.shrinks)["0.weight"][0]
    assert masks["0.weight"].shape == (16, 8)
    assert not masks["0.weight"][rows[0], 0]
    assert int(masks["0.weight"].sum()) == small.numel() - 1


def test_without_compaction_nothing_is_taken_out() -> None:
    assert prunus.prune(network(), {"structure": "channel", "target": 0.3}, example=X).kept == {}
