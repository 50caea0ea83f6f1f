"""What single criteria and signals are, beside the laws that all obey."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import InputError
from prunus.methods.signals import SignalContext
from prunus.methods.signals.hessian_grad import hessian_grad
from prunus.methods.signals.input_norm import input_norm

Batch = tuple[Tensor, Tensor]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.norm, self.drop, self.head = nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).tanh().mean((2, 3))))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def context(model: nn.Module, batches: list[Batch], **changes: Any) -> SignalContext:
    parameters = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    values: dict[str, Any] = {
        "model": model, "parameters": parameters, "calibration": batches, "loss": loss,
        "seed": 0, "running": None, **changes,
    }  # fmt: skip
    return SignalContext(**values)


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 2, 5, 5, generator=generator)
    return [(x[:4], torch.tensor([0, 1, 2, 0])), (x[4:], torch.tensor([1, 2]))]


def test_the_norm_is_of_what_each_weight_multiplies(
    small: Small, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = input_norm(context(small, batches))
    twin = copy.deepcopy(small).double().eval()
    images = torch.cat([x for x, _ in batches]).double()
    windows = F.unfold(images, 3, padding=1).view(6, 2, 9, -1)
    expected = windows.square().mean((0, 3)).sqrt()  # by channel and place in the kernel
    for filter_ in range(4):
        of_group = expected[filter_ // 2].view(1, 3, 3)
        torch.testing.assert_close(found["conv.weight"][filter_].double(), of_group)
    features = twin.norm(twin.conv(images)).tanh().mean((2, 3))
    wanted = features.square().mean(0).sqrt().expand(3, 4)
    torch.testing.assert_close(found["head.weight"].double(), wanted.detach(), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("prunus._common.unfolding.CHUNK", 1)
    in_parts = input_norm(context(small, batches))
    torch.testing.assert_close(in_parts["conv.weight"], found["conv.weight"])
    assert not small.conv._forward_hooks
    assert small.training


@pytest.mark.parametrize(("layer", "more"), [
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, bias=False), 1),
    (nn.ConvTranspose2d(4, 6, (2, 3), dilation=2, groups=2, bias=False), 0),
])  # fmt: skip
def test_the_norm_of_a_transposed_convolution_is_what_each_weight_alone_would_give(
    layer: nn.ConvTranspose2d, more: int
) -> None:
    x = torch.randn(3, 4, 4, 4) * torch.tensor([0.1, 1.0, 2.0, 3.0]).view(4, 1, 1)
    size = [n + more for n in layer(x).shape[2:]]
    model = nn.ModuleDict({"up": layer})
    given = context(model, [x], loss=lambda m, b: m["up"](b, output_size=size).sum())
    found = input_norm(given)["up.weight"]
    for place in [(0, 0, 0, 0), (1, 2, 1, 1), (2, 0, 0, 2), (3, 1, 1, 0)]:
        alone = copy.deepcopy(layer)
        with torch.no_grad():
            alone.weight.zero_()
            alone.weight[place] = 1.0
            answer = alone(x, output_size=size)
        mean = answer.square().sum() / (answer.numel() / 6)  # of the one channel that is not zero
        torch.testing.assert_close(found[place], mean.sqrt(), rtol=1e-4, atol=1e-6)


def test_the_hessian_times_the_gradient_is_the_slope_of_half_its_square(
    small: Small, batches: list[Batch]
) -> None:
    model = small.double()
    wide = [(x.double(), y) for x, y in batches]
    found = hessian_grad(context(model, wide))["head.weight"].double()

    def half() -> Tensor:
        twin = copy.deepcopy(model).eval()
        every = [p for n, p in twin.named_parameters() if p.dim() > 1]
        with torch.enable_grad():
            slopes = [torch.autograd.grad(loss(twin, b), every) for b in wide]
        return sum(((a + b) / 2).square().sum() for a, b in zip(*slopes, strict=True)) / 2

    step = 1e-5
    for place in [(0, 0), (2, 3)]:
        with torch.no_grad():
            model.head.weight[place] += step
            above = half()
            model.head.weight[place] -= 2 * step
            below = half()
            model.head.weight[place] += step
        expected = (above - below) / (2 * step)
        torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("criterion", ["wanda", "ria", "grasp"])
def test_they_prune_a_network_and_leave_no_trace(
    criterion: str, small: Small, batches: list[Batch]
) -> None:
    recipe = {"target": 0.5, "criterion": criterion}
    small.conv.weight.requires_grad_(False)
    result = prunus.prune(small, recipe, calibration=batches, loss=loss)
    assert result.sparsity == pytest.approx(0.5, abs=0.02)
    assert all(p.grad is None for p in small.parameters())
    assert [p.requires_grad for p in small.parameters()].count(False) == 1


def test_wanda_by_rows_takes_the_same_number_from_each(small: Small, batches: list[Batch]) -> None:
    recipe = {"target": 0.5, "criterion": "wanda", "allocation": "per_neuron"}
    prunus.prune(small, recipe, calibration=batches, loss=loss)
    assert (small.head.weight == 0).sum(1).tolist() == [2, 2, 2]


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(5, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head, self.idle = nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.head(self.mix(x, x, x)[0].mean(1))


@pytest.mark.parametrize(("include", "message"), [
    (("mix.in_proj_weight",), "'mix.in_proj_weight' is no weight of a linear layer"),
    (("idle.weight",), "'idle.weight' belongs to a layer that does not run"),
])  # fmt: skip
def test_what_the_norm_cannot_know_is_named(include: tuple[str, ...], message: str) -> None:
    batch = torch.randint(0, 5, (2, 3)), torch.tensor([0, 1])
    recipe = {
        "target": 0.5, "criterion": "wanda", "scope": {"include": (*include, "head.weight")},
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        prunus.prune(Embedded(), recipe, calibration=[batch], loss=loss)
    with pytest.raises(InputError, match="reads calibration data"):
        prunus.prune(Embedded(), recipe)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def left(allocation: Any, **weights: Tensor) -> list[int]:
    model = Two()
    for name, weight in weights.items():
        model.get_parameter(f"{name}.weight").data.copy_(weight)
    prunus.prune(model, {"target": 0.5, "allocation": allocation})
    return [int((model.get_parameter(f"{n}.weight") != 0).sum()) for n in ("first", "last")]


def test_lamp_is_the_same_whatever_the_size_of_a_layers_weights() -> None:
    torch.manual_seed(0)
    first, last = torch.randn(4, 4), torch.randn(4, 4)
    counts = left("lamp", first=first, last=last)
    assert counts == left("lamp", first=1000 * first, last=last)
    assert sum(counts) == 16
    assert left("global", first=1000 * first, last=last) != counts


def test_layers_with_outliers_stay_denser_and_totals_are_exact() -> None:
    even = torch.ones(4, 4)
    rare = torch.ones(4, 4)
    rare[0, 0] = 100.0
    assert left("owl", first=even, last=even) == [8, 8]
    found = left({"name": "owl", "spread": 0.2}, first=even, last=rare)
    # densities 0.5 ± 0.2: 16 · 0.3 and 16 · 0.7
    assert found == [5, 11]


def test_densities_fall_by_equal_steps_with_depth() -> None:
    even = torch.ones(4, 4)
    assert left({"name": "arithmetic", "slope": 0.5}, first=even, last=even) == [12, 4]
    assert left({"name": "arithmetic", "slope": -0.5}, first=even, last=even) == [4, 12]
    assert left({"name": "arithmetic", "slope": 0}, first=even, last=even) == [8, 8]


class ByName(nn.Module):
    """Calls every layer by the name of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm(input=self.first(input=x)).relu()
        return self.last(input=read)  # type: ignore[no-any-return]


class ByPlace(ByName):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("recipe", [
    *({"criterion": name} for name in ("wanda", "ria", "synflow", "fisher", "snip")),
    {"criterion": "apoz", "structure": "channel"},
    *({"repair": name} for name in ("batch_norm", "bias_correction", "least_squares")),
])  # fmt: skip
def test_layers_that_are_called_by_name_are_looked_into_like_others(recipe: dict[str, Any]) -> None:
    torch.manual_seed(0)
    by_name, by_place = ByName(), ByPlace()
    by_place.load_state_dict(by_name.state_dict())
    batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(3)]
    for model in (by_name, by_place):
        prunus.prune(model, {"target": 0.5, **recipe}, calibration=batches, loss=loss,
                     example=batches[0][0])  # fmt: skip
    for name, value in by_place.state_dict().items():
        assert torch.equal(by_name.state_dict()[name], value), name


class Sharing(nn.Module):
    """Two layers that share a weight, called in turn or one of them twice."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.enter, self.last, self.twice = nn.Linear(4, 4), nn.Linear(4, 3), twice

    def forward(self, x: Tensor) -> Tensor:
        again = self.first if self.twice else self.second
        hidden = self.first(self.enter(x).relu()).relu() * 5
        return self.last(again(hidden).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("recipe", [
    {"criterion": "wanda"}, {"criterion": "ria"}, {"criterion": "synflow"},
    {"criterion": "apoz", "structure": "channel"},
])  # fmt: skip
def test_a_weight_that_layers_share_is_judged_as_in_one_layer_called_twice(
    recipe: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    shared, twice = Sharing(twice=False), Sharing(twice=True)
    twice.load_state_dict(shared.state_dict())
    batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(3)]
    masks = [
        prunus.prune(model, {"target": 0.5, **recipe}, calibration=batches, loss=loss,
                     example=batches[0][0]).masks
        for model in (shared, twice)
    ]  # fmt: skip
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def test_zeros_are_counted_where_a_transposed_convolution_reads() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 5, 3))
    x = torch.randn(4, 3, 6, 6)
    active = (model[:2](x) > 0).float().mean((0, 2, 3))
    recipe = {"target": 0.5, "criterion": "apoz", "structure": "channel"}
    found = prunus.prune(model, recipe, calibration=[x], loss=lambda m, b: m(b).sum(), example=x)
    masks = found.masks
    stays = masks["0.weight"].flatten(1).any(1)
    assert 0 < int(stays.sum()) < 8
    assert active[stays].min() > active[~stays].max()
