"""Copies and pickles of what prunus gives: they act on what was copied, or are refused in words."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from helpers import transformers

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 8, generator=GENERATOR)
Y = torch.randint(2, (32,), generator=GENERATOR)
STEPS = 12


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracy(model: nn.Module) -> float:
    return float((model(X).argmax(1) == Y).float().mean())


class Several(list[torch.optim.Optimizer]):
    """Optimizers that step together."""

    def step(self) -> None:
        for one in self:
            one.step()


def train(model: nn.Module, optimizer: Any, pruner: prunus.Pruner, part: slice) -> None:
    for i in range(STEPS)[part]:
        model.zero_grad()
        batch = X[i::4], Y[i::4]
        if pruner.recipe.teacher is None:
            loss(model, batch).backward()
        else:
            prunus.distill(model, pruner, batch, loss=loss).backward()
        optimizer.step()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.02)


def one_each(model: nn.Module) -> Several:
    return Several(torch.optim.SGD(m.parameters(), 0.1, 0.9) for m in model if m._parameters)  # type: ignore[call-arg]


ROUNDS = {"target": 0.6, "rounds": 3, "schedule": "linear"}
KINDS: dict[str, tuple[dict[str, Any], Callable[[nn.Module], Any], dict[str, Any]]] = {
    "gradual": ({"target": 0.6}, adam, {}),
    "rounds": ({**ROUNDS, "dense": "2it"}, adam, {"evaluate": accuracy}),
    "guard": ({**ROUNDS, "guard": {"max_drop": 0.01}, "dense": "2it",
               "restore": {"name": "rewind", "k": "1it"}}, adam,
              {"evaluate": accuracy}),
    "teacher": ({**ROUNDS, "teacher": "dense"}, adam, {}),
    "another teacher": ({**ROUNDS, "teacher": "dense"}, adam, {"teacher": net()}),
    "regrowth": ({"target": 0.6, "regrow": {"name": "rigl", "every": "2it"}}, adam, {}),
    "revived": ({"target": 0.6, "restore": "revive"}, adam, {}),
    "running": ({"target": 0.6, "criterion": "fisher_running"}, adam, {}),
    "movement": ({"target": 0.6, "criterion": "movement"}, adam, {}),
    "pulled": ({"target": 0.6, "regularize": "l1"}, adam, {}),
    "calibrated": ({**ROUNDS, "criterion": "taylor"}, adam,
                   {"calibration": [(X, Y)], "loss": loss}),
    "several": (ROUNDS, one_each, {}),
    "channels": ({**ROUNDS, "structure": "channel"}, adam, {"example": X[:2]}),
}  # fmt: skip


def state(*things: Any) -> list[Tensor]:
    """Every tensor of models and optimizers, as it is now."""
    found: list[Tensor] = []
    for one in things:
        for each in one if isinstance(one, Several) else [one]:
            leaves = torch.utils._pytree.tree_leaves(each.state_dict())
            found += [x.clone() for x in leaves if isinstance(x, Tensor)]
    return found


@pytest.mark.parametrize(
    ("kind", "done"), [*((kind, 5) for kind in KINDS), ("gradual", 0), ("rounds", STEPS)]
)
def test_a_copied_pruner_prunes_the_copied_model_as_the_original_prunes_its_own(
    kind: str, done: int
) -> None:
    recipe, make, given = KINDS[kind]
    model, ema = net(), net()
    optimizer = make(model)
    ours = prunus.Pruner(model, recipe, optimizer, steps=STEPS, copies=[ema], **given)
    train(model, optimizer, ours, slice(done))
    before, rounds, step = state(model, optimizer, ema), ours.rounds, ours.step

    twin, its_ema, its_optimizer, theirs = copy.deepcopy((model, ema, optimizer, ours))
    train(twin, its_optimizer, theirs, slice(done, None))
    assert theirs.model is twin
    assert all(map(torch.equal, before, state(model, optimizer, ema)))
    assert (ours.rounds, ours.step) == (rounds, step)
    held = [m for n, m in theirs.masks.items() if bool((its_ema.get_parameter(n) * ~m).any())]
    assert held == []
    its_ema.load_state_dict(twin.state_dict())

    train(model, optimizer, ours, slice(done, None))
    assert all(map(torch.equal, state(model, optimizer), state(twin, its_optimizer)))
    seen = [[(r.verdict, r.achieved, r.metric) for r in p.rounds] for p in (ours, theirs)]
    assert seen[0] == seen[1]
    for pruner in (theirs, ours):
        pruner.finish()
    assert ours.reason == theirs.reason
    assert ours.sparsity == theirs.sparsity > 0.05


def test_a_finished_pruner_is_copied_finished() -> None:
    model = net()
    optimizer = adam(model)
    pruner = prunus.Pruner(model, {"target": 0.5}, optimizer, steps=STEPS)
    train(model, optimizer, pruner, slice(None))
    pruner.finish()
    twin, its_optimizer, theirs = copy.deepcopy((model, optimizer, pruner))
    assert theirs.reason == pruner.reason
    train(twin, its_optimizer, theirs, slice(2))
    assert not any(bool((twin.get_parameter(n) * ~m).sum() == 0) for n, m in theirs.masks.items())


def at_work(**more: Any) -> prunus.Pruner:
    model = net()
    optimizer = adam(model)
    pruner = prunus.Pruner(model, {**ROUNDS, **more}, optimizer, steps=STEPS, example=X[:2])
    train(model, optimizer, pruner, slice(6))
    return pruner


class Holder(nn.Module):
    """A model that has its own pruner."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.pruner = prunus.Pruner(self, {"target": 0.5}, adam(self), steps=STEPS)


def served() -> nn.Module:
    return prunus.deploy(net().eval(), example=X[:2], runtime="torch_export", seconds=0.01).model


def graph() -> nn.Module:
    """A compact model of which nothing but a graph is left."""

    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x).relu().view(-1, 6))
            return out

    torch.manual_seed(0)
    done = prunus.prune(Literal(), {"target": 0.5, "structure": "channel"}, example=X)
    small = prunus.compact(done.model, done.masks, X)
    assert small.route == "graph"
    return small.model


REFUSED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "a pruner pickled": (at_work, pickle.dumps, r"state_dict\(\)"),
    "a pruner pickled with its model": (lambda: (p := at_work(), p.model), pickle.dumps,
                                        r"state_dict\(\)"),
    "a pruner of a model that shrank": (
        lambda: at_work(structure="channel", compact="every_round"), copy.deepcopy,
        "of the dense model",
    ),
    "a pruner inside of its model": (Holder, copy.deepcopy, "outside of the module"),
    "what runs in a runtime": (served, pickle.dumps, r"prunus\.load"),
    "a graph": (graph, pickle.dumps, r"prunus\.save"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_copied_or_pickled_says_what_to_do(kind: str) -> None:
    make, way, said = REFUSED[kind]
    with pytest.raises(prunus.InputError, match=said):
        way(make())


def test_a_run_is_not_copied_while_it_trains() -> None:
    def training(model: nn.Module, run: prunus.Run) -> None:
        run.attach(adam(model))
        with pytest.raises(prunus.InputError, match=r"state_dict\(\)"):
            copy.deepcopy(run)
        for x in run.batches([X]):
            model(x).sum().backward()
            assert run.optimizer is not None
            run.optimizer.step()  # type: ignore[union-attr]

    prunus.prune(net(), {"target": 0.5, "retrain": "2it"}, train=training)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("make", [served, graph])
def test_copies_of_served_and_compact_models_answer_alike(make: Any, way: Any) -> None:
    model = make()
    twin = way(model)
    assert type(twin).__mro__[1:] == type(model).__mro__[1:]
    assert torch.equal(twin(X[:2]), model(X[:2]))
    with pytest.raises(prunus.InputError):
        twin(X[:2], X[:2])


def channels() -> prunus.Result:
    recipe = {"target": 0.5, "structure": "channel", "compact": "end"}
    return prunus.prune(net(), recipe, example=X)


RESULTS: dict[str, Callable[[], Any]] = {
    "result": lambda: prunus.prune(net(), {"target": 0.5}),
    "smaller": channels,
    "round": lambda: channels().rounds[0],
    "scores": lambda: prunus.Scores(torch.ones(3), torch.tensor([0, 1, 1])),
    "recipe": lambda: prunus.Recipe.load({"target": 0.5}),
    "measurement": lambda: prunus.measure(net(), X[:2], seconds=0.01),
    "scan": lambda: prunus.scan(net(), [(X, Y)], loss),
    "units": lambda: prunus.units(net(), X),
}


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("kind", RESULTS)
def test_results_are_copied_and_pickled_with_models_of_their_own(kind: str, way: Any) -> None:
    made = RESULTS[kind]()
    twin = way(made)
    assert repr(twin) == repr(made)
    if isinstance(made, prunus.Result):
        assert torch.equal(twin.model(X), made.model(X))
        pairs = itertools.product(twin.model.parameters(), made.model.parameters())
        assert not any(a is b for a, b in pairs)


@pytest.mark.parametrize("home", ["hf", "lightning"])
def test_callbacks_are_copied_before_a_training_and_not_while_they_prune(home: str) -> None:
    if home == "hf":
        transformers()
    made = getattr(prunus, home).PruneCallback({"target": 0.5}, evaluate=accuracy)
    pickle.loads(pickle.dumps(copy.deepcopy(made)))
    made.pruner = at_work()
    with pytest.raises(prunus.InputError, match="before the training"):
        copy.deepcopy(made)
    with pytest.warns(UserWarning, match="the training ended in round 2"):
        made.pruner.finish()
    assert copy.deepcopy(made).pruner.reason == made.pruner.reason
