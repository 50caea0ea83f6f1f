"""A compact model is a model: it is pruned again, by whatever route it became small."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus

THIRD = {"structure": "channel", "allocation": "uniform", "target": 0.3}


class Net(nn.Module):
    def __init__(self, literal: bool) -> None:
        super().__init__()
        self.literal = literal
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.last = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.last(torch.relu(self.inner(y.view(-1, 16) if self.literal else y)))


class Within(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.end = Net(literal=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.relu(self.net(x)))


ROUTES = {
    "sliced": lambda: Net(literal=False),
    "graph": lambda: Net(literal=True),
    "modules": Within,
}


def pictures(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 6, 6)


def small(model: nn.Module) -> tuple[nn.Module, prunus.Result]:
    """The masked model, and what a run that ends with compaction gives."""
    masked = copy.deepcopy(model)
    prunus.prune(masked, THIRD, example=pictures())
    return masked, prunus.prune(model, {**THIRD, "compact": "end"}, example=pictures())


@pytest.mark.parametrize("route", ROUTES)
def test_three_times_smaller_and_each_time_right(route: str, tmp_path: Path) -> None:
    model = ROUTES[route]().eval()
    dense = copy.deepcopy(model)
    sizes = [sum(p.numel() for p in model.parameters())]
    for turn in range(3):
        masked, result = small(model)
        assert result.compaction is not None
        assert turn or result.compaction.route == route
        model = result.model
        if turn:  # the first is pruned again as it is, the second and third from their files
            file = prunus.save(model, tmp_path / f"{turn}.safetensors")
            model = prunus.load(file, None if route == "graph" else copy.deepcopy(dense))
        for mode in (False, True):
            masked.train(mode), model.train(mode)
            x = pictures(5)
            torch.testing.assert_close(model(x), masked(x), rtol=1e-4, atol=1e-5)
        model.eval()
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_weights_of_a_graph_are_in_scope_by_their_use() -> None:
    _, result = small(Net(literal=True).eval())
    again = prunus.prune(result.model, {"target": 0.5}, example=pictures())
    assert set(again.masks) == {"conv.weight", "inner.weight", "last.weight"}
    assert again.sparsity == pytest.approx(0.5, abs=0.02)
