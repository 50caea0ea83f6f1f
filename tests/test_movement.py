"""Movements of elements: read off index numbers, and compacted, whatever the chain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import cut_units
from prunus.compaction.compact import perform
from prunus.compaction.search import find_plan
from prunus.graph.analysis import analyze
from prunus.graph.apart import exchanged, reshaped
from prunus.graph.movement import Relation, relate
from prunus.graph.units import coupled_units


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[int], list[tuple[str, Any]]]:
    """A shape and a chain of movements that fits it."""
    shape = draw(st.lists(st.integers(2, 4), min_size=2, max_size=3))
    first, steps = list(shape), []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["permute", "merge", "split", "slice", "flip_pad"]))
        d = draw(st.integers(0, len(shape) - 1))
        if kind == "permute":
            order = draw(st.permutations(range(len(shape))))
            steps.append(("permute", list(order)))
            shape = [shape[i] for i in order]
        elif kind == "merge" and len(shape) > 1 and d < len(shape) - 1:
            shape = [*shape[:d], shape[d] * shape[d + 1], *shape[d + 2 :]]
            steps.append(("reshape", list(shape)))
        elif kind == "split" and shape[d] % 2 == 0 and shape[d] > 2:
            shape = [*shape[:d], 2, shape[d] // 2, *shape[d + 1 :]]
            steps.append(("reshape", list(shape)))
        elif kind == "slice" and shape[d] > 2:
            steps.append(("narrow", (d, 1, shape[d] - 1)))
            shape[d] -= 1
    return first, steps


class Moved(nn.Module):
    """A parameter's dimensions, moved about, then weighed and summed."""

    def __init__(self, shape: list[int], steps: list[tuple[str, Any]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.steps = steps
        self.weight = nn.Parameter(torch.randn(shape, generator=generator))
        out = self.moved(self.weight).shape
        self.scale = nn.Parameter(torch.randn(out, generator=generator))

    def moved(self, t: Tensor) -> Tensor:
        for name, argument in self.steps:
            t = t.narrow(*argument) if name == "narrow" else getattr(t, name)(argument)
        return t

    def forward(self, x: Tensor) -> Tensor:
        return (self.moved(torch.tanh(self.weight)) * self.scale).sum() * x


@settings(max_examples=15, deadline=None)
@given(chains(), st.integers(0, 1000))
def test_any_chain_of_movements_compacts_to_what_was_masked(
    chain: tuple[list[int], list[tuple[str, Any]]], seed: int
) -> None:
    model = Moved(*chain).eval()
    analysis = analyze(model, torch.ones(1))
    kinds = coupled_units(analysis, ["weight", "scale"])
    chance = np.random.default_rng(seed)
    gone = [chance.permutation(k.classes)[: len(k) // 2] for k in kinds]
    cut = cut_units(analysis, np.concatenate([*gone, np.zeros(0, dtype=np.int64)]))
    plan = find_plan(model, cut, torch.ones(1))  # raises where they differ
    assert plan.comparison.equal
    small = perform(model, plan)
    assert bool(small(torch.ones(1)).isfinite().all())


def test_a_movement_is_read_off_index_numbers() -> None:
    relation, shape = relate(lambda x: x.permute(1, 0)[1:], [2, 3], [0, 1])
    assert shape == [2, 2]
    assert relation.flows[1, 0].index is not None
    assert relation.flows[1, 0].index.tolist() == [1, 2]
    assert relation.seen[1].tolist() == [False, True, True]


def _the_same(one: Relation, other: Relation) -> bool:
    fields = ("index", "inside", "outside")
    pairs = [
        (getattr(one.flows[k], f), getattr(other.flows[k], f)) for k in one.flows for f in fields
    ]
    pairs += [(one.seen[d], other.seen[d]) for d in one.seen]
    return (
        one.flows.keys() == other.flows.keys()
        and one.seen.keys() == other.seen.keys()
        and one.constant == other.constant
        and all(a is b if a is None or b is None else np.array_equal(a, b) for a, b in pairs)
    )


def _merged(factors: list[int], random: np.random.Generator) -> list[int]:
    """Neighbors multiplied here and there, and dimensions of size 1 put between them."""
    shape = list(factors)
    while len(shape) > 1 and random.random() < 0.5:
        i = int(random.integers(len(shape) - 1))
        shape[i : i + 2] = [shape[i] * shape[i + 1]]
    for _ in range(int(random.integers(3))):
        shape.insert(int(random.integers(len(shape) + 1)), 1)
    return shape


@pytest.mark.parametrize("seed", range(60))
def test_dimensions_looked_at_apart_move_as_all_of_them_together_do(seed: int) -> None:
    random = np.random.default_rng(seed)
    factors = random.integers(1, 5, size=int(random.integers(1, 6))).tolist()
    shape, out = _merged(factors, random), _merged(factors, random)
    dims = [d for d, n in enumerate(shape) if n > 1 and random.random() < 0.8]
    whole, _ = relate(lambda x: x.reshape(out), shape, dims)
    assert _the_same(whole, reshaped(shape, out, dims)) or not dims
    order = random.permutation(len(shape)).tolist()
    for move in (
        lambda x: x.permute(order),
        lambda x: x.unsqueeze(-1),
        lambda x: x.flip(0),
        lambda x: x.roll(2, 0),
        lambda x: x.transpose(0, -1),
    ):
        assert _the_same(relate(move, shape, dims)[0], exchanged(move, shape, dims)) or not dims
