"""Models whose code changes their own weights: once, or in every pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
HALF = {"structure": "channel", "allocation": "uniform", "target": 0.5}


class Rescaled(nn.Module):
    """Its first pass in eval mode divides a weight; a size in its code asks for a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 21), nn.Linear(21, 13), nn.Linear(13, 3)
        self.done = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not self.done:
            with torch.no_grad():
                self.b.weight.div_(4)
            self.done = True
        return self.c(F.relu(self.b(F.relu(self.a(x)).view(-1, 21))))


class Following(nn.Module):
    """A teacher follows by a moving average, in each pass in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 21), nn.Linear(8, 21), nn.Linear(21, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.training:
            with torch.no_grad():
                for mine, other in zip(self.b.parameters(), self.a.parameters(), strict=True):
                    mine.mul_(0.9).add_(0.1 * other)
        return [self.c(F.relu(layer(x)).view(-1, 21)) for layer in (self.a, self.b)]


def smaller(model: nn.Module) -> tuple[nn.Module, Any]:
    """The masked model and the compact one."""
    masks: Any = prunus.prune(copy.deepcopy(model), HALF, example=X)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            parameter.mul_(masks.masks.get(name, 1.0))
    return masked, prunus.compact(model, masks.masks, X)


@pytest.mark.parametrize("kind", [Rescaled, Following])
def test_an_analysis_leaves_a_models_weights_alone(kind: type[nn.Module]) -> None:
    model = kind().eval()
    before = copy.deepcopy(model.state_dict())
    smaller(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_the_first_pass_changes_is_changed_once() -> None:
    torch.manual_seed(0)
    masked, found = smaller(Rescaled().eval())
    assert found.route == "graph"
    assert any("b.weight for good" in note for note in found.notes)
    expected = masked(X)
    for _ in range(2):
        torch.testing.assert_close(found.model(X), expected)
        torch.testing.assert_close(masked(X), expected)


def test_what_every_pass_changes_is_changed_in_every_pass() -> None:
    torch.manual_seed(0)
    masked, found = smaller(Following().eval())
    for training in (False, True, True, False):
        got, expected = found.model.train(training)(X), masked.train(training)(X)
        torch.testing.assert_close(got, expected)
