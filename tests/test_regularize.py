"""Regularizers pull by their equations, in every loop, when the recipe says, and not otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from helpers import tiny_task
from prunus.errors import Interrupted
from prunus.methods import catalog as folder
from prunus.progressive.dense_once import dense_key
from prunus.progressive.engine import PruningEngine
from prunus.progressive.regularize import Regularizer

REGULARIZERS = folder.names("regularizers")
RATE = 0.1


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())  # type: ignore[no-any-return]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), torch.arange(6) % 4).backward()
    optimizer.step()


def loop(how: Any, steps: int = 8, **recipe: Any) -> tuple[nn.Module, prunus.Pruner]:
    torch.manual_seed(0)
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    values = {"target": 0.5, "schedule": {"name": "one_shot", "start": 1.0}, **recipe}
    if how is not None:
        values["regularize"] = how
    pruner = prunus.Pruner(model, values, optimizer, steps=steps, example=torch.zeros(2, 8))
    for number in range(steps - 1):  # the last one cuts
        step(model, optimizer, number)
    return model, pruner


def reference(pull: Any, steps: int = 7) -> nn.Module:
    """The same training, with a function of (model, number of the step) after each step."""
    torch.manual_seed(0)
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for number in range(steps):
        step(model, optimizer, number)
        with torch.no_grad():
            pull(model, number + 1)
    return model


def weights(model: nn.Module) -> list[Tensor]:
    return [model.get_parameter(f"{n}.weight") for n in ("first", "last")]


def same(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_pulls_unless_the_recipe_says_so() -> None:
    same(loop(None)[0], reference(lambda model, number: None))


def test_l1_takes_the_same_from_every_weight() -> None:
    def pull(model: nn.Module, number: int) -> None:
        for w in weights(model):
            w -= RATE * 0.05 * torch.sign(w)

    same(loop({"name": "l1", "strength": 0.05})[0], reference(pull))


def test_the_proximal_step_stops_at_zero() -> None:
    def pull(model: nn.Module, number: int) -> None:
        for w in weights(model):
            w.copy_(torch.where(w > 0, (w - 0.02).clamp(min=0), (w + 0.02).clamp(max=0)))

    model, _ = loop({"name": "proximal", "strength": 0.2})
    same(model, reference(pull))
    assert 0 < int((weights(model)[0] == 0).sum()) < weights(model)[0].numel()


def test_group_lasso_shrinks_whole_channels_over_all_that_falls_with_them() -> None:
    def pull(model: nn.Module, number: int) -> None:
        first, last = weights(model)
        for i in range(12):
            unit = torch.cat([first[i], last[:, i]]).double()
            factor = max(0.0, 1 - RATE * 0.2 * len(unit) ** 0.5 / float(unit.norm()))
            first[i] *= factor
            last[:, i] *= factor

    how = {"name": "group_lasso", "strength": 0.2}
    same(loop(how, structure="channel", allocation="uniform")[0], reference(pull))


def test_a_growing_penalty_takes_what_will_go_and_leaves_the_rest() -> None:
    going: list[Tensor] = []

    def pull(model: nn.Module, number: int) -> None:
        every = weights(model)
        if not going:
            sizes = torch.cat([w.abs().flatten() for w in every])
            least = sizes.argsort()[: len(sizes) // 2]
            gone = torch.zeros(len(sizes), dtype=torch.bool)
            gone[least] = True
            going.extend(g.view_as(w) for g, w in zip(
                gone.split([w.numel() for w in every]), every, strict=True
            ))  # fmt: skip
        for w, gone in zip(every, going, strict=True):
            w[gone] *= 1 - RATE * min(1.0, 0.5 * (number // 2))

    how = {"name": "greg", "growth": 0.5, "every": 2}
    model, pruner = loop(how)
    same(model, reference(pull))
    torch.manual_seed(0)
    step(model, pruner._engine.optimizer, 7)  # type: ignore[arg-type]
    for mask, gone in zip(pruner.masks.values(), going, strict=True):
        assert torch.equal(mask, ~gone)


def test_scales_of_the_norms_behind_channels_are_pulled_alone() -> None:
    def pull(model: Any, number: int) -> None:
        model.norm.weight -= RATE * 0.5 * torch.sign(model.norm.weight)

    how = {"name": "l1", "strength": 0.5, "of": "norms"}
    same(loop(how, structure="channel", criterion="bn_scale")[0], reference(pull))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_removed_weights_stay_zero_and_a_loop_goes_on_from_a_checkpoint(name: str) -> None:
    schedule = {"name": "linear", "start": 0.3, "end": 0.8, "every": "2it"}

    def start() -> tuple[Any, ...]:
        torch.manual_seed(0)
        model = Small()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        values = {"target": 0.5, "schedule": schedule, "regularize": name}
        return model, optimizer, prunus.Pruner(model, values, optimizer, steps=12)

    whole, again = start(), start()
    for number in range(5):
        step(*whole[:2], number)
    saved = copy.deepcopy([part.state_dict() for part in whole])
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    for number in range(5, 12):
        step(*whole[:2], number)
        step(*again[:2], number)
    for one, other in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(one, other)
    for key, mask in whole[2].masks.items():
        assert not bool(whole[0].get_parameter(key)[~mask].any())
    assert whole[2].sparsity == 0.5


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name: str) -> None:
    values: dict[str, Any] = {
        "dense": "6it", "retrain": "6it", "rounds": 2, "target": 0.5, "snapshot": "2it",
        "regularize": {"name": name, "during": "all"},
    }  # fmt: skip
    whole = prunus.prune(tiny_task(), values)
    asked = iter([False] * 9 + [True])
    with pytest.raises(Interrupted):
        prunus.prune(tiny_task(), values, folder="run", should_stop=lambda: next(asked, False))
    again = prunus.prune(tiny_task(), values, folder="run")
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_acts_in_the_trainings_that_are_named() -> None:
    def l1(during: str | None) -> list[float]:
        how = {} if during is None else {
            "regularize": {"name": "l1", "strength": 0.05, "during": during}
        }  # fmt: skip
        values = {"dense": "4it", "retrain": "4it", "rounds": 1, "target": 0.5, **how}
        return [r.l1 for r in prunus.prune(tiny_task(), values).rounds]

    none, every, dense, after = (l1(x) for x in (None, "all", "dense", "retrain"))
    assert dense[0] == every[0] < none[0] == after[0]
    assert every[1] < dense[1]
    assert after[1] < none[1]


def test_dense_trainings_that_are_pulled_differently_are_not_shared() -> None:
    def key(**how: Any) -> str | None:
        regularize = {"name": "l1", **how} if how else None
        recipe = {"dense": "4it", "rounds": 1, "target": 0.5, "regularize": regularize}
        torch.manual_seed(0)
        return dense_key(PruningEngine(Small(), recipe))

    plain = key()
    assert key(during="retrain") == plain
    assert len({plain, key(during="all"), key(during="dense", strength=0.1)}) == 3


@pytest.mark.parametrize(("values", "message"), [
    ({"regularize": {"name": "l1", "of": "norms"}}, "scales of batch norms behind the units"),
    ({"regularize": "greg", "criterion": "fisher_running"}, "asks before the first cut"),
    ({"regularize": {"name": "l1", "during": "dense"}}, "nothing is trained then"),
    ({"regularize": {"name": "l1", "strength": 0}}, "greater than 0"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(prunus.InputError, match=message):
        PruningEngine(Small(), {"target": 0.5, **values})
    with pytest.raises(prunus.InputError, match="nothing trains"):
        prunus.prune(Small(), {"target": 0.5, "regularize": "l1"})


def test_what_was_saved_between_a_cut_and_the_next_step_asks_anew_what_will_go() -> None:
    before, after = {"w": torch.ones(2, dtype=torch.bool)}, {"w": torch.zeros(2, dtype=torch.bool)}
    recipe = prunus.Recipe(regularize={"name": "greg"}, schedule={"name": "cubic", "start": 0.1})
    one, other = (Regularizer(recipe, lambda pull: None, lambda: before) for _ in range(2))
    one._masks = before
    for masks, asked in ((before, True), (after, False)):
        other.load(one.state(masks), masks)
        assert (other._masks is masks) is asked
