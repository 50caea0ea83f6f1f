"""Few numbers that learn in any loop: what they become, and what they leave alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import prunus
from prunus.errors import InputError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4))


def learned(model: nn.Module, numbers: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(numbers, 0.05, weight_decay=0.1)
    x, y = torch.randn(16, 6), torch.randint(4, (16,))
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def half(weight: Tensor) -> Tensor:
    return weight.abs() >= weight.abs().median()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_layers_learn_and_zeros_stay_zeros(given: bool, compiled: bool) -> None:
    model = network()
    masks = {"0.weight": half(model[0].weight), "3.weight": half(model[3].weight)}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    before, parameters = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    whole = torch.compile(model, backend="eager") if compiled else model
    with prunus.low_rank(whole, 2, masks=masks if given else None) as numbers:
        assert sum(p.numel() for p in numbers) == 2 * (6 + 8 + 8 + 4)
        assert [p for p in model.parameters() if p.requires_grad] == numbers
        learned(whole, numbers)
        wanted = whole.eval()(torch.ones(1, 6)).detach()
    assert list(model.state_dict()) == list(before)
    assert dict(model.named_parameters()) == parameters  # the very objects
    assert all(p.requires_grad for p in model.parameters())
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
        assert not torch.equal(model.get_parameter(name), before[name])
    for name in ("0.bias", "3.bias"):
        assert torch.equal(model.get_parameter(name), before[name])
    assert torch.allclose(model(torch.ones(1, 6)), wanted, atol=1e-6)


def test_what_raises_inside_leaves_the_model_as_it_was() -> None:
    model = network()
    model[3].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    def stopped() -> None:
        with prunus.low_rank(model) as numbers:
            learned(model, numbers)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    wants = {n: p.requires_grad for n, p in model.named_parameters()}
    assert wants == {"0.weight": True, "0.bias": True, "3.weight": True, "3.bias": False}
    assert type(model[0]) is nn.Linear


def test_some_layers_alone_learn_and_a_tied_head_stays() -> None:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.inner = nn.Embedding(6, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.words.weight

    model = Coder()
    with prunus.low_rank(model, 2) as numbers:
        assert len(numbers) == 2
    assert model.head.weight is model.words.weight
    with prunus.low_rank(network(), 1, include=["3"]) as numbers:
        assert [tuple(p.shape) for p in numbers] == [(1, 8), (4, 1)]
    with (
        pytest.raises(InputError, match="used elsewhere"),
        prunus.low_rank(model, include=["head"]),
    ):
        pass


def test_masks_that_are_enforced_hold_and_one_step_is_a_step_along_two_directions() -> None:
    model = network()
    result = prunus.prune(model, {"target": 0.5})
    prunus.enforce(model, result.masks, torch.optim.SGD(model.parameters(), 0.1))
    with prunus.low_rank(model, 4, masks=result.masks) as numbers:
        learned(model, numbers)
    for name, mask in result.masks.items():
        assert bool((model.get_parameter(name)[~mask] == 0).all())
    layer, x = nn.Linear(3, 2, bias=False), torch.tensor([[1.0, 2.0, 3.0]])
    weight = layer.weight.detach().clone()
    with prunus.low_rank(layer, 1, seed=5) as (a, b):
        row = a.detach().clone()
        layer(x).sum().backward()
        assert torch.allclose(b.grad, 2 * (x @ row.T).expand(2, 1))  # of W + 2BA, by hand
        torch.optim.SGD([a, b], 0.1).step()
    assert torch.allclose(layer.weight, weight - 0.1 * 4 * (x @ row.T).item() * row.expand(2, 3))


@pytest.mark.parametrize(("model", "words", "said"), [
    (nn.Conv2d(1, 1, 1), {}, "has no linear layer"),
    (nn.Linear(2, 2).to(torch.float8_e4m3fn), {}, "has no linear layer"),
    (nn.Linear(2, 2), {"include": 3}, "include is int 3"),
    (nn.Linear(2, 2), {"rank": 0}, "rank is 0"),
    (nn.Linear(2, 2), {"seed": -1}, "seed is -1"),
    (nn.Linear(2, 2), {"include": ["fc"]}, "matches no parameter"),
    (nn.Linear(2, 2), {"masks": {"weight": torch.ones(3)}}, "the mask of 'weight'"),
    (nn.Linear(2, 2, device="meta"), {}, "meta"),
    ("model", {}, "takes a model"),
])  # fmt: skip
def test_what_cannot_learn_is_refused(model: Any, words: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said), prunus.low_rank(model, **words):
        pass


def test_the_same_numbers_are_drawn_again_and_none_of_those_outside() -> None:
    drawn = []
    for number in (3, 3, 4):
        model, state = network(), torch.get_rng_state()
        with prunus.low_rank(model, seed=number) as numbers:
            drawn.append(numbers[0].detach().clone())
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
