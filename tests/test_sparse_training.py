"""Retraining under masks by the sparse kernels: the gradients of dense loops, where faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import prunus
from prunus.errors import InputError, Interrupted
from prunus.kernels import LACKING, usable
from prunus.progressive.engine import PruningEngine
from prunus.pruning import sparse_training
from prunus.pruning.enforce import Enforcer

if not usable():
    pytest.skip(LACKING, allow_module_level=True)

RECIPE: dict[str, Any] = {"target": 0.9, "allocation": "uniform", "sparse_training": True}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every layer that ran sparse; every layer does, however it measures."""
    seen: list[int] = []
    run = sparse_training.Layouts.__call__

    def watched(self: Any, *given: Any) -> Tensor:
        seen.append(self.rows)
        return run(self, *given)

    monkeypatch.setattr(sparse_training.Layouts, "__call__", watched)
    monkeypatch.setattr(sparse_training, "_step_time", lambda way, *given: way is F.linear)
    return seen


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 5)
    )


def trained(recipe: dict[str, Any], steps: int = 6) -> tuple[nn.Module, list[Tensor]]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = prunus.Pruner(
        model, {**recipe, "schedule": {"name": "one_shot"}}, optimizer, steps=steps
    )
    make = torch.Generator().manual_seed(1)
    answers = []
    for _ in range(steps):
        x, y = torch.randn(16, 30, generator=make), torch.randint(5, (16,), generator=make)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        answers.append(loss.detach())
    assert pruner.sparsity > 0
    return model, answers


def test_a_loop_trains_as_it_does_densely(calls: list[int]) -> None:
    sparse, losses = trained(RECIPE)
    assert {40, 20} <= set(calls)
    dense, right = trained({**RECIPE, "sparse_training": False})
    torch.testing.assert_close(losses, right)
    for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one, other)
        assert (one == 0).equal(other == 0)


def test_masks_that_change_are_followed(calls: list[int]) -> None:
    model, enforcer = network().train(), Enforcer()
    x = torch.randn(8, 30)
    with sparse_training.SparseTraining().over(model, enforcer):
        for sparsity in (0.9, 0.6):
            mask = torch.rand(40, 30) > sparsity
            with torch.no_grad():
                model[0].weight.mul_(mask)
            enforcer.set_masks(model, {"0.weight": mask})
            right = nn.Sequential(*model)(x)  # another root: its hooks are not these
            torch.testing.assert_close(model(x), right)
    assert calls == [40, 40]
    model(x)
    assert calls == [40, 40]


def test_evaluation_and_steps_that_read_all_gradients_are_dense(calls: list[int]) -> None:
    model, enforcer = network(), Enforcer()
    enforcer.set_masks(model, {"0.weight": torch.rand(40, 30) > 0.9})
    x = torch.randn(8, 30)
    with sparse_training.SparseTraining().over(model, enforcer):
        model.eval()(x)
        with torch.no_grad():
            model.train()(x)
        enforcer.captured = {}
        model(x)
        assert calls == []
        enforcer.captured = None
        model(x)
        assert calls == [40]
        with pytest.raises(RuntimeError):
            model(torch.randn(8, 31))
        model(x)
    assert calls == [40, 40]


def test_regrowth_by_gradient_chooses_the_weights_that_it_chooses_densely(calls: list[int]) -> None:
    recipe = {**RECIPE, "regrow": {"name": "rigl", "every": "2it", "end": "5it"}}
    sparse, _ = trained(recipe)
    assert calls
    dense, _ = trained({**recipe, "sparse_training": False})
    for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        assert (one == 0).equal(other == 0)


def test_layers_that_are_not_faster_and_those_with_few_zeros_stay_dense(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_training, "_step_time", lambda way, *given: way is not F.linear)
    trained(RECIPE)
    assert calls == []
    monkeypatch.setattr(sparse_training, "_step_time", lambda way, *given: way is F.linear)
    trained({**RECIPE, "target": 0.3})
    assert calls == []


def test_measuring_changes_no_gradient_and_no_random_state() -> None:
    model, enforcer = network(), Enforcer()
    enforcer.set_masks(model, {"0.weight": torch.rand(40, 30) > 0.9})
    state = torch.get_rng_state()
    with sparse_training.SparseTraining().over(model, enforcer):
        model(torch.ones(8, 30))
    assert torch.get_rng_state().equal(state)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("frozen", [True, False])
def test_layers_that_are_frozen_train_on_and_those_checkpointed_run_dense(
    frozen: bool, calls: list[int]
) -> None:
    model, enforcer = network(), Enforcer()
    enforcer.set_masks(model, {"0.weight": torch.rand(40, 30) > 0.9})
    model[0].requires_grad_(not frozen)
    if not frozen:
        inner = model[0].forward
        model[0].forward = lambda x: checkpoint(inner, x, use_reentrant=False)  # type: ignore
    with sparse_training.SparseTraining().over(model, enforcer):
        model(torch.ones(8, 30)).sum().backward()
    assert calls == ([40] if frozen else [])
    assert (model[0].weight.grad is None) == frozen


def test_a_frozen_layer_is_timed_forward_alone() -> None:
    layer = nn.Linear(4, 4).requires_grad_(False)
    assert sparse_training._step_time(F.linear, torch.ones(2, 4), layer.weight, layer.bias) > 0


def test_without_kernels_a_recipe_that_wants_them_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse_training, "usable", list)
    with pytest.raises(InputError, match="sparse_training: the sparse kernels are not compiled"):
        PruningEngine(network(), RECIPE)
    assert PruningEngine(network(), {"target": 0.5}).sparsity == 0


def test_a_run_that_is_stopped_goes_on_with_what_it_had_timed(
    monkeypatch: pytest.MonkeyPatch, calls: list[int], tmp_path: Path
) -> None:
    """To the same bits, though the machine would now find every layer faster densely."""

    def run(folder: Path | None, stop: int = -1) -> prunus.Result:
        taken = 0

        def train(model: nn.Module, run: prunus.Run) -> None:
            nonlocal taken
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            run.attach(optimizer)
            for x, y in run.batches(loader):
                optimizer.zero_grad()
                F.cross_entropy(model.train()(x), y).backward()
                optimizer.step()
                taken += 1

        recipe = {**RECIPE, "dense": "4it", "rounds": 1, "retrain": "8it", "snapshot": "2it"}
        return prunus.prune(
            network(), recipe, train=train, folder=folder, should_stop=lambda: taken == stop
        )

    make = torch.Generator().manual_seed(1)
    loader = [(torch.randn(16, 30, generator=make), torch.arange(16) % 5) for _ in range(4)]
    whole = run(None)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", stop=8)
    monkeypatch.setattr(sparse_training, "_step_time", lambda way, *given: way is not F.linear)
    before = len(calls)
    resumed = run(tmp_path / "run")
    assert len(calls) > before
    for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
