"""Loaders that keep state: a stopped run goes on to the bits of one that was not, or says why."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

import prunus
from prunus._common import loaders
from prunus.errors import InputError, Interrupted
from prunus.methods.catalog import names
from prunus.methods.traits import trait

INPUTS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
PAIRS = [(x, (x.sum() > 0).long()) for x in INPUTS]
RECIPE = {
    "target": 0.6, "schedule": "linear", "rounds": 2, "dense": "2ep", "retrain": "1ep",
}  # fmt: skip


class Augmented(Dataset[Any]):
    """Adds noise from a generator of its own, or of the process."""

    def __init__(self, noise: Callable[[], float]) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return len(PAIRS)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = PAIRS[index]
        return x + self.noise(), y


def _loader(data: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=6, **options)


def _generator() -> Any:
    return _loader(PAIRS, shuffle=True, generator=torch.Generator().manual_seed(3))


def _sampler() -> Any:
    return _loader(PAIRS, sampler=RandomSampler(PAIRS, generator=torch.Generator()))


def _own_generator() -> Any:
    return _loader(Augmented(np.random.default_rng(5).normal), shuffle=True)


def _old_numpy() -> Any:
    return _loader(Augmented(partial(np.random.RandomState(5).normal, 0.0, 0.1)))


def _closure() -> Any:
    source = random.Random(4)
    return _loader(PAIRS, collate_fn=lambda pairs: _stack(pairs, source.random()))


_NOISE = np.random.Generator(np.random.MT19937(1))


def _by_a_global_name() -> Any:
    return _loader(PAIRS, collate_fn=lambda pairs: _stack(pairs, _helper()))


def _helper() -> float:
    return float(_NOISE.normal())


_WORKING: list[Any] = []


@pytest.fixture(autouse=True)
def _workers_go_with_the_test() -> Iterator[None]:
    """A loader that is no longer used keeps its processes until it happens to be collected."""
    yield
    while _WORKING:
        loader = _WORKING.pop()
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()


def _persistent_workers() -> Any:
    made = _loader(Augmented(random.random), shuffle=True, num_workers=1, persistent_workers=True)
    _WORKING.append(made)
    return made


class Wrapped:
    """A user's own loader around another one."""

    def __init__(self) -> None:
        self.inner, self._source = _generator(), random.Random(8)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        for x, y in self.inner:
            yield x * self._source.uniform(0.9, 1.1), y


def _stack(pairs: list[tuple[Tensor, Tensor]], noise: float) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in pairs]) + noise, torch.stack([y for _, y in pairs])


LOADERS: dict[str, Callable[[], Any]] = {
    "generator": _generator, "sampler": _sampler, "dataset": _own_generator, "numpy": _old_numpy,
    "closure": _closure, "global": _by_a_global_name, "workers": _persistent_workers,
    "wrapped": Wrapped,
}  # fmt: skip


class Counting:
    """Keeps state that nothing can seed: another order each time that it is iterated."""

    def __init__(self) -> None:
        self.times = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        order = torch.arange(24).roll(self.times).split(6)
        return iter([_stack([PAIRS[i] for i in part], 0.0) for part in order])


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _run(
    folder: Path | None, loader: Any, *, stop: int | None = None, optimizer: Any = _sgd, **more: Any
) -> prunus.Result:
    """A whole run, or one that is stopped after so many steps; at 0 between two rounds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 2))
    taken = 0

    def train(model: nn.Module, run: prunus.Run) -> None:
        nonlocal taken
        if stop == 0 and run.round == 2:
            raise KeyboardInterrupt
        made = optimizer(model)
        run.attach(made)
        model.train()
        for x, y in run.batches(loader):
            made.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            made.step()
            taken += 1

    return prunus.prune(
        model, RECIPE, train=train, folder=folder, should_stop=lambda: taken == stop != 0, **more
    )


def _same(one: prunus.Result, other: prunus.Result) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _stopped_and_resumed(
    folder: Path, first: Any, second: Any, *, stop: int, **again: Any
) -> prunus.Result:
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        _run(folder, first, stop=stop)
    return _run(folder, second, **again)


@pytest.mark.parametrize(("kind", "stop"), [("generator", 3), *((kind, 10) for kind in LOADERS)])
def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(
    kind: str, stop: int, tmp_path: Path
) -> None:
    make = LOADERS[kind]
    whole = _run(None, make())
    resumed = _stopped_and_resumed(tmp_path / "run", make(), make(), stop=stop)
    assert _same(whole, resumed)
    assert [n for n in resumed.notes if "differs" in n] == []


def test_epochs_of_a_seeded_loader_differ_from_each_other() -> None:
    loader = _generator()
    orders = []
    for epoch in (0, 1, 0):
        loaders.begin_epoch(loader, 7, epoch)
        orders.append(torch.cat([x for x, _ in loader]))
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("stop", [0, 3])
def test_state_that_cannot_be_seeded_is_said(stop: int, tmp_path: Path) -> None:
    first = Counting()
    first.times = 5  # had been iterated before
    resumed = _stopped_and_resumed(tmp_path / "run", first, Counting(), stop=stop)
    assert "the first batch of epoch" in str(resumed)


@pytest.mark.parametrize("stop", [0, 3])
def test_changed_data_are_said(stop: int, tmp_path: Path) -> None:
    other = _loader([(x + 1, y) for x, y in PAIRS])
    resumed = _stopped_and_resumed(tmp_path / "run", _loader(PAIRS), other, stop=stop)
    assert "the training data are others than before the stop" in str(resumed)


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def _faster(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def _in_two_groups(model: Any) -> torch.optim.Optimizer:
    groups = [{"params": [*part.parameters()]} for part in (model[0], model[2])]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    ("made", "stop", "says"), [(_adam, 0, "SGD -> Adam"), (_faster, 3, "lr 0.1 -> 0.2")]
)
def test_another_optimizer_is_said(made: Any, stop: int, says: str, tmp_path: Path) -> None:
    folder, loader = tmp_path / "run", _loader(PAIRS)
    result = _stopped_and_resumed(folder, loader, loader, stop=stop, optimizer=made)
    assert says in str(result)


@pytest.mark.parametrize("made", [_adam, _in_two_groups])
def test_a_state_that_another_optimizer_cannot_take_is_refused(made: Any, tmp_path: Path) -> None:
    folder, loader = tmp_path / "run", _loader(PAIRS)
    with pytest.raises(InputError, match="attach the optimizer that it had"):
        _stopped_and_resumed(folder, loader, loader, stop=3, optimizer=made)


def test_phases_may_have_optimizers_of_their_own() -> None:
    rounds: list[type] = []

    def alternating(model: nn.Module) -> torch.optim.Optimizer:
        made = (_adam if len(rounds) % 2 else _sgd)(model)
        rounds.append(type(made))
        return made

    assert _run(None, _loader(PAIRS), optimizer=alternating).sparsity == pytest.approx(
        0.6, abs=0.01
    )
    assert len(set(rounds)) == 2


def test_an_iterator_as_the_loader_is_said(tmp_path: Path) -> None:
    endless: Iterable[Any] = (pair for _ in range(99) for pair in _loader(PAIRS))
    torch.manual_seed(0)
    model = nn.Linear(6, 2)

    def train(model: nn.Module, run: prunus.Run) -> None:
        made = _sgd(model)
        run.attach(made)
        for x, y in run.batches(endless):
            made.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            made.step()

    recipe = {"target": 0.5, "dense": "3it", "rounds": 1, "retrain": "3it", "snapshot": "2it"}
    result = prunus.prune(model, recipe, train=train, folder=tmp_path / "run")
    assert "is an iterator" in str(result)


def test_a_plain_train_gets_its_generators_seeded_for_each_round(tmp_path: Path) -> None:
    def run(folder: Path | None, rounds_before_stop: int | None = None) -> prunus.Result:
        torch.manual_seed(0)
        model, loader, calls = nn.Linear(6, 2), _generator(), 0

        def train(model: nn.Module) -> None:
            nonlocal calls
            if calls == rounds_before_stop:
                raise KeyboardInterrupt
            calls += 1
            made = _sgd(model)
            for x, y in loader:
                made.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                made.step()

        recipe = {"target": 0.5, "schedule": "linear", "rounds": 3, "retrain": "1ep"}
        return prunus.prune(model, recipe, train=train, folder=folder)

    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", 2)
    assert _same(whole, run(tmp_path / "run"))


@pytest.mark.parametrize("recipe", [
    *({"criterion": n} for n in names("criteria") if trait("criteria", n, "CALIBRATION")),
    {"allocation": "measured"},
], ids=lambda recipe: "".join(recipe.values()))  # fmt: skip
def test_calibration_leaves_the_generator_of_its_loader_where_it_was(recipe: Any) -> None:
    loader = _generator()
    before, random_numbers = loader.generator.get_state(), torch.get_rng_state()
    by_unit = trait("criteria", recipe.get("criterion", "magnitude"), "BY_UNIT")
    found = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        how = {"target": 0.5, "structure": "channel" if by_unit else "weight", **recipe}
        made = prunus.prune(model, how, calibration=loader, loss=_loss, example=torch.ones(2, 6))
        found.append(made.masks)
        assert torch.equal(loader.generator.get_state(), before)
        assert torch.equal(torch.get_rng_state(), random_numbers)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def _loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
