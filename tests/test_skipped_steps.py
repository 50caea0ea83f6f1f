"""Steps that changed nothing do not count, however they are skipped."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus

INPUTS = torch.randn(32, 10, generator=torch.Generator().manual_seed(1))
CLASSES = torch.arange(32) % 3
FUSED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p, fused: torch.optim.AdamW(p, lr=0.01, fused=fused),
    "adam": lambda p, fused: torch.optim.Adam(p, lr=0.01, fused=fused),
    "sgd": lambda p, fused: torch.optim.SGD(p, lr=1e-5, fused=fused),
    "adagrad": lambda p, fused: torch.optim.Adagrad(p, lr=0.1, fused=fused),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 3))


def scaled(model: nn.Module, optimizer: Any, steps: int) -> Iterator[int]:
    """A loop whose first steps overflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for k in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(INPUTS), CLASSES) * 1e3
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        yield k


@pytest.mark.parametrize(
    ("name", "criterion"), [*zip(FUSED, itertools.cycle(["magnitude", "fisher_running"]))]
)
def test_a_fused_optimizer_counts_as_any_other(name: str, criterion: str) -> None:
    found = []
    for fused in (False, True):
        model = net()
        optimizer = FUSED[name](model.parameters(), fused=fused)
        recipe = {"target": 0.8, "criterion": criterion}
        pruner = prunus.Pruner(model, recipe, optimizer, steps=40)
        counts = [pruner.step for _ in scaled(model, optimizer, 40)]
        assert 0 < counts[-1] < 40
        assert counts[0] == 0
        found.append((counts, pruner.sparsity))
        assert all(torch.isfinite(t).all() for t in pruner.state_dict()["running"].values())
    assert found[0] == found[1]


def test_rounds_of_a_run_are_as_long_as_they_should_be() -> None:
    updates: list[int] = []

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        run.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**122)
        for _ in run.batches([0] * 40):
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(INPUTS), CLASSES) * 1e3).backward()
            scaler.step(optimizer)
            scaler.update()
        updates.append(int(optimizer.state[next(model.parameters())]["step"]))

    prunus.prune(net(), {"target": 0.5, "rounds": 2, "retrain": "5it"}, train=train)
    assert updates[0] == 5


def test_a_plain_train_that_only_overflows_is_an_error() -> None:
    def train(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        for _ in scaled(model, optimizer, 3):
            pass

    with pytest.raises(prunus.RunError, match="changed nothing"):
        prunus.prune(net(), {"target": 0.5, "rounds": 1}, train=train)


def test_a_step_without_any_gradient_does_not_count() -> None:
    """As where a loop skips a batch: Lightning calls the optimizer all the same."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = prunus.Pruner(model, {"target": 0.5}, optimizer, steps=4)
    for skipped in (False, True, False, True, False, False):
        optimizer.zero_grad()
        if not skipped:
            nn.functional.cross_entropy(model(INPUTS), CLASSES).backward()
        optimizer.step()
    assert pruner.step == 4


def test_an_optimizer_that_needs_no_gradients_counts() -> None:
    class Random(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                p.add_(0.01 * torch.randn_like(p))

    model = net()
    optimizer = Random(model.parameters())
    pruner = prunus.Pruner(model, {"target": 0.5}, optimizer, steps=4)
    for _ in range(4):
        optimizer.step()
    assert (pruner.step, pruner.sparsity) == (4, 0.5)


def test_an_optimizer_that_clears_its_gradients_counts() -> None:
    class Clearing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            self.zero_grad()

    model = net()
    optimizer = Clearing(model.parameters(), lr=0.1)
    pruner = prunus.Pruner(model, {"target": 0.5}, optimizer, steps=4)
    for _ in range(4):
        nn.functional.cross_entropy(model(INPUTS), CLASSES).backward()
        optimizer.step()
    assert (pruner.step, pruner.sparsity) == (4, 0.5)
    assert isinstance(model[0].weight, Tensor)  # type: ignore[index]


class Careful(torch.optim.Optimizer):
    """Skips a step whose gradient is too large, inside of it."""

    def __init__(self, params: Any, *, data: bool = False) -> None:
        super().__init__(params, {})
        self.data, self.taken = data, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        if not sum(p.grad.norm() for p in params) < 1e3:
            return
        self.taken += 1
        for p in params:
            (p.data if self.data else p).add_(p.grad, alpha=-0.01)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("factor", [1e6, float("nan")])
def test_an_optimizer_that_skips_by_itself_counts_its_real_steps(data: bool, factor: float) -> None:
    model = net()
    optimizer = Careful(model.parameters(), data=data)
    recipe = {"target": 0.8, "criterion": "fisher_running", "schedule": "cubic"}
    pruner = prunus.Pruner(model, recipe, optimizer, steps=10)
    for k in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(INPUTS), CLASSES)
        (loss * (factor if k % 2 else 1.0)).backward()
        optimizer.step()
        assert pruner.step == optimizer.taken
    pruner.finish()
    assert (pruner.step, pruner.sparsity) == (10, pytest.approx(0.8, abs=0.01))


def test_a_step_that_calls_the_step_of_its_base_class_is_one() -> None:
    class Decaying(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            found = super().step(closure)
            for p in self.param_groups[0]["params"]:
                p.data.mul_(0.999)
            return found

    model = net()
    torch.optim.SGD(model.parameters())  # from now on hooks run in the step of the base class, too
    optimizer = Decaying(model.parameters(), lr=0.1)
    pruner = prunus.Pruner(model, {"target": 0.5, "schedule": "cubic"}, optimizer, steps=6)
    counts = []
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(INPUTS), CLASSES).backward()
        optimizer.step()
        counts.append(pruner.step)
    assert counts == [1, 2, 3, 4, 5, 6]
