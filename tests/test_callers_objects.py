"""What a caller hands over is afterwards what it was before, or the change is named."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.deployment.calibration import inputs_of
from prunus.errors import InputError

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
CLASSES = (INPUTS.sum(1) > 0).long()


class Net(nn.Module):
    """Reads its width from a configuration that others share."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.a, self.norm = nn.Linear(6, config.intermediate_size), nn.BatchNorm1d(8)
        self.b = nn.Linear(config.intermediate_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.a(x)).relu().reshape(len(x), self.config.intermediate_size)
        out: Tensor = self.b(hidden)
        return out


def config() -> Any:
    return SimpleNamespace(intermediate_size=8, inner=SimpleNamespace(n_head=2))


def net(shared: Any = None) -> Net:
    torch.manual_seed(0)
    return Net(config() if shared is None else shared).eval()


CHANNELS = {"structure": "channel", "target": 0.5, "compact": "end"}


def test_a_shared_configuration_stays_the_callers(tmp_path: Path) -> None:
    shared = config()
    dense, other = net(shared), net(shared)
    expected = other(INPUTS)
    result = prunus.prune(copy.deepcopy(dense), CHANNELS, example=INPUTS)
    smaller = prunus.prune(dense, CHANNELS, example=INPUTS)
    assert dense.config is not shared
    assert dense.config.intermediate_size == 4
    prunus.save(smaller.model, tmp_path / "small.safetensors")
    opened: Any = prunus.load(tmp_path / "small.safetensors", model=net(shared))
    compacted: Any = prunus.compact(net(shared), result.masks, INPUTS).model
    for made in (opened, compacted):
        assert made.config.intermediate_size == 4
        torch.testing.assert_close(made(INPUTS), smaller.model(INPUTS))
    assert shared == config()
    assert torch.equal(other(INPUTS), expected)


def test_a_file_that_does_not_fit_changes_no_configuration(tmp_path: Path) -> None:
    small = prunus.prune(net(), CHANNELS, example=INPUTS).model
    prunus.save(small, tmp_path / "small.safetensors")
    shared = config()
    model = net(shared)
    model.b = nn.Linear(8, 1)
    with pytest.raises(InputError):
        prunus.load(tmp_path / "small.safetensors", model=model)
    assert model.config is shared == config()


def _freezes(model: nn.Module) -> None:
    model.requires_grad_(False)


def _trains(model: nn.Module) -> None:
    model.train()


def _moves_statistics(model: nn.Module) -> None:
    model.train()(torch.ones(4, 6) * 9)


def _learns(model: nn.Module) -> None:
    with torch.enable_grad():
        model.requires_grad_(True)(INPUTS).sum().backward()


def _hooks(model: nn.Module) -> None:
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)


def _counts(model: nn.Module) -> None:
    for module in model.modules():
        module.register_buffer("total_ops", torch.zeros(1))


def _replaces(model: Any) -> None:
    model.norm = nn.Identity()


def _casts(model: Any) -> None:
    model.double()


TRACES = (
    _freezes, _trains, _moves_statistics, _learns, _hooks, _counts, _replaces, _casts,
)  # fmt: skip


def all_of(model: nn.Module) -> Any:
    """Everything that code which only looks may have changed, as plain values."""
    state = {k: (v.dtype, v.tolist()) for k, v in model.state_dict().items()}
    parts = [(n, type(m).__name__, m.training, len(m._forward_hooks))
             for n, m in model.named_modules()]  # fmt: skip
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return state, parts, flags


def accuracy(model: nn.Module) -> float:
    return float((model(INPUTS).argmax(1) == CLASSES).double().mean())


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


Trace = Callable[[nn.Module], None]


@pytest.mark.parametrize("trace", TRACES)
def test_what_evaluates_leaves_no_trace(trace: Trace) -> None:
    def evaluate(model: nn.Module) -> float:
        found = accuracy(model)
        trace(model)
        return found

    model, other = net(), net()
    before = all_of(model)
    prunus.prune(model, {"target": 0.0}, evaluate=evaluate, test=evaluate)
    assert all_of(model) == before
    recipe = {"target": 0.0, "criterion": "fisher"}
    cast = pytest.raises(prunus.RunError, match="do gradients vanish")  # of weights that were cast
    with cast if trace is _casts else contextlib.nullcontext():
        prunus.prune(other, recipe, calibration=[INPUTS], loss=_then(trace))
    assert all_of(other) == before
    inputs_of(other, _then(trace), [INPUTS])
    assert all_of(other) == before


def _then(trace: Trace) -> Callable[[nn.Module, Tensor], Tensor]:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        found = loss_of(model, batch)
        trace(model)
        return found

    return loss


@pytest.mark.parametrize("trace", TRACES[:3])
def test_an_evaluation_while_it_is_deployed_leaves_no_trace(trace: Trace) -> None:
    def evaluate(model: nn.Module) -> float:
        found = accuracy(model)
        trace(model)
        return found

    model = net()
    before = all_of(model)
    prunus.deploy(model, example=INPUTS, runtime="eager", seconds=0.01, evaluate=evaluate)
    assert all_of(model) == before


def test_a_run_goes_on_as_if_nothing_had_been_evaluated() -> None:
    def run(evaluate: Callable[[nn.Module], float]) -> nn.Module:
        model = net()

        def train(model: nn.Module, run: prunus.Run) -> None:
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            run.attach(optimizer)
            model.train()
            for x, y in run.batches([(INPUTS, CLASSES)]):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()

        recipe = {
            "target": 0.5,
            "schedule": "linear",
            "rounds": 2,
            "retrain": "2it",
            "dense": "2it",
        }
        return prunus.prune(model, recipe, train=train, evaluate=evaluate).model

    def traces(model: nn.Module) -> float:
        found = accuracy(model)
        for trace in TRACES:
            if trace is not _replaces:
                trace(model)
        return found

    one, other = run(accuracy), run(traces)
    assert all_of(one) == all_of(other)


class Careless(Net):
    """A forward pass that changes what it is called with, and itself."""

    def forward(self, x: Tensor) -> Tensor:
        self.requires_grad_(False)
        return super().forward(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: prunus.measure(m, INPUTS, seconds=0.01, batch_sizes=(1,)),
        lambda m: prunus.units(m, INPUTS),
        lambda m: prunus.prune(m, {"target": 0.0}, example=INPUTS),
        lambda m: prunus.prune(m, {"target": 0.3, "order": "bottom_up"}, example=INPUTS),
        lambda m: prunus.prune(m, {**CHANNELS, "target": 0.3}, example=INPUTS),
        lambda m: prunus.deploy(m, example=INPUTS, runtime="eager", seconds=0.01),
    ],
    ids=["measure", "units", "prune", "order", "channel", "deploy"],
)
def test_a_forward_pass_of_ours_freezes_nothing(call: Callable[[nn.Module], Any]) -> None:
    torch.manual_seed(0)
    model = Careless(config())
    given = INPUTS.clone()
    call(model)
    assert all(p.requires_grad for p in model.parameters())
    assert model.training
    assert torch.equal(given, INPUTS)


def test_weights_that_were_written_over_are_named() -> None:
    def evaluate(model: Any) -> float:
        with torch.no_grad():
            model.b.weight.mul_(0.5)
        return 0.5

    with pytest.raises(InputError, match=r"evaluate changed the weights.*'b.weight'"):
        prunus.prune(net(), {"target": 0.5}, evaluate=evaluate)


def test_weights_that_were_cast_moved_or_replaced_are_put_back() -> None:
    def evaluate(model: Any) -> float:
        model.half()
        model.a.weight.data = model.a.weight.data * 2
        model.b.weight = nn.Parameter(torch.zeros(2, 8))
        return 0.5

    model = net()
    before = all_of(model)
    prunus.prune(model, {"target": 0.0}, evaluate=evaluate)
    assert all_of(model) == before


def test_weights_that_are_swapped_and_put_back_are_nobodys_business() -> None:
    averages = copy.deepcopy(net()).requires_grad_(False)

    def evaluate(model: nn.Module) -> float:
        kept = copy.deepcopy(model.state_dict())
        model.load_state_dict(averages.state_dict())
        found = accuracy(model)
        model.load_state_dict(kept)
        return found

    assert prunus.prune(net(), {"target": 0.5}, evaluate=evaluate).metric is not None


class Takes(nn.Module):
    """Takes things out of what it is given, as many a collator's partner does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        x, scale = batch.pop("x"), batch["more"].pop()
        out: Tensor = self.b(torch.relu(self.norm(self.a(x)))) * scale
        return out


def loss_that_takes(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    labels = batch.pop("labels")
    return nn.functional.cross_entropy(model(batch), labels)


USES: dict[str, Callable[[nn.Module, Any, Any], object]] = {
    "measure": lambda m, e, _: prunus.measure(m, e, batch_sizes=[1], seconds=0.005),
    "units": lambda m, e, _: prunus.units(m, example=e),
    "compact": lambda m, e, _: prunus.prune(m, CHANNELS, example=e),
    "deploy": lambda m, e, _: prunus.deploy(m, example=e, runtime="torch_export", seconds=0.005),
    "gradients": lambda m, _, b: prunus.prune(
        m, {"target": 0.5, "criterion": "fisher"}, calibration=b, loss=loss_that_takes
    ),
    "repair": lambda m, _, b: prunus.repair(
        m, b, repair="least_squares", reference=copy.deepcopy(m), loss=loss_that_takes
    ),
    "scan": lambda m, _, b: prunus.scan(m, b, loss_that_takes),
}


@pytest.mark.parametrize("use", USES)
def test_every_pass_may_take_things_out_of_what_it_is_given(use: str) -> None:
    example: Any = ({"x": INPUTS, "more": [1.0]},)
    batches = [{"x": INPUTS, "more": [2.0], "labels": CLASSES} for _ in range(2)]
    before = str((example, batches))
    USES[use](Takes().eval(), example, batches)
    assert str((example, batches)) == before
