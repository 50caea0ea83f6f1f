"""A model that becomes a graph trains as the masked model does, or says that it does not."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import helpers
import prunus
from helpers import pruned_both
from prunus import InputError
from prunus.compaction.verifying import everywhere
from prunus.compaction.verifying import gradients as verifying_gradients


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return grad[0]


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return -grad[0]


def under_no_grad(net: Net, h: Tensor) -> Tensor:
    with torch.no_grad():
        gate = net.b(h).sigmoid()
    return h * gate


def decorated(net: Net, h: Tensor) -> Tensor:
    @torch.no_grad()
    def target() -> tuple[Tensor, Tensor]:
        return net.b(h).sigmoid(), net.b(h).relu()

    gate, shift = target()
    return h * gate + shift


def enabled_inside(net: Net, h: Tensor) -> Tensor:
    with torch.no_grad():
        start = h * 2
        with torch.enable_grad():
            inner = net.b(start)
        end = net.b(h)
    return h + inner * end


def switched_by_hand(net: Net, h: Tensor) -> Tensor:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    gate = net.b(h).tanh()
    torch.set_grad_enabled(before)
    return h * gate + net.b(h)


def detached(net: Net, h: Tensor) -> Tensor:
    return h * net.b(h).detach()


def moving_average(net: Net, h: Tensor) -> Tensor:
    if net.training:
        with torch.no_grad():
            net.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
    return h - net.mean


def data_alone(net: Net, h: Tensor) -> Tensor:
    return h + net.b(h).data


def a_number_leaves_torch(net: Net, h: Tensor) -> Tensor:
    with torch.no_grad():
        gate = net.b(h) * len(net.c.bias.numpy())
    return h * gate


def in_place(net: Net, h: Tensor) -> Tensor:
    inner = net.b(h)
    with torch.no_grad():
        inner.mul_(2)
        inner[:, :3].add_(1)
    return h + inner * inner


def rescaled_once(net: Net, h: Tensor) -> Tensor:
    if not net.rescaled:
        with torch.no_grad():
            net.b.weight.div_(2)
            net.b.weight.mul_(3)
        net.rescaled = True
    return h + net.b(h)


def rescaled_each_time(net: Net, h: Tensor) -> Tensor:
    with torch.no_grad():
        scaled = net.b.weight.mul_(0.5)
    return h + nn.functional.linear(h, scaled) * net.b(h)


def checkpointed(net: Net, h: Tensor) -> Tensor:
    """Computed again in the backward pass, from what the weights are by then."""
    inner: Tensor = checkpoint(net.b, h, use_reentrant=False)
    return h + inner.tanh()


def straight_through(net: Net, h: Tensor) -> Tensor:
    return h + StraightThrough.apply(net.b(h) * 3)


def reversed_gradient(net: Net, h: Tensor) -> Tensor:
    return h + net.b(Reversal.apply(h))


def hooked(net: Net, h: Tensor) -> Tensor:
    inner = net.b(h)
    if inner.requires_grad:
        inner.register_hook(lambda grad: grad * 2)
    return h + inner


class Net(nn.Module):
    mean: Tensor

    def __init__(self, middle: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.middle = middle
        self.rescaled = False
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self, self.a(x).tanh())
        return self.c(h.view(-1, 8))  # a size in the code, so that this becomes a graph


class Wrapped(nn.Module):
    """The same inside a model that keeps its class."""

    def __init__(self, middle: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.head = Net(middle), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


KEPT = [
    under_no_grad, decorated, enabled_inside, switched_by_hand, detached, moving_average,
    data_alone, a_number_leaves_torch, in_place, rescaled_once, rescaled_each_time, checkpointed,
]  # fmt: skip
OWN = [straight_through, reversed_gradient, hooked]


def smaller(model: nn.Module) -> tuple[nn.Module, prunus.Result, str]:
    """Masked, smaller, and what is said of it."""
    torch.manual_seed(1)
    recipe = {"target": 0.3, "structure": "channel"}
    masked, result = pruned_both(model, recipe, torch.randn(3, 4))
    assert result.compaction is not None
    assert result.compaction.route in ("graph", "modules")
    return masked, result, " ".join(result.compaction.notes)


def backward(model: nn.Module) -> dict[str, Tensor | None]:
    twin = copy.deepcopy(model).double().train()
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
    (twin(x) ** 2).sum().backward()
    return {name: parameter.grad for name, parameter in twin.named_parameters()}


@pytest.mark.parametrize(("middle", "outer"), [*zip(KEPT, itertools.cycle([Net, Wrapped]))])
def test_a_graph_stops_gradients_where_the_code_does(
    middle: Callable[[Net, Tensor], Tensor], outer: type[Net | Wrapped]
) -> None:
    if middle is data_alone:
        helpers.older_than("2.10", "torch.export does not follow .data")
    if middle in (enabled_inside, rescaled_once):
        helpers.older_than("2.7", "torch.export does not tell these grad modes apart")
    masked, result, notes = smaller(outer(middle))
    assert "for inference alone" not in notes
    wanted = backward(masked)
    for name, found in backward(result.model).items():
        expected = wanted[name]
        if expected is None or found is None:
            assert expected is found, name
            continue
        for dim, index in enumerate(result.kept.get(name, ())):
            expected = expected if index is None else expected.index_select(dim, index)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("middle", "outer"), [*zip(OWN, itertools.cycle([Wrapped, Net]))])
def test_a_graph_that_would_learn_otherwise_answers_and_refuses_to_learn(
    middle: Callable[[Net, Tensor], Tensor], outer: type[Net | Wrapped], tmp_path: Path
) -> None:
    masked, result, notes = smaller(outer(middle))
    assert "for inference alone" in notes
    x = torch.randn(5, 4)
    file = prunus.save(result.model, tmp_path / "small.safetensors")
    model = None if outer is Net else outer(middle)
    for small in (result.model, copy.deepcopy(result.model), prunus.load(file, model)):
        torch.testing.assert_close(small(x), masked(x))
        with pytest.raises(InputError, match=r"gradient of '.*Train the masked model"):
            small(x).sum().backward()


@pytest.mark.parametrize("outer", [Net, Wrapped])
def test_what_is_made_of_a_graph_that_refuses_to_learn_refuses_it_too(
    outer: type[Net | Wrapped],
) -> None:
    _, result, _ = smaller(outer(straight_through))
    recipe = {"target": 0.3, "structure": "channel", "compact": "end"}
    again = prunus.prune(result.model, recipe, example=torch.randn(3, 4))
    assert again.compaction is not None
    assert any("for inference alone" in note for note in again.compaction.notes)
    with pytest.raises(InputError, match="Train the masked model"):
        again.model(torch.randn(3, 4)).sum().backward()


def test_a_model_of_which_not_all_is_held_says_that_gradients_were_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prunus.compaction.search.find_plan.__kwdefaults__", {"whole": 0})
    _, _, notes = smaller(Net(detached))
    assert "gradients were not compared" in notes


def test_no_round_is_trained_on_wrong_gradients() -> None:
    model = Net(straight_through)
    x = torch.randn(8, 4)

    def train(net: nn.Module, run: Any) -> None:
        run.step(net(x).sum())

    recipe = {"target": 0.5, "structure": "channel", "rounds": 2, "compact": "every_round"}
    with pytest.raises(InputError, match="Train the masked model"):
        prunus.prune(model, recipe, example=x, train=train, evaluate=lambda net: 1.0)


def test_a_module_that_keeps_its_code_keeps_its_gradients() -> None:
    class Own(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.middle(self, self.a(x).tanh()))

    masked, result = pruned_both(
        Own(straight_through), {"target": 0.3, "structure": "channel"}, torch.randn(3, 4)
    )
    assert result.compaction is not None
    assert result.compaction.route == "sliced"
    assert not result.compaction.notes
    assert backward(result.model).keys() == backward(masked).keys()


def test_a_graphs_answers_and_gradients_come_from_one_pass_of_each_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.up(x))
            assert hidden.shape[-1] == 8
            return self.down(hidden)

    alone: list[Any] = []
    compared: list[Any] = []
    real = everywhere.differing

    def differing(wanted: Any, model: nn.Module, state: Any, *more: Any) -> str:
        compared.append(wanted())
        return real(wanted, model, state, *more)

    monkeypatch.setattr(everywhere, "differing", differing)
    for module in (everywhere, verifying_gradients):
        monkeypatch.setattr(module, "gradients", lambda *given: alone.append(given))
    recipe = {"structure": "channel", "target": 0.4, "compact": "end", "allocation": "uniform"}
    result = prunus.prune(Stubborn(), recipe, example=torch.randn(2, 6))
    assert result.compaction is not None
    assert result.compaction.route == "graph"
    assert not alone
    assert len(compared) == 2  # with autograd and in train mode
    assert all(set(slopes) == {"up.weight", "up.bias", "down.weight", "down.bias"}
               for slopes in compared)  # fmt: skip
