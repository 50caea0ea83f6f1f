"""Criteria of the literature against references in float64, written from the papers."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import InputError
from prunus.errors import RunError
from prunus.methods.criteria.ria import ria
from prunus.methods.signals import collect
from prunus.progressive.engine import PruningEngine
from prunus.progressive.phase import Run

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A convolution with a norm, functions without modules, and what reads a flat image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1))  # type: ignore[no-any-return]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for buffer in (model.norm.weight, model.norm.running_var):
            buffer.uniform_(0.5, 2)  # type: ignore[union-attr]
        for buffer in (model.norm.bias, model.norm.running_mean):
            buffer.normal_()  # type: ignore[union-attr]
    return model.double()


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 2, 4, 4, generator=generator, dtype=torch.float64)
    return [(x[:3], torch.tensor([0, 1, 2])), (x[3:], torch.tensor([0, 1, 2]))]


def scores(model: nn.Module, batches: list[Batch] | None, **recipe: Any) -> dict[str, Tensor]:
    """Of every group's units, as the engine chooses by them."""
    recipe = {"structure": "channel", "target": 0.5, **recipe}
    x = torch.zeros(2, 2, 4, 4, dtype=next(model.parameters()).dtype)
    engine = PruningEngine(model, recipe, calibration=batches, loss=loss, example=x)
    seen: dict[str, Tensor] = {}

    def spy(units: Any, cost: Any, target: float, limits: Any) -> Any:
        seen.update({g.name: units[g].clone() for g in units})
        return {g: limits[g].most for g in units}

    methods = dataclasses.replace(engine.selector.methods, allocation=spy)
    engine.selector = dataclasses.replace(engine.selector, methods=methods)
    engine.choose(0.0)
    return seen


def gradients(model: Net, batch: Batch) -> dict[str, Tensor]:
    with torch.enable_grad():
        model.eval()
        names = ["conv.weight", "head.weight"]
        found = torch.autograd.grad(loss(model, batch), [model.get_parameter(n) for n in names])
        model.train()
    return dict(zip(names, found, strict=True))


def test_taylor_squares_the_sum_over_all_coupled_weights_batch_by_batch(
    net: Net, batches: list[Batch]
) -> None:
    expected = torch.zeros(6, dtype=torch.float64)
    for batch in batches:
        grads = gradients(net, batch)
        for i in range(6):
            made = (grads["conv.weight"][i] * net.conv.weight[i]).sum()
            read = slice(4 * i, 4 * i + 4)
            made = made + (grads["head.weight"][:, read] * net.head.weight[:, read]).sum()
            expected[i] += made.detach() ** 2 / 2
    (found,) = scores(net, batches, criterion="taylor").values()
    torch.testing.assert_close(found, expected)


def test_of_single_weights_taylor_is_fisher(net: Net, batches: list[Batch]) -> None:
    one = scores(net, batches, criterion="taylor", structure="weight")
    other = scores(net, batches, criterion="fisher", structure="weight")
    for name in one:
        torch.testing.assert_close(one[name], other[name].double())


@pytest.mark.parametrize(("name", "settings"), [
    ("woodfisher", {"block_size": 7, "damping": 1e-4}),
    ("obert", {"block_size": 7, "damping": 1e-4}),
    ("woodfisher", {"damping": 1e-3}),
    ("obert", {"damping": 1e-3}),
])  # fmt: skip
def test_the_inverse_of_each_block_is_that_of_a_whole_matrix(
    name: str, settings: dict[str, Any], net: Net, batches: list[Batch]
) -> None:
    spec = {"name": name, **settings}
    found = scores(net, batches, criterion=spec, structure="weight")["conv.weight"]
    grads = torch.stack([gradients(net, b)["conv.weight"].flatten() for b in batches])
    weight = net.conv.weight.detach().flatten()
    size = settings.get("block_size", 1000 if name == "woodfisher" else 50)
    for start in range(0, len(weight), size):
        part = slice(start, start + size)
        fisher = grads[:, part].T @ grads[:, part] / len(grads)
        fisher += settings["damping"] * torch.eye(len(fisher), dtype=torch.float64)
        expected = weight[part] ** 2 / (2 * torch.linalg.inv(fisher).diagonal())
        torch.testing.assert_close(found[part], expected, rtol=1e-6, atol=1e-12)


def test_flow_is_the_product_of_absolute_weights_along_every_path() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scale = torch.tensor([1.0, -2.0, 0.5, 3.0])
    model[2].weight.data.copy_(scale)  # type: ignore[union-attr]
    x = torch.randn(5, 3)
    engine = PruningEngine(model, {"criterion": "synflow", "target": 0.5}, example=x)
    first, last = (model[i].weight.detach().double().abs() for i in (0, 3))  # type: ignore[union-attr]
    paths = 5 * torch.einsum("oh,h,hi->ohi", last, scale.double().abs(), first)
    look = engine.selector._context(model, engine.space, {})
    score = collect(engine.selector.methods.criterion, look)
    torch.testing.assert_close(score("0.weight"), paths.sum(0))
    torch.testing.assert_close(score("3.weight"), paths.sum(2))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items() if k != "2.weight")


def test_flow_in_rounds_empties_no_layer_where_one_cut_by_gradients_does() -> None:
    torch.manual_seed(0)
    sizes = [8, 64, 64, 64, 64, 2]
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*(x for layer in layers for x in (layer, nn.ReLU())))
    recipe = {
        "criterion": "synflow", "target": 0.99, "rounds": 20, "schedule": "geometric",
    }  # fmt: skip
    result = prunus.prune(model, recipe, example=torch.zeros(1, 8))
    assert result.sparsity == pytest.approx(0.99, abs=1e-4)
    assert len(result.rounds) == 21
    flow = torch.ones(8)
    for layer in layers:
        flow = layer.weight.detach().abs() @ flow
    assert bool(flow.any())


@pytest.mark.parametrize("way", [{}, {"structure": "channel"}])
def test_a_criterion_that_passes_ones_asks_for_an_example(way: dict[str, str]) -> None:
    with pytest.raises(InputError, match="pass example"):
        prunus.prune(nn.Linear(4, 4), {"criterion": "synflow", "target": 0.5, **way})


def train(model: nn.Module, run: Run) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    run.attach(optimizer)
    for batch in run.batches(DATA):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


DATA: list[Batch] = [
    (torch.randn(4, 5, generator=torch.Generator().manual_seed(i)), torch.tensor([0, 1, 2, 0]))
    for i in range(3)
]


@pytest.mark.parametrize("name", ["movement", "weight_change"])
def test_what_is_collected_while_training_is_of_the_weights_before_each_step(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    twin = nn.Linear(5, 3).double()
    twin.load_state_dict(model.state_dict())
    start, moved = twin.weight.detach().clone(), torch.zeros(3, 5, dtype=torch.float64)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.05)
    for x, y in DATA:
        optimizer.zero_grad()
        loss(twin, (x.double(), y)).backward()
        assert twin.weight.grad is not None
        moved -= twin.weight.grad * twin.weight.detach()
        optimizer.step()
    expected = moved if name == "movement" else (twin.weight.detach() - start).abs()
    recipe = {
        "criterion": name, "dense": "3it", "retrain": "1it", "rounds": 1, "target": 0.4,
    }  # fmt: skip
    result = prunus.prune(model, recipe, train=train)
    lowest = expected.flatten().argsort()[:6]
    assert not bool(result.masks["weight"].flatten()[lowest].any())
    assert int((~result.masks["weight"]).sum()) == 6


def test_a_loop_of_ones_own_collects_the_same_and_goes_on_where_it_was_saved() -> None:
    schedule = {"name": "linear", "every": "2it"}
    recipe = {"criterion": "movement", "target": 0.4, "schedule": schedule}

    def start() -> tuple[Any, ...]:
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, prunus.Pruner(model, recipe, optimizer, steps=6)

    def steps(parts: tuple[Any, ...], which: range) -> None:
        for i in which:
            parts[1].zero_grad()
            loss(parts[0], DATA[i % 3]).backward()
            parts[1].step()

    whole, again = start(), start()
    steps(whole, range(3))
    saved = copy.deepcopy([part.state_dict() for part in whole])
    steps(whole, range(3, 6))
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    steps(again, range(3, 6))
    assert torch.equal(whole[0].weight, again[0].weight)
    assert whole[2].sparsity == again[2].sparsity == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["movement", "weight_change", "fisher_running"])
def test_what_reads_the_training_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(InputError, match="reads the gradients of the training before a cut"):
        prunus.prune(nn.Linear(4, 2), {"criterion": name, "rounds": 1}, train=train)


def test_the_scale_is_that_of_the_norm_behind_a_channel(net: Net) -> None:
    (found,) = scores(net, None, criterion="bn_scale").values()
    torch.testing.assert_close(found, net.norm.weight.detach().abs())


def test_distances_are_between_filters_alone(net: Net) -> None:
    (found,) = scores(net, None, criterion="fpgm").values()
    filters = net.conv.weight.detach().flatten(1).tolist()
    expected = [sum(math.dist(a, b) for b in filters) for a in filters]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_zeros_are_counted_where_the_next_layer_reads(net: Net, batches: list[Batch]) -> None:
    (found,) = scores(net, batches, criterion="apoz").values()
    seen = []
    net.eval()
    for x, _ in batches:
        seen.append(F.max_pool2d(F.relu(net.norm(net.conv(x))), 2))
    images = torch.cat(seen)
    expected = [(images[:, i] != 0).double().mean().item() for i in range(6)]
    assert len({*expected}) > 3
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_the_trace_is_exact_where_the_hessian_is_diagonal() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    curve = torch.rand(3, 4, dtype=torch.float64)
    recipe = {
        "criterion": {"name": "hessian_trace", "probes": 1}, "structure": "neuron", "target": 0.4,
        "scope": {"include": ["*"]},
    }  # fmt: skip
    engine = PruningEngine(
        model, recipe, calibration=[0, 1],
        loss=lambda m, b: (curve * m.weight.square()).sum(),  # type: ignore[operator]
    )  # fmt: skip
    units = (2 * curve).sum(1) / (2 * 4) * model.weight.detach().square().sum(1)
    kept = engine.choose(1.0)["weight"].expand(3, 4).all(1)
    assert int(units.argmin()) == int((~kept).nonzero())


@pytest.mark.parametrize("reduce", ["mean", "sum", "max", "l2"])
@pytest.mark.parametrize("normalize", ["none", "mean", "max", "l2"])
def test_units_are_scored_by_what_the_recipe_says(reduce: str, normalize: str, net: Net) -> None:
    how = {"reduce": reduce, "normalize": normalize}
    (found,) = scores(net, None, unit_score=how).values()
    expected = []
    for i in range(6):
        read = net.head.weight[:, 4 * i : 4 * i + 4]
        sizes = torch.cat([net.conv.weight[i].flatten(), read.flatten()]).abs().tolist()
        expected.append({
            "mean": sum(sizes) / len(sizes), "sum": sum(sizes), "max": max(sizes),
            "l2": math.sqrt(sum(s * s for s in sizes)),
        }[reduce])  # fmt: skip
    by = {
        "none": 1.0, "mean": sum(expected) / 6, "max": max(expected),
        "l2": math.sqrt(sum(e * e for e in expected)),
    }[normalize]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64) / by)


def test_a_normalized_layer_competes_whatever_its_scale() -> None:
    def left(scale: float, **recipe: Any) -> list[int]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
        model[0].weight.data.mul_(scale)  # type: ignore[operator,union-attr]
        result = prunus.prune(model, {"target": 0.5, **recipe})
        return [int(m.sum()) for m in result.masks.values()]

    plain, even = left(100.0), left(100.0, unit_score={"normalize": "l2"})
    assert plain != even
    assert even == left(1.0, unit_score={"normalize": "l2"})


def test_scores_of_whole_units_have_nothing_to_reduce() -> None:
    with pytest.raises(InputError, match="scores whole units"):
        prunus.prune(nn.Linear(4, 2), {"criterion": "fpgm", "unit_score": "max"})


def test_a_layer_without_gradients_is_told_of_and_a_network_without_any_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})

    def used(m: nn.Module, x: Tensor) -> Tensor:
        return m["used"](x).square().mean()  # type: ignore[index,no-any-return]

    recipe = {"criterion": "sensitivity", "target": 0.3}
    result = prunus.prune(model, recipe, calibration=[torch.randn(8, 4)], loss=used)
    (note,) = [n for n in result.notes if "same score" in n]
    assert "idle.weight" in note
    assert "gradients vanish" in note
    with pytest.raises(RunError, match="and tells nothing apart"):
        prunus.prune(
            nn.Linear(4, 4), recipe, calibration=[torch.zeros(8, 4)],
            loss=lambda m, x: m(x).square().mean(),
        )  # fmt: skip


def test_an_empty_row_in_half_precision_scores_zero() -> None:
    weight = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).half()
    assert torch.equal(ria(weight, torch.ones(2, 2))[1], torch.zeros(2))
