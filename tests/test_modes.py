"""Training stays training and evaluation evaluation, whatever a model's modules have become."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus._common.modules import evaluating, keeping_modes

X = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3
RECIPE: dict[str, Any] = {
    "structure": "channel", "target": 0.5, "rounds": 2, "retrain": "2it", "schedule": "linear",
    "compact": "every_round",
}  # fmt: skip


class Plain(nn.Module):
    """Nothing in its code says how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.drop(self.norm(self.a(x))))


class Counted(Plain):
    """Its width is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.drop(self.norm(self.a(x))).view(-1, self.width))


class Written(Plain):
    """Its width is written in its code."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.drop(self.norm(self.a(x))).view(-1, 16))


class Whole(Written):
    """The model itself, with its width in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(super().forward(x))


def made(route: str) -> nn.Module:
    torch.manual_seed(0)
    if route == "graph":
        return Whole()
    block = {"sliced": Plain, "attributes": Counted, "modules": Written}[route]()
    return nn.Sequential(block, nn.Linear(8, 3))


ROUTES = ("sliced", "attributes", "modules", "graph")


def switched_on(model: nn.Module) -> tuple[bool, bool]:
    """Whether dropout drops, and whether batch norms gather statistics."""
    before = {n: b.clone() for n, b in model.named_buffers()}
    with torch.no_grad():
        one, two = model(X), model(X)
    moved = any(not torch.equal(b, before[n]) for n, b in model.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
    return not torch.equal(one, two), moved


def accuracy(model: nn.Module) -> float:
    assert switched_on(model) == (False, False)
    return float((model(X).argmax(1) == Y).float().mean())


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


SEES = {"calibration": [(X, Y)], "loss": loss}


@pytest.mark.parametrize(
    ("route", "criterion"),
    [*((route, "fisher") for route in ROUTES), ("graph", "magnitude"), ("sliced", "sensitivity")],
)
def test_a_train_function_that_never_calls_train_trains_in_every_round(
    route: str, criterion: str
) -> None:
    seen: list[tuple[bool, bool]] = []

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run.attach(optimizer)
        for batch in run.batches([(X, Y)] * 2):
            seen.append(switched_on(model))
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

    model = made(route)
    result = prunus.prune(model, {**RECIPE, "criterion": criterion}, train=train,
                          evaluate=accuracy, example=X, **SEES)  # fmt: skip
    assert result.compaction is not None
    assert result.compaction.route == route
    assert seen == [(True, True)] * 4
    assert switched_on(result.model) == (True, True)
    assert switched_on(result.model.eval()) == (False, False)


@pytest.mark.parametrize(
    ("route", "max_drop", "criterion"),
    [  # 1: every round is accepted; -1: none
        ("sliced", 1.0, "magnitude"), ("sliced", -1.0, "fisher"),
        ("attributes", 1.0, "fisher"), ("attributes", -1.0, "magnitude"),
        ("modules", 1.0, "magnitude"), ("modules", -1.0, "fisher"),
    ],
)  # fmt: skip
def test_a_loop_of_ones_own_goes_on_training_between_cuts(
    route: str, max_drop: float, criterion: str
) -> None:
    model = made(route)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recipe = {**RECIPE, "criterion": criterion, "guard": {"better": "higher", "max_drop": 0.1}}
    calls = []

    def evaluate(model: nn.Module) -> float:
        accuracy(model)
        calls.append(1)
        return max_drop * len(calls)

    pruner = prunus.Pruner(model, recipe, optimizer, evaluate=evaluate, example=X, **SEES)
    while not pruner.done:
        assert switched_on(model) == (True, True)
        optimizer.zero_grad()
        loss(model, (X, Y)).backward()
        optimizer.step()
    assert {r.verdict for r in pruner.rounds[1:]} == {"accepted" if max_drop > 0 else "rejected"}
    assert switched_on(model) == (True, True)


@pytest.mark.parametrize("route", ROUTES)
def test_a_model_given_in_eval_mode_comes_back_in_eval_mode(route: str) -> None:
    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05)
        run.attach(optimizer)
        for batch in run.batches([(X, Y)] * 2):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

    result = prunus.prune(made(route).eval(), RECIPE, train=train, evaluate=accuracy, example=X)
    assert not any(m.training for m in result.model.modules())
    assert switched_on(result.model) == (False, False)


@pytest.mark.parametrize("route", ROUTES)
def test_a_frozen_batch_norm_stays_frozen_round_after_round(route: str) -> None:
    seen = []

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run.attach(optimizer)
        for batch in run.batches([(X, Y)] * 2):
            seen.append(switched_on(model))
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

    model = made(route)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    prunus.prune(model, RECIPE, train=train, evaluate=accuracy, example=X)
    assert seen == [(True, False)] * 4


class Merging(nn.Module):
    """As an adapter that adds its weight to another's in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        self.merged = not mode
        super().train(mode)
        return self


def test_evaluating_tells_modules_their_mode_by_their_own_train() -> None:
    model = nn.Sequential(nn.Sequential(Merging(), nn.Dropout().eval()), nn.Dropout())
    modes = [m.training for m in model.modules()]
    with evaluating(model):
        assert model[0][0].merged
        assert not any(m.training for m in model.modules())
    assert not model[0][0].merged
    assert [m.training for m in model.modules()] == modes


def test_modes_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [m.training for m in model.modules()] == [True, True, False]


def test_a_module_that_took_anothers_place_gets_its_mode() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout()).eval(), nn.Dropout())
    with keeping_modes(model):
        model[0] = nn.Sequential(nn.Dropout(), nn.Dropout())
    assert [m.training for m in model.modules()] == [True, False, False, False, True]


@pytest.mark.parametrize("kind", [F.dropout, F.alpha_dropout, F.feature_alpha_dropout])
def test_chance_that_is_always_on_stays_on_in_a_graph(kind: Any, tmp_path: Path) -> None:
    class Doubting(Whole):
        def forward(self, x: Tensor) -> Tensor:
            h = F.selu(self.norm(self.a(x))).view(-1, 16)
            return self.out(self.b(kind(h, 0.5, training=True)))  # type: ignore[no-any-return]

    model = Doubting().eval()
    masks = prunus.prune(copy.deepcopy(model), {"structure": "channel", "target": 0.5}, example=X)
    small = prunus.compact(model, masks.masks, X)
    assert small.route == "graph"
    again = prunus.load(small.save(tmp_path / "small.safetensors"))
    for graph in (small.model, again):
        for training in (False, True, False):
            assert switched_on(graph.train(training)) == (True, training)
