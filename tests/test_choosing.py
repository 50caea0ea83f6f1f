"""Exactly as many as asked, ties included, whatever the size and layout."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from prunus._common import topk
from prunus._common.topk import cutoff, keep_largest, keep_largest_by_run
from prunus.methods.allocations._fewest import Ranking, by_count
from prunus.progressive.engine import PruningEngine
from prunus.types import Group, Limits

VALUES = st.one_of(st.integers(-2, 2).map(float), st.floats(-9, 9, width=32), st.just(-torch.inf))


def by_sorting(scores: torch.Tensor, keep: int) -> torch.Tensor:
    order = torch.sort(scores, descending=True, stable=True).indices
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask


@given(
    scores=st.lists(VALUES, min_size=1, max_size=40),
    share=st.floats(0, 1),
    guess=st.one_of(st.none(), VALUES),
    double=st.booleans(),
)
@settings(deadline=None)
def test_keeps_the_same_as_a_stable_sort(
    scores: list[float], share: float, guess: float | None, double: bool
) -> None:
    values = torch.tensor(scores, dtype=torch.float64 if double else torch.float32)
    keep = round(share * len(values))
    assert torch.equal(keep_largest(values, keep, guess=guess)[0], by_sorting(values, keep))


@given(
    seed=st.integers(0, 99),
    levels=st.sampled_from([2, 5, 1000, None]),
    share=st.sampled_from([0.0, 1e-5, 0.1, 0.5, 0.99999, 1.0]),
)
@settings(deadline=None, max_examples=25)
def test_keeps_the_same_as_a_stable_sort_where_a_sample_brackets_the_cutoff(
    seed: int, levels: int | None, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(90_001, generator=generator)
    if levels is not None:
        values = (values * levels / 8).round()
    values[::7] = -torch.inf
    keep = round(share * len(values))
    assert torch.equal(keep_largest(values, keep)[0], by_sorting(values, keep))


def test_of_scores_that_tie_where_the_largest_end_none_is_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected = []
    right = topk._choose

    def choose(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = right(scores, mask)
        collected.append(len(found))
        return found

    monkeypatch.setattr(topk, "_choose", choose)
    values = torch.rand(300_000)
    values[1::2] = 0.0  # as where a gradient vanishes
    mask, _ = keep_largest(values, 160_000)
    assert torch.equal(mask, by_sorting(values, 160_000))
    assert sum(collected) < 10_000


def test_an_order_that_misleads_the_sample_changes_nothing() -> None:
    values = torch.zeros(200_000)
    values[1::3] = torch.arange(len(values[1::3])).float()
    values[::5] = 1e6
    keep = 50_000
    assert torch.equal(keep_largest(values, keep)[0], by_sorting(values, keep))


@given(seed=st.integers(0, 50), keep=st.integers(0, 300))
@settings(deadline=None)
def test_the_cutoff_of_many_parts_is_that_of_all_of_them(seed: int, keep: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(0, 9, (n,), generator=generator).float() for n in (100, 1, 150)]
    every = torch.cat(parts).sort(descending=True).values
    found = cutoff([lambda p=p: p for p in parts], [len(p) for p in parts], keep)  # type: ignore[misc]
    if 0 < keep < len(every):
        assert found.value == every[keep - 1]
        assert found.at_least == [int((p >= found.value).sum()) for p in parts]
        assert found.equal == [int((p == found.value).sum()) for p in parts]


@given(seed=st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_by_run_keeps_as_many_as_asked_in_each_row(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (7, 5), generator=generator).float()
    keep = torch.randint(0, 6, (7,), generator=generator)
    mask = keep_largest_by_run(scores, keep)
    for row in range(7):
        assert torch.equal(mask[row], by_sorting(scores[row], int(keep[row])))


def three_layers() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5), nn.Linear(5, 3))


def test_removes_exactly_as_many_when_scores_tie() -> None:
    model = three_layers()
    for layer in model:
        layer.weight.data.fill_(0.5)
    prunus.prune(model, {"target": 0.37})
    gone = sum(int((layer.weight == 0).sum()) for layer in model)
    assert gone == round(0.37 * (63 + 35 + 15))


def test_global_over_layers_is_a_sort_of_all_weights() -> None:
    model = three_layers()
    every = torch.cat([layer.weight.detach().abs().flatten() for layer in model])
    prunus.prune(model, {"target": 0.6})
    left = torch.cat([layer.weight.detach().flatten() for layer in model]) != 0
    assert torch.equal(left, by_sorting(every, len(every) - round(0.6 * len(every))))


def test_channels_last_weights_lose_the_same_weights_and_keep_their_layout() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 3)
    other = nn.Conv2d(8, 8, 3)
    other.load_state_dict(plain.state_dict())
    other = other.to(memory_format=torch.channels_last)
    for model in (plain, other):
        prunus.prune(model, {"target": 0.7})
    assert torch.equal(plain.weight, other.weight)
    assert other.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_tied_tensor_counts_once() -> None:
    model = three_layers()
    model.append(nn.Linear(9, 7))
    model[3].weight = model[0].weight  # type: ignore[index]
    result = prunus.prune(model, {"target": 0.5})
    assert result.sparsity == round(0.5 * 113) / 113
    assert sum(int((~m).sum()) for m in result.masks.values()) == round(0.5 * 113)


def test_a_layer_tied_to_an_embedding_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False))
    model[2].weight = model[0].weight  # type: ignore[index]
    result = prunus.prune(model, {"target": 0.5})
    assert list(result.masks) == ["1.weight"]


def test_masks_only_grow_smaller_and_bottom_up_fills_group_after_group() -> None:
    model = three_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recipe = {"target": 0.6, "schedule": {"name": "linear", "every": "1it"}, "order": "bottom_up",
              "allocation": "uniform"}  # fmt: skip
    pruner = prunus.Pruner(model, recipe, optimizer, steps=30)
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        model(torch.randn(4, 9)).square().mean().backward()
        optimizer.step()
        history.append(pruner._engine.densities)
    for before, after in itertools.pairwise(history):
        assert all(after[k] <= before[k] for k in after)
        assert after["1.weight"] == 1 or after["0.weight"] < 0.42
        assert after["2.weight"] == 1 or after["1.weight"] < 0.42
    assert history[9]["0.weight"] < 0.42
    assert history[9]["1.weight"] == 1
    assert pruner.sparsity == round(0.6 * 113) / 113


def test_two_four_goes_through_exact_stages() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8))
    recipe = {"structure": "2:4", "allocation": "uniform", "schedule": "linear"}
    pruner = PruningEngine(model, recipe)
    for asked, kept in ((0.0, 4), (0.26, 3), (0.5, 2)):
        pruner.cut(1.0, asked)
        left = (model[0].weight != 0).view(6, 2, 4).sum(-1)  # type: ignore[union-attr]
        assert bool((left == kept).all())
    assert zero_share(model[1]) == 0  # 6 inputs: 4 does not divide them


def zero_share(layer: nn.Module) -> float:
    return float((layer.weight == 0).float().mean())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("allocation", ["global", "uniform", "erk", "per_neuron"])
def test_scores_made_anew_in_each_pass_give_the_same_masks(
    criterion: str, allocation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"target": 0.6, "criterion": criterion, "allocation": allocation}
    held = PruningEngine(three_layers(), recipe).choose(1.0)
    monkeypatch.setattr("prunus.pruning.decide.HELD", 0)
    anew = PruningEngine(three_layers(), recipe).choose(1.0)
    assert all(torch.equal(held[name], anew[name]) for name in held)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 200),
    keep=st.integers(0, 24),
)
def test_one_sort_gives_the_counts_of_a_pass_over_all_groups(
    sizes: list[int], seed: int, keep: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = [Group(str(i), n, (), (n,), run=0) for i, n in enumerate(sizes)]
    scores = [torch.randint(-1, 3, (n,), generator=generator).float() for n in sizes]
    units = {g: s.where(s >= 0, -torch.inf) for g, s in zip(groups, scores, strict=True)}
    limits = {g: Limits(least=min(1 + i % 2, g.units), most=g.units) for i, g in enumerate(groups)}
    keep = min(max(keep, sum(x.least for x in limits.values())), sum(sizes))
    assert Ranking(units, limits)(keep) == by_count(units, keep, limits=limits)
