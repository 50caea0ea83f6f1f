"""Gradient repair: no step that leaves a block farther from the dense one is kept."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.blocks.fitting import Way
from prunus.blocks.mending import PART, apart, mend
from prunus.blocks.recipe import BlockRepair
from prunus.errors import RunError
from prunus.methods.repairs._descent import aside, descend, share

BATCHES = [torch.randn(6, 8, generator=torch.Generator().manual_seed(n)) for n in range(8)]
WAY = Way(BATCHES, [((), {})] * len(BATCHES))


def cut_block(seed: int = 0) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """Half of the weights of a small block, the block, and what stays."""
    torch.manual_seed(seed)
    dense = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    cut = copy.deepcopy(dense)
    masks = {n: torch.rand_like(p) > 0.5 for n, p in cut.named_parameters() if p.dim() == 2}
    with torch.no_grad():
        for name, mask in masks.items():
            cut.get_parameter(name).mul_(mask)
    return cut, dense, masks


@torch.no_grad()
def error(cut: nn.Module, dense: nn.Module, batches: range) -> float:
    return sum(float(apart(cut(BATCHES[n]), dense(BATCHES[n]))) for n in batches)


@pytest.mark.parametrize("rate", [None, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("count", [1, 3, 4, 8])
def test_repair_never_leaves_the_error_on_what_lies_aside_above_what_it_was(
    count: int, rate: float | None
) -> None:
    _, judging = aside(count)
    for seed in range(3):
        cut, dense, masks = cut_block(seed)
        before = copy.deepcopy(cut)
        way = Way(BATCHES[:count], WAY.calls[:count])
        with torch.no_grad():
            wanted = [dense(x) for x in way.flow]
        mend(cut, dense, (way, way), wanted, masks, how=BlockRepair(steps=12, rate=rate))
        first, last = error(before, dense, judging), error(cut, dense, judging)
        assert last < 0.99 * first if rate is None else last <= first
        for name, mask in masks.items():
            assert not cut.get_parameter(name)[~mask].any()
        if rate == 1e3:  # every step does harm: the same bits
            for name, parameter in cut.named_parameters():
                assert torch.equal(parameter, before.get_parameter(name)), name


def test_reconstruction_leaves_no_block_farther_away_than_least_squares_does() -> None:
    data = [torch.randn(200, 8, generator=torch.Generator().manual_seed(n)) for n in range(8)]
    for rate in (1e-3, 10.0):
        found = []
        for repair in ("least_squares", {"name": "reconstruct", "blocks": ["0"], "rate": rate}):
            cut, dense, _ = (nn.Sequential(m) if isinstance(m, nn.Module) else m
                             for m in cut_block())  # fmt: skip
            prunus.repair(cut, data, repair=repair, reference=dense)
            with torch.no_grad():
                found.append(float((cut(data[-1]) - dense(data[-1])).square().mean()))
        assert found[1] < found[0] if rate < 1 else found[1] == found[0]


def test_the_weights_of_the_lowest_error_stay() -> None:
    weight, errors = torch.zeros(1), iter([3.0, 2.0, 1.0, math.nan, 5.0, 4.0, 3.0, 2.0, 1.0])
    seen: list[float] = []

    def measured() -> float:
        seen.append(float(weight))
        return next(errors)

    descend({"w": weight}, {}, lambda step: -weight.sum(), error=measured, steps=16,
            rates={"w": 0.1})  # fmt: skip
    assert len(seen) == 9
    assert seen == sorted(seen)
    assert float(weight) == seen[2]
    assert not weight.requires_grad


def test_steps_that_end_nowhere_are_said() -> None:
    weight = torch.ones(1)
    with pytest.raises(RunError, match="a lower rate may help"):
        descend({"w": weight}, {}, lambda step: weight.sum() * math.nan, error=lambda: 1.0, steps=2,
                rates={"w": 1.0})  # fmt: skip


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_the_rate_rises_soon_and_falls_toward_zero(steps: int) -> None:
    shares = [share(step, steps) for step in range(steps)]
    assert all(0 < s <= 1 for s in shares)
    top = shares.index(max(shares))
    assert top <= steps / 8 + 1
    assert shares[top:] == sorted(shares[top:], reverse=True)


def test_a_place_that_is_long_does_not_outweigh_the_others() -> None:
    """The first one of a sequence may be ten times as long as others and more, as Gemma's is."""
    dense, cut = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[1.0, 1.0], [3.0, 0.0]]))
        cut.weight.copy_(torch.tensor([[2.0, 0.0], [3.0, 0.0]]))  # right of the long place alone
    mask = torch.tensor([[True, False], [True, True]])
    flow = [torch.cat([torch.full((1, 2), 100.0), x[:, :2].sign()]) for x in BATCHES]
    way = Way(flow, WAY.calls)
    with torch.no_grad():
        wanted = [dense(x) for x in flow]
    mend(cut, dense, (way, way), wanted, {"weight": mask}, how=BlockRepair(rate=2e-2))
    first, second = cut.weight[0].tolist()
    assert 0.8 < first < 1.4
    assert second == 0


def test_a_rate_that_is_not_given_goes_by_the_size_of_each_tensor() -> None:
    """Weights ten times as large, of what they read a tenth, move ten times as far."""
    moved = []
    for size in (1.0, 10.0):
        torch.manual_seed(0)
        dense = nn.Linear(8, 8, bias=False)
        mask = torch.rand(8, 8) > 0.5
        with torch.no_grad():
            dense.weight.mul_(size)
            cut = copy.deepcopy(dense)
            cut.weight.mul_(mask)
            flow = [x / size for x in BATCHES]
            wanted = [dense(x) for x in flow]
        before = cut.weight.detach().clone()
        way = Way(flow, WAY.calls)
        mend(cut, dense, (way, way), wanted, {"weight": mask}, how=BlockRepair(steps=4))
        moved.append((cut.weight - before).detach())
    assert 0 < float(moved[0].abs().max()) <= 4 * PART
    torch.testing.assert_close(moved[1], 10 * moved[0], rtol=1e-3, atol=1e-5)
