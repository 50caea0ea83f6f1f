"""Drop and regrow: at the same density, momenta anew, the same bits after a stop."""

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
from prunus.pruning.enforce import Enforcer

REGROWTHS = folder.names("regrowths")
SPARSE: dict[str, Any] = {
    "criterion": "random", "allocation": "erk", "rounds": 1, "retrain": "12it", "target": 0.6,
    "regrow": {"name": "rigl", "every": "3it", "end": 1.0},
}  # fmt: skip


def recipe(name: str, **more: Any) -> dict[str, Any]:
    return {**SPARSE, "regrow": {**SPARSE["regrow"], "name": name}, **more}


class Loop:
    """A loop of one's own, whose gradients and masks can be looked at."""

    def __init__(self, values: dict[str, Any], optimizer: type = torch.optim.SGD) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        extra = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        self.optimizer = optimizer(self.model.parameters(), lr=0.05, **extra)
        self.pruner = prunus.Pruner(self.model, values, self.optimizer, steps=12)

    def gradients(self, step: int, model: nn.Module | None = None) -> None:
        generator = torch.Generator().manual_seed(step)
        for _ in range(2):  # gradients accumulate
            x, y = torch.randn(4, 8, generator=generator), torch.randint(4, (4,))
            y = torch.arange(4)
            nn.functional.cross_entropy((model or self.model)(x), y).backward()

    def step(self, number: int) -> None:
        self.optimizer.zero_grad()
        self.gradients(number)
        self.optimizer.step()

    def masks(self) -> dict[str, Tensor]:
        return {n: m.clone() for n, m in self.pruner.masks.items()}


@pytest.mark.parametrize("name", REGROWTHS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_every_layer_keeps_its_count_and_what_grows_starts_at_zero_with_no_momentum(
    name: str, optimizer: type
) -> None:
    loop = Loop(recipe(name), optimizer)
    changed = 0
    for step in range(12):
        before = loop.masks()
        loop.step(step)
        after = loop.masks()
        for key, mask in after.items():
            assert int(mask.sum()) == int(before[key].sum())
            grown = mask & ~before[key]
            changed += int(grown.sum())
            weight = loop.model.get_parameter(key)
            assert not bool(weight[~mask].any())
            assert not bool(weight[grown].any())
            for value in loop.optimizer.state[weight].values():
                if value.shape == weight.shape:
                    assert not bool(value[grown].any())
        assert (step in (2, 5, 8)) == any(not torch.equal(after[k], before[k]) for k in after)
    assert changed > 20


def test_rigl_drops_the_smallest_and_grows_where_the_dense_gradient_is_largest() -> None:
    loop = Loop(recipe("rigl"))
    for step in range(2):
        loop.step(step)
    before = loop.masks()
    twin = copy.deepcopy(loop.model).double()
    for parameter in twin.parameters():
        parameter.grad = None
    loop.step(2)
    generator = torch.Generator().manual_seed(2)
    for _ in range(2):
        x = torch.randn(4, 8, generator=generator).double()
        nn.functional.cross_entropy(twin(x), torch.arange(4)).backward()
    fraction = 0.3 / 2 * (1 + torch.cos(torch.tensor(torch.pi * 3 / 12)))
    for key, mask in loop.pruner.masks.items():
        kept = int(before[key].sum())
        move = int(float(fraction) * kept)
        # the step's own weights, as they were when it dropped: what was dropped is zero by now
        dense = twin.get_parameter(key).grad
        assert dense is not None
        grown = mask & ~before[key]
        others = ~mask & ~before[key]
        assert int((before[key] & ~mask).sum()) <= move
        assert float(dense[grown].abs().min()) >= float(dense[others].abs().max()) - 1e-6


def test_set_grows_other_weights_at_each_step_and_the_same_ones_with_a_seed() -> None:
    first, again, other = (Loop(recipe("set", seed=seed)) for seed in (0, 0, 1))
    for loop in (first, again, other):
        for step in range(6):
            loop.step(step)
    a, b, c = (torch.cat([m.flatten() for m in x.masks().values()]) for x in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("name", REGROWTHS)
def test_a_loop_goes_on_from_a_checkpoint_to_the_same_bits(name: str) -> None:
    whole, again = Loop(recipe(name)), Loop(recipe(name))
    for step in range(5):
        whole.step(step)
    parts = ("model", "optimizer", "pruner")
    saved = {p: copy.deepcopy(getattr(whole, p).state_dict()) for p in parts}
    for part, state in saved.items():
        getattr(again, part).load_state_dict(state)
    for step in range(5, 12):
        whole.step(step)
        again.step(step)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", REGROWTHS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name: str) -> None:
    values = recipe(name, snapshot="2it", retrain="14it")
    whole = prunus.prune(tiny_task(), values)
    asked = iter([False] * 8 + [True])
    with pytest.raises(Interrupted):
        prunus.prune(tiny_task(), values, folder="run", should_stop=lambda: next(asked, False))
    again = prunus.prune(tiny_task(), values, folder="run")
    assert whole.sparsity == again.sparsity == pytest.approx(0.6, abs=0.02)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", REGROWTHS)
def test_whole_blocks_grow_too(name: str) -> None:
    loop = Loop(recipe(name, structure="block", allocation="uniform", target=0.5))
    start = loop.masks()
    for step in range(12):
        loop.step(step)
        assert {k: int(m.expand_as(loop.model.get_parameter(k)).sum())
                for k, m in loop.masks().items()} == {
            k: int(m.expand_as(loop.model.get_parameter(k)).sum()) for k, m in start.items()
        }  # fmt: skip
    assert any(not torch.equal(m, start[k]) for k, m in loop.masks().items())


def test_a_gradient_that_overflowed_is_no_part_of_the_next_step() -> None:
    enforcer, layer = Enforcer(), nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    enforcer.set_masks(layer, {"weight": torch.tensor([[True, False]])})
    enforcer.install(optimizer, layer)
    enforcer.captured = {}
    for x in ([1.0, 2.0], [10.0, 20.0]):
        layer(torch.tensor([x])).sum().backward()
    assert enforcer.captured["weight"].tolist() == [[11.0, 22.0]]
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[11.0, 0.0]]
    enforcer.remove()


@pytest.mark.parametrize(("values", "message"), [
    ({"structure": "channel"}, "single weights or blocks of them grow"),
    ({"structure": "neuron"}, "has no gradient to grow by"),
    ({"structure": "2:4", "allocation": "uniform", "target": None}, "single weights or blocks"),
    ({"restore": "revive"}, "lets all removed weights train already"),
    ({"regrow": {"name": "rigl", "every": "3min"}}, "lengths of training"),
    ({"regrow": "rigel"}, "rigl"),
    ({"regrow": {"name": "rigl", "every": "20it", "end": "100it"}}, "20 and 100 of 12 steps"),
])  # fmt: skip
def test_what_cannot_grow_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(prunus.InputError, match=message):
        prunus.prune(tiny_task(), {**SPARSE, **values})


def test_without_training_nothing_grows() -> None:
    with pytest.raises(prunus.InputError, match="nothing trains, so nothing can grow"):
        prunus.prune(nn.Linear(4, 4), SPARSE)


@pytest.mark.parametrize("values", ["zero", "cut"])
def test_compressed_and_dense_phases_take_turns_and_the_last_is_compressed(values: str) -> None:
    turns = {
        "dense": "4it", "rounds": 3, "retrain": "8it", "target": 0.6, "schedule": "one_shot",
        "restore": {"name": "revive", "values": values, "when": "after"},
    }  # fmt: skip
    result = prunus.prune(tiny_task(), turns)
    assert [round(r.achieved, 2) for r in result.rounds] == [0.0, 0.6, 0.6, 0.6]
    assert result.sparsity == pytest.approx(0.6, abs=0.01)
