"""The modules inside a model that became a graph: what is asked of them holds, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import InputError, MissingError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
CHANNELS: dict[str, Any] = {"structure": "channel", "target": 0.5}


def gain(module: Any) -> float:
    """Code beside the class reads what the module holds."""
    return float(module.gain)


class Encoder(nn.Module):
    """Its width is written in the code of what encloses it."""

    factor = 1.5

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.5)
        self.scale, self.gain, self._shift, self.hot = 1.0, 2.0, 0.5, True
        self.options, self.notes = {"k": [2.0]}, ["mine"]

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x) * self.scale * self.factor * self.options["k"][0] + self._shift
        return self.drop(h * gain(self)) if self.hot else h  # type: ignore[no-any-return]


class Whole(nn.Module):
    """A model that becomes a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.act, self.head = Encoder(), nn.GELU(), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.encoder(x).view(x.shape[0], 32)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def made() -> prunus.Compact:
    torch.manual_seed(0)
    model = Whole().eval()
    masks = prunus.prune(copy.deepcopy(model), CHANNELS, example=X).masks
    small = prunus.compact(model, masks, X)
    assert small.route == "graph"
    return small


@pytest.fixture(scope="module")
def again(made: prunus.Compact) -> nn.Module:
    recipe = {**CHANNELS, "compact": "end"}
    return prunus.prune(copy.deepcopy(made.model), recipe, example=X).model


@pytest.fixture(params=["made", "copied", "opened", "pruned again"])
def small(
    made: prunus.Compact, again: nn.Module, request: pytest.FixtureRequest, tmp_path: Path
) -> nn.Module:
    if request.param == "opened":
        return prunus.load(made.save(tmp_path / "small.safetensors"))
    model = copy.deepcopy(again if request.param == "pruned again" else made.model)
    return copy.deepcopy(model) if request.param == "copied" else model


WRITES: dict[str, Callable[[Any], Any]] = {
    r"Encoder\.scale cannot be set": lambda m: setattr(m.encoder, "scale", 2.0),
    r"scale cannot be set": lambda m: delattr(m.encoder, "scale"),
    r"Encoder\.factor cannot be set": lambda m: setattr(m.encoder, "factor", 2.0),
    r"Encoder\.gain cannot be set": lambda m: setattr(m.encoder, "gain", 3.0),
    r"Encoder\._shift cannot be set": lambda m: setattr(m.encoder, "_shift", 3.0),
    r"Dropout\.p cannot be set": lambda m: setattr(m.encoder.drop, "p", 0.0),
    r"Whole\.act cannot be set": lambda m: setattr(m, "act", nn.ReLU()),
    r"Whole\.head cannot be set": lambda m: setattr(m, "head", nn.Linear(16, 5)),
    "options cannot be changed": lambda m: m.encoder.options["k"].append(3.0),
    "would never run": lambda m: m.encoder.register_forward_hook(print),
}


def test_what_would_have_no_effect_inside_a_graph_is_refused(small: Any) -> None:
    for match, write in WRITES.items():
        with pytest.raises(InputError, match=match):
            write(small)
    with pytest.raises(MissingError, match=r"Encoder\.features is not there"):
        small.encoder.features(X)
    with pytest.raises(MissingError, match="this Encoder cannot be called"):
        small.encoder(X)
    with pytest.raises(AttributeError, match="the graph of this Linear has no attribute"):
        small.encoder.a.out_features  # noqa: B018  # the cut may have made it another


def test_what_modules_inside_a_graph_hold_can_be_read_and_tensors_written(small: Any) -> None:
    encoder = small.encoder
    assert (encoder.scale, encoder.hot, encoder.options["k"]) == (1.0, True, [2.0])
    assert encoder.notes == ["mine"]
    encoder.notes.append("of the user's")  # no code of the model reads it
    encoder.scale, encoder.of_the_users = 1.0, 2
    before = small.eval()(X)
    small.head.bias = nn.Parameter(small.head.bias.detach() + 1)
    assert torch.allclose(small(X), before + 1)
    assert not small.encoder.a.weight.grad_fn


def gathers(model: Any) -> bool:
    before = model.encoder.norm.running_mean.clone()
    model(X)
    return not torch.equal(before, model.encoder.norm.running_mean)


def test_a_part_of_a_graph_is_in_a_mode_of_its_own_or_the_call_says_that_it_cannot(
    small: Any, request: pytest.FixtureRequest
) -> None:
    small.train()
    assert gathers(small)
    small.encoder.norm.eval()
    if request.node.callspec.params["small"] in ("opened", "pruned again"):
        with pytest.raises(InputError, match=r"'encoder\.norm' is in eval mode inside a graph in"):
            small(X)
        small.eval()
    else:
        assert not gathers(small)
        assert not torch.equal(small(X), small(X))  # dropout goes on
        small.eval()
        assert torch.equal(small(X), small(X))
        small.encoder.drop.train()
        assert not torch.equal(small(X), small(X))
        assert not torch.equal(copy.deepcopy(small)(X), small(X))
        small.eval()
    assert torch.equal(small(X), small(X))


def test_torch_func_goes_through_a_graph_as_through_the_model(small: Any) -> None:
    many = torch.stack([X, X.flip(0), 2 * X])
    expected = torch.stack([small(one) for one in many])
    assert torch.allclose(torch.func.vmap(small)(many), expected)
    parameters = {n: p.detach() for n, p in small.named_parameters()}

    def loss(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(small, values, one).square().sum()  # type: ignore[no-any-return]

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, many)
    weight = small.encoder.a.weight
    small(many[2]).square().sum().backward()
    assert torch.allclose(each["encoder.a.weight"][2], weight.grad, rtol=1e-4, atol=1e-5)
    weight.grad = None


class Around(nn.Module):
    """In train mode by itself, as every module is that is made anew; what it holds is not."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__()
        self.encoder, self.head = inner, nn.Linear(32, 3)
        self.head.eval()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder.drop(self.encoder.norm(self.encoder.a(x)))
        return self.head(hidden.view(x.shape[0], 32))  # type: ignore[no-any-return]


def test_what_was_put_around_a_model_in_eval_mode_freezes_none_of_it() -> None:
    model = Around(Encoder().eval())
    small = prunus.prune(model, {**CHANNELS, "compact": "end"}, example=X).model
    assert torch.equal(small(X), small(X))
    small.train()
    assert not torch.equal(small(X), small(X))
    before = small.encoder.norm.running_mean.clone()
    small(X)
    assert not torch.equal(small.encoder.norm.running_mean, before)
