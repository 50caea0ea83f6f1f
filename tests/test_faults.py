"""Faults planted in compact models: the gate finds each, and a failure changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import cut_units
from prunus._common.inputs import arguments
from prunus.compaction.compact import perform
from prunus.compaction.cut import IndexCut, masks_of
from prunus.compaction.rewriting import rewrite as rewriting
from prunus.compaction.rewriting.literals import PATCHES
from prunus.compaction.search import find_plan
from prunus.compaction.verifying.stepping import first_difference
from prunus.compaction.verifying.uses import Use
from prunus.compaction.verifying.values import random_like, small_state, values_for_test
from prunus.compaction.verifying.verify import (
    Comparison,
    compare,
    difference,
    outputs,
)
from prunus.errors import RunError
from prunus.graph.analysis import analyze
from prunus.graph.labels import Fixed
from prunus.types import Kept


class Attention(nn.Module):
    """Four heads of four behind eight neurons; sizes behind −1 fit whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.first = nn.Linear(5, 8)
        self.qkv = nn.Linear(8, 48)
        self.out = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.merged((q @ k.transpose(-1, -2)).softmax(-1) @ v))

    def merged(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(len(y), y.shape[2], -1)


class MixedUp(Attention):
    """A token's heads are taken from other tokens; every shape is right."""

    def merged(self, y: Tensor) -> Tensor:
        return y.reshape(len(y), y.shape[2], -1)


EXAMPLE = torch.ones(2, 4, 5)


class Case:
    """The model without two heads and two neurons, and what a comparison needs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Attention().eval()
        self.cut = self._cut()
        self.kept: Kept = self.cut.kept()
        masks = masks_of(self.cut, dict(self.model.named_parameters()))
        _, self.masked = values_for_test(self.model, masks)
        self.small = dict(small_state(self.masked, self.kept, self.cut.analysis.names))
        self.inputs = random_like(arguments(EXAMPLE))
        self.expected = outputs(self.model, self.masked, self.inputs)
        self.compact = perform(copy.deepcopy(self.model), find_plan(self.model, self.cut, EXAMPLE))

    def _cut(self) -> IndexCut:
        analysis = analyze(self.model, EXAMPLE)
        gone = []
        for name, d, indices in (("out.weight", 1, [4, 12]), ("first.weight", 0, [1, 5])):
            dim = analysis.tensors[name].dims[d]
            assert not isinstance(dim, Fixed)
            gone.append(analysis.solved.of(dim)[indices])
        return cut_units(analysis, np.concatenate(gone))

    def compared(self) -> Comparison:
        return compare((self.expected, {}), self.compact, self.small, Use("", self.inputs))

    def place(self) -> str | None:
        """The first operator that differs."""
        rewritten = rewriting.rewrite(self.cut)
        return first_difference(self.cut, rewritten, (self.masked, self.small), self.inputs)


@pytest.fixture
def case() -> Case:
    return Case()


def test_without_a_fault_they_are_equal(case: Case) -> None:
    assert case.compared().equal
    assert case.place() is None
    assert [len(k) for k in case.kept["qkv.weight"] if k is not None] == [24, 6]


def _rows_swapped(case: Case) -> None:
    case.small["first.weight"] = case.small["first.weight"][[1, 0, 2, 3, 4, 5]]


def _bias_of_other_rows(case: Case) -> None:
    case.small["first.bias"] = case.masked["first.bias"][:6]


def _columns_out_of_order(case: Case) -> None:
    indices = case.kept["out.weight"][1]
    assert indices is not None
    case.small["out.weight"] = case.masked["out.weight"][:, indices.flip(0)]


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (_rows_swapped, "first.weight"),
        (_bias_of_other_rows, "first.bias"),
        (_columns_out_of_order, "out.weight"),
    ],
)
def test_a_wrong_slice_is_found_where_it_enters(
    case: Case, fault: Callable[[Case], None], where: str
) -> None:
    fault(case)
    assert not case.compared().equal
    assert case.place() == where


def test_a_number_of_heads_that_nobody_changed_is_found_behind_minus_one(case: Case) -> None:
    assert case.compact.heads == 2
    case.compact.heads = 4  # 24 = 3 · 4 · 2: no shape complains
    found = case.compared()
    assert found.problem is None
    assert not found.equal


def test_tokens_mixed_up_behind_minus_one_are_found(case: Case) -> None:
    case.compact.__class__ = MixedUp
    found = case.compared()
    assert found.problem is None
    assert not found.equal


def test_an_exception_is_a_difference_with_its_text(case: Case) -> None:
    case.small["out.weight"] = case.masked["out.weight"]
    assert "mat1 and mat2" in str(case.compared().problem)


def test_a_nan_on_one_side_is_a_difference() -> None:
    gap, problem = difference([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, torch.nan])])
    assert gap == float("inf")
    assert problem == "an output is NaN on one side"


def state_of(model: nn.Module) -> dict[str, Any]:
    """Every tensor's bits and every plain attribute."""
    found: dict[str, Any] = {n: t.detach().clone() for n, t in model.state_dict().items()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if type(value) in (int, float, bool, str):
                found[f"{name}:{key}"] = value
    return found


def _reversed_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rewriting.take

    def wrong(tensor: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
        return right(tensor, tuple(None if k is None else k.flip(0) for k in kept[:1]) + kept[1:])

    monkeypatch.setattr(rewriting, "take", wrong)
    monkeypatch.setattr("prunus.compaction.verifying.values.take", wrong)
    monkeypatch.setattr("prunus.compaction.verifying.sources.take", wrong)
    monkeypatch.setattr("prunus.compaction.verifying.stepping.take", wrong)


def _stale_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PATCHES, "reshape", lambda cut, node, named: None)
    monkeypatch.setitem(PATCHES, "view", lambda cut, node, named: None)


class Stale(Attention):
    """Merges by a number, so that the graph needs a new one."""

    def merged(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(len(y), 4, 16)


@pytest.mark.parametrize("fault", [_reversed_indices, _stale_sizes])
def test_a_failed_search_names_the_trouble_and_changes_nothing(
    case: Case, fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case.model.__class__ = Stale
    case.model.train()
    cut = case._cut()
    before = state_of(case.model)
    parameters = [id(p) for p in case.model.parameters()]
    fault(monkeypatch)
    with pytest.raises(RunError, match=r"does not equal|cannot be rewritten"):
        find_plan(case.model, cut, EXAMPLE)
    after = state_of(case.model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        )
        assert same, name
    assert [id(p) for p in case.model.parameters()] == parameters
    assert case.model.training


class Cached(nn.Module):
    """Keeps a number per channel that it computed in eval mode, as LeViT keeps its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.rand(6))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Cached:
        if mode:
            self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.cache.get("cpu", self.scale.exp())
        if not self.training:
            self.cache["cpu"] = scale.detach()
        return self.last(torch.relu(self.first(x)) * scale)


def test_what_a_dense_pass_cached_is_not_read_by_the_compact_model() -> None:
    torch.manual_seed(0)
    model = Cached().eval()
    with torch.no_grad():
        model(EXAMPLE)
    analysis = analyze(model, EXAMPLE)
    dim = analysis.tensors["scale"].dims[0]
    assert not isinstance(dim, Fixed)
    plan = find_plan(model, cut_units(analysis, analysis.solved.of(dim)[:2]), EXAMPLE)
    assert plan.route == "sliced"
    assert model.cache["cpu"].shape == (6,)
    small = perform(model, plan)
    assert small.cache == {}
    small(EXAMPLE)
    assert small.cache["cpu"].shape == (4,)
