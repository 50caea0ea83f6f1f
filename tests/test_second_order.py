"""repair: second_order, against the constrained minimum solved whole, and in runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import InputError

DATA = [
    (torch.randn(16, 6, generator=torch.Generator().manual_seed(i)), torch.arange(16) % 3)
    for i in range(12)
]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 3)
    )


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def gradients_of(model: nn.Module, name: str) -> Tensor:
    """``[batches, weights]`` of one parameter, in eval mode."""
    twin = copy.deepcopy(model).eval()
    rows = []
    for batch in DATA:
        (grad,) = torch.autograd.grad(loss(twin, batch), [twin.get_parameter(name)])
        rows.append(grad.flatten().double())
    return torch.stack(rows)


@settings(max_examples=20, deadline=None)
@given(
    part=st.floats(0.0, 1.0), size=st.integers(1, 70), seed=st.integers(0, 2**16),
    damping=st.sampled_from([1e-4, 1e-2, 1.0]),
)  # fmt: skip
def test_survivors_move_to_the_minimum_under_the_constraint(
    part: float, size: int, seed: int, damping: float
) -> None:
    whole = network(seed)
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(whole.get_parameter(n).shape, generator=generator) >= part
             for n in ("0.weight", "4.weight")}  # fmt: skip
    model = copy.deepcopy(whole)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    how = {"name": "second_order", "block_size": size, "damping": damping}
    prunus.repair(model, DATA, repair=how, reference=whole, masks=masks, loss=loss)
    for name, mask in masks.items():
        weight = whole.get_parameter(name).detach().double().flatten()
        found, keep = model.get_parameter(name).detach().flatten(), mask.flatten()
        grads = gradients_of(whole, name)
        for start in range(0, len(weight), min(size, len(weight))):
            part_of = slice(start, min(start + min(size, len(weight)), len(weight)))
            own, stays = weight[part_of], keep[part_of]
            rows = grads[:, part_of]
            fisher = rows.T @ rows / len(rows) + damping * torch.eye(len(own)).double()
            inverse = torch.linalg.inv(fisher)  # the formula as the papers write it, by F⁻¹
            goes = ~stays
            step = torch.zeros_like(own)
            if bool(goes.any()):
                inner = torch.linalg.inv(inverse[goes][:, goes])
                step = -inverse[:, goes] @ inner @ own[goes]
            wanted = torch.where(stays, own + step, torch.zeros_like(own))
            torch.testing.assert_close(found[part_of].double(), wanted, rtol=1e-3, atol=2e-4)
        assert not found[~keep].any()


def trained(*, plain: bool = False) -> nn.Module:
    model = network()
    if plain:
        model[1] = model[3] = nn.Identity()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(150):
        optimizer.zero_grad()
        loss(model, labeled(DATA[step % len(DATA)])).backward()
        optimizer.step()
    return model.eval()


def labeled(batch: Any) -> Any:
    """Labels that the inputs decide."""
    return batch[0], (batch[0][:, :3] + 0.5 * batch[0][:, 3:]).argmax(1)


LABELED = [labeled(batch) for batch in DATA]


def mean_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return sum(float(loss(model.eval(), b)) for b in LABELED) / len(LABELED)


def test_a_small_cut_costs_less_behind_it() -> None:
    single = [(x[i : i + 1], y[i : i + 1]) for x, y in LABELED for i in range(16)]
    after = {}
    for repair in ("nothing", "second_order"):
        for target in (0.2, 0.3):
            model = trained(plain=True)
            how = {"name": "second_order", "damping": 1e-3}
            recipe = {"target": target} | ({} if repair == "nothing" else {"repair": how})
            result = prunus.prune(model, recipe, calibration=single, loss=loss)
            after[repair, target] = mean_loss(model)
            for name, mask in result.masks.items():
                assert not model.get_parameter(name)[~mask].any()
    assert after["second_order", 0.2] < 0.95 * after["nothing", 0.2]
    assert after["second_order", 0.3] < 0.95 * after["nothing", 0.3]


def test_what_it_lacks_is_said_before_work_starts() -> None:
    whole = network()
    with pytest.raises(InputError, match="pass loss"):
        prunus.repair(network(), [DATA[0][0]], repair="second_order", reference=whole)
    with pytest.raises(InputError, match="pass reference"):
        prunus.repair(network(), DATA, repair="second_order", loss=loss)
    inputs = [x for x, _ in DATA]
    with pytest.raises(InputError, match="take least_squares"):
        prunus.prune(network(), {"target": 0.5, "repair": "second_order"}, calibration=inputs)


def test_a_run_that_is_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    recipe = {"target": 0.6, "rounds": 3, "retrain": "3it", "repair": "second_order",
              "criterion": "obert"}  # fmt: skip

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        run.attach(optimizer)
        for batch in run.batches(LABELED):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

    def ended(folder: Path | None, stop_at: int = 0) -> dict[str, Tensor]:
        model, asked = trained(), [0]

        def stop() -> bool:
            asked[0] += 1
            return asked[0] == stop_at

        given: Any = {"train": train, "calibration": LABELED, "loss": loss, "folder": folder}
        if stop_at:
            with pytest.raises(prunus.Interrupted):
                prunus.prune(model, recipe, should_stop=stop, **given)
            model = trained()
        return prunus.prune(model, recipe, **given).model.state_dict()

    wanted = ended(None)
    for place in (1, 4):
        found = ended(tmp_path / str(place), place)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
