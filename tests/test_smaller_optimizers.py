"""An optimizer goes on with the smaller model, or the result says that it must be new."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import prunus
from prunus.errors import InputError
from prunus.types import Masks

Make = Callable[[nn.Module], Optimizer]


class Convolutions(nn.Module):
    """Whose sizes stand nowhere in its code: it keeps its class."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        out: Tensor = self.last(x.mean((2, 3)))
        return out


class Sized(Convolutions):
    """Only a graph of it can be smaller: its code names a width."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).reshape(-1, 8, 6, 6).relu()
        x = F.relu(self.second(x)).reshape(-1, 6, 4, 4)
        out: Tensor = self.last(x.mean((2, 3)))
        return out


class Tied(nn.Module):
    """A matrix under two names, one layer frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Linear(3 * 8 * 8, 12)
        self.words, self.out = nn.Linear(12, 10, bias=False), nn.Linear(12, 10, bias=False)
        self.between = nn.Linear(10, 12)
        self.out.weight = self.words.weight
        self.spread.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.between(self.words(self.spread(x.flatten(1)).relu()).relu()))
        return out


def in_groups(model: nn.Module) -> Optimizer:
    parameters = list(model.parameters())
    groups = [{"params": parameters[::2], "lr": 0.01}, {"params": parameters[1::2]}]
    return torch.optim.AdamW(groups, lr=0.003, weight_decay=0.1, amsgrad=True)


def beside_another(model: nn.Module) -> Optimizer:
    other = nn.Linear(2, 2)
    return torch.optim.Adam([{"params": other.parameters()}, {"params": model.parameters()}])


class WithMemory(torch.optim.SGD):
    """What a subclass keeps beside is copied too."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.taken = 0

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        self.param_groups[0]["lr"] = 0.1 / self.taken
        return super().step(closure)


MAKES: dict[str, Make] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adam amsgrad": lambda m: torch.optim.Adam(m.parameters(), amsgrad=True, foreach=True),
    "adamw fused": lambda m: torch.optim.AdamW(m.parameters(), fused=True),
    "groups": in_groups,
    "another model": beside_another,
    "own memory": lambda m: WithMemory(m.parameters()),
}


def images(seed: int) -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, optimizer: Any, *seeds: int) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        model(images(seed)).square().mean().backward()
        optimizer.step()


@functools.cache
def channels(kind: type[nn.Module]) -> Masks:
    """Of some channels of a class of models."""
    recipe = {"structure": "channel", "target": 0.4}
    return prunus.prune(kind(), recipe, example=images(0)).masks


def kept_of(name: str, tensor: Tensor, small: prunus.Compact | prunus.Result) -> Tensor:
    for dim, index in enumerate(small.kept.get(name, ())):
        tensor = tensor if index is None else tensor.index_select(dim, index)
    return tensor


def assert_same(small: prunus.Compact, model: nn.Module) -> None:
    own, masked = dict(small.model.named_parameters()), dict(model.named_parameters())
    assert own.keys() == masked.keys()
    for name, parameter in own.items():
        close = {"rtol": 1e-4, "atol": 1e-6}  # sums of floats in another order
        torch.testing.assert_close(parameter, kept_of(name, masked[name], small), **close)


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((Convolutions, name) for name in MAKES),
     *((kind, name) for kind in (Sized, Tied) for name in ("groups", "momentum"))],
)  # fmt: skip
def test_the_smaller_pair_takes_the_steps_of_the_masked_pair(
    kind: type[nn.Module], name: str
) -> None:
    torch.manual_seed(0)
    model = kind()
    optimizer = MAKES[name](model)
    masks = channels(type(model))
    prunus.enforce(model, masks, optimizer)
    step(model, optimizer, 1, 2, 3)
    small = prunus.compact(model, masks, images(0), optimizer=optimizer)
    assert small.optimizer is not None
    assert type(small.optimizer) is type(optimizer)
    assert_same(small, model)
    step(model, optimizer, 4, 5)
    step(small.model, small.optimizer, 4, 5)
    assert_same(small, model)
    assert (small.route == "graph") == (kind is Sized)


def test_the_pair_that_was_given_is_not_changed_and_others_stay_where_they_are() -> None:
    torch.manual_seed(0)
    model = Convolutions()
    optimizer = beside_another(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    masks = channels(type(model))
    step(model, optimizer, 1)
    scheduler.step()
    before = copy.deepcopy(optimizer.state_dict())
    small = prunus.compact(model, masks, images(0), optimizer=optimizer).optimizer
    assert small is not None
    step(small_model := Convolutions(), torch.optim.SGD(small_model.parameters()), 1)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
    (others, own), (same, theirs) = optimizer.param_groups, small.param_groups
    assert all(a is b for a, b in zip(others["params"], same["params"], strict=True))
    assert not {id(p) for p in own["params"]} & {id(p) for p in theirs["params"]}
    assert small.param_groups[1]["lr"] == optimizer.param_groups[1]["lr"] == 1e-4
    assert "step" not in vars(small)  # the scheduler's


@pytest.mark.parametrize("make", [torch.optim.Adafactor, torch.optim.LBFGS])
def test_state_that_cannot_be_sliced_is_refused_before_any_work(make: Any) -> None:
    torch.manual_seed(0)
    model = Convolutions()
    masks = channels(type(model))
    with pytest.raises(InputError, match=r"Adafactor cannot continue|LBFGS cannot be used"):
        prunus.compact(model, masks, None, optimizer=make(model.parameters()))
    with pytest.raises(InputError, match="holds no parameter of the model"):
        prunus.compact(model, masks, None, optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters()))
    with pytest.raises(InputError, match=r"'float' is not a torch\.optim\.Optimizer"):
        prunus.compact(model, masks, None, optimizer=0.1)


def ended(make: Callable[[nn.Module], Any], evaluate: Any = None, **recipe: Any) -> Any:
    """A run with ``compact: end``: result, what trained it last, and that under masks alone."""
    found, given = [], {}

    def train(model: nn.Module, run: prunus.Run) -> None:
        given["last"] = made = make(model)
        run.attach(made)
        for seed in run.batches(range(3)):
            together(model, made, seed)

    for how in ({"compact": "end"}, {}):
        torch.manual_seed(0)
        values = {"structure": "channel", "target": 0.4, "rounds": 2, "retrain": "3it", **recipe}
        result = prunus.prune(Convolutions(), {**values, **how}, train=train, example=images(0),
                              evaluate=evaluate)  # fmt: skip
        found.append((result, given["last"]))
    return found


def together(model: nn.Module, optimizers: Any, seed: int) -> None:
    """A step of one, or of all in a list."""
    every = optimizers if isinstance(optimizers, list) else [optimizers]
    model(images(seed)).square().mean().backward()
    for one in every:
        one.step()
        one.zero_grad()


def halves(model: nn.Module) -> list[Optimizer]:
    first, *rest = model.parameters()
    return [torch.optim.SGD([first], lr=0.1, momentum=0.9), torch.optim.Adam(rest, lr=1e-3)]


@pytest.mark.parametrize("make", [MAKES["momentum"], in_groups, halves])
def test_what_trained_a_run_goes_on_with_the_smaller_model_of_its_end(make: Any) -> None:
    (small, ours), (masked, theirs) = ended(make)
    prunus.enforce(masked.model, masked.masks, theirs)
    for seed in (7, 8):
        together(small.model, ours, seed)
        together(masked.model, theirs, seed)
    assert sum(p.numel() for p in small.model.parameters()) < 500
    assert not any("build a new one" in note for note in small.compaction.notes)
    dense = dict(masked.model.named_parameters())
    for name, parameter in small.model.named_parameters():
        expected = kept_of(name, dense[name], small)
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)


def test_after_a_round_that_was_undone_the_state_is_that_of_the_accepted_one() -> None:
    made: list[Optimizer] = []
    good: dict[str, Tensor] = {}

    def make(model: nn.Module) -> Optimizer:
        made.append(MAKES["momentum"](model))
        return made[-1]

    def few_zeros(model: nn.Module) -> float:
        weights = nn.utils.parameters_to_vector(model.parameters())
        few = float((weights == 0).float().mean()) < 0.3
        for name, parameter in model.named_parameters() if few and made else ():
            if parameter in made[-1].state:
                good[name] = made[-1].state[parameter]["momentum_buffer"].clone()
        return float(few)

    (small, ours), _ = ended(make, few_zeros, guard={"max_drop": 0.1, "better": "higher"})
    assert small.rounds[-1].verdict == "rejected"
    assert small.kept
    for name, parameter in small.model.named_parameters():
        then = kept_of(name, good[name], small)
        assert torch.equal(ours.state[parameter]["momentum_buffer"], then), name


def mixed(model: nn.Module) -> list[Optimizer]:
    first, *rest = model.parameters()
    return [torch.optim.SGD([first], lr=0.1), torch.optim.Adafactor(rest)]


@pytest.mark.parametrize("make", [lambda m: torch.optim.Adafactor(m.parameters()), mixed])
def test_one_that_cannot_go_on_is_named_in_the_notes(make: Any) -> None:
    (small, _), _ = ended(make)
    (note,) = [n for n in small.compaction.notes if "build a new one" in n]
    assert note.startswith("Adafactor does not go on with the smaller model, build a new one: it ")


def test_a_plain_train_is_told_that_its_optimizer_must_be_new() -> None:
    def train(model: nn.Module) -> None:
        step(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)

    recipe = {"structure": "channel", "target": 0.4, "rounds": 1, "compact": "end"}
    result = prunus.prune(Convolutions(), recipe, train=train, example=images(0))
    assert result.compaction is not None
    assert "optimizer of train(model) does not go on" in result.compaction.notes[-1]


def test_a_loop_that_owns_its_optimizer_is_told_how_to_go_on() -> None:
    recipe = {"structure": "channel", "target": 0.4, "rounds": 1, "compact": "end"}
    model = Convolutions()
    optimizer = MAKES["momentum"](model)
    with pytest.raises(InputError, match=r"prunus\.compact\(.*optimizer=optimizer\) after train"):
        prunus.Pruner(model, recipe, optimizer, steps=4, example=images(0))
