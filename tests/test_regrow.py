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
from prunus.methods.traits import trait
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
            behind = trait("regrowths", name, "LATENT")  # then it starts at what was behind it
            assert bool(weight[grown].any()) if behind and grown.any() else not weight[grown].any()
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


@pytest.mark.parametrize("backward", [0.25, 1.0])
def test_top_kast_is_its_equation_in_float64(backward: float) -> None:
    """θ of all weights; zeros pass forward, the largest are left (Jayakumar 2021, equation 2)."""
    regrow = {"name": "top_kast", "every": "2it", "end": 1.0, "fraction": 0.9, "decay": "none",
              "backward": backward}  # fmt: skip
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    names = ("0.weight", "2.weight")
    theta = {n: model.get_parameter(n).detach().clone() for n in names}
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.01)
    beside = torch.optim.SGD([p for n, p in plain.named_parameters() if n not in names], lr=0.5,
                             weight_decay=0.01)  # fmt: skip
    pruner = prunus.Pruner(
        model, recipe("top_kast", criterion="magnitude", schedule="one_shot", regrow=regrow),
        optimizer, steps=12,
    )  # fmt: skip
    masks = {n: pruner.masks[n].clone() for n in names}
    traded = 0
    for step in range(12):
        for loop, steps in ((model, optimizer), (plain, beside)):
            for name in names if loop is plain else ():
                loop.get_parameter(name).data = theta[name] * masks[name]
            loop.zero_grad()
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(8, 8, generator=generator, dtype=torch.float64)
            nn.functional.cross_entropy(loop(x), torch.arange(8) % 4).backward()
            steps.step()
        for name in names:
            mask, gradient = masks[name], plain.get_parameter(name).grad
            assert gradient is not None
            count = round(backward * int((~mask).sum()))
            size = theta[name].abs().masked_fill(mask, -1).flatten()
            goes = torch.zeros_like(size, dtype=torch.bool)
            goes[size.topk(count).indices] = True
            goes = goes.view(mask.shape)
            decay = torch.where(mask, 0.01, 0.01 / float(mask.double().mean()))
            moved = theta[name] - 0.5 * (gradient + decay * theta[name])
            theta[name] = torch.where(mask | goes, moved, theta[name])
            if step % 2 == 1 and step < 11:
                kept = theta[name].abs().flatten().topk(int(mask.sum())).indices
                masks[name] = torch.zeros_like(size, dtype=torch.bool)
                masks[name][kept] = True
                masks[name] = masks[name].view(mask.shape)
                traded += int((masks[name] != mask).sum())
            assert torch.equal(pruner.masks[name], masks[name])
            found = model.get_parameter(name).detach()
            assert torch.allclose(found, theta[name] * masks[name], atol=1e-12)
    assert traded > 20


def test_a_state_keeps_what_was_behind_removed_weights_then() -> None:
    loop = Loop(recipe("top_kast"))
    for step in range(6):
        loop.step(step)
        if step == 3:
            state = loop.pruner.state_dict()
            behind = {n: t.clone() for n, t in state["behind"].items()}
    assert any(bool(t.any()) for t in behind.values())
    assert all(torch.equal(t, state["behind"][n]) for n, t in behind.items())


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
    ({"regrow": "top_kast", "restore": "reinitialize"}, "removed weights go on behind their zeros"),
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
