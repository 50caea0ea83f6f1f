"""Layers that standardize their own weights: what is cut of the fan-in is counted on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import InputError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ASKED = {"structure": {"name": "channel", "hidden": True}, "target": 0.4}


def standard(w: Tensor) -> Tensor:
    dims = tuple(range(1, w.dim()))
    var, mean = torch.var_mean(w, dim=dims, keepdim=True, unbiased=False)
    return (w - mean) / torch.sqrt(var + 1e-5)


class Own(nn.Conv2d):
    """Qiao et al. 2019, arXiv:1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, standard(self.weight), self.bias, self.stride, self.padding)


class ByBatchNorm(nn.Conv2d):
    """With a gain, as NFNets write it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        scale = self.gain.view(-1) * self.scale
        w = F.batch_norm(rows, None, None, weight=scale, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, w.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Standard(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return standard(w)


def parametrized(*args: Any, **kwargs: Any) -> nn.Module:
    layer = nn.Conv2d(*args, **kwargs)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Standard())
    return layer


LAYERS = {"own": Own, "by batch norm": ByBatchNorm, "parametrized": parametrized}


def network(layer: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        layer(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), layer(8, 12, 3, padding=1),
        nn.ReLU(), layer(12, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_the_old_fan_in_is_counted(kind: str, tmp_path: Path) -> None:
    model = network(LAYERS[kind])
    dense = sum(p.numel() for p in model.parameters())
    assert prunus.units(model, X, hidden=True).total == 4 + 12 + 8  # pairs behind a group norm
    result = prunus.prune(copy.deepcopy(model), ASKED, example=X)
    small = prunus.compact(result.model, result.masks, X)
    assert small.route == "modules"
    assert small.error < 1e-12
    assert sum(p.numel() for p in small.model.parameters()) < 0.7 * dense
    for images in (X, torch.randn(3, 3, 6, 10)):  # other batches and sizes
        assert torch.allclose(small.model(images), result.model(images), atol=1e-5)
    again = prunus.load(small.save(tmp_path / "small.safetensors"), model=network(LAYERS[kind]))
    assert torch.equal(again(X), small.model(X))


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_without_the_request_its_inputs_stay(kind: str) -> None:
    why = " ".join(p.why for p in prunus.units(network(LAYERS[kind]), X).pinned)
    assert "looks at every index" in why or "statistics count every index" in why
    small = prunus.prune(network(LAYERS[kind]), {**ASKED, "structure": "channel", "compact": "end"},
                         example=X).model  # fmt: skip
    assert all(isinstance(small[i], nn.Conv2d) for i in (0, 3, 5))


def test_training_goes_on_as_under_masks() -> None:
    def train(model: nn.Module, run: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        run.attach(optimizer)
        for _ in run.batches([None] * 4):
            optimizer.zero_grad()
            F.cross_entropy(model(X.double()), torch.tensor([0, 2])).backward()
            optimizer.step()

    found = [
        prunus.prune(
            network(ByBatchNorm).double(),
            {**ASKED, "rounds": 1, "retrain": "4it", "compact": compact},
            train=train, example=X.double(),
        ).model(X.double())
        for compact in ("none", "every_round")
    ]  # fmt: skip
    assert torch.allclose(*found, atol=1e-10)


def test_a_linear_layer_by_its_standard_deviation() -> None:
    class Line(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight - self.weight.mean(1, keepdim=True)
            return F.linear(x, w / (self.weight.std(1, keepdim=True) + 1e-5), self.bias)

    torch.manual_seed(0)
    model, x = (
        nn.Sequential(Line(6, 8), nn.ReLU(), Line(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        X[:, :, 0],
    )
    x = torch.randn(4, 6)
    result = prunus.prune(model, ASKED, example=x)
    small = prunus.compact(result.model, result.masks, x)
    assert (small.route, type(small.model[0])) == ("modules", Line)
    assert small.error < 1e-12


def test_statistics_that_are_kept_are_no_standardized_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.last = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 2)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            w = F.batch_norm(self.rows, self.mean.clone(), self.var.clone(), training=True)
            return self.last(F.relu(F.linear(x, w)))

    with pytest.raises(InputError, match="no unit"):
        prunus.prune(Net(), {**ASKED, "scope": {"include": ["rows"]}}, example=torch.randn(2, 4))
