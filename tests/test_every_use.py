"""A compact model in every use: it answers as the masked model does, or it says that it cannot."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus import InputError
from prunus._common.nested import tensors_of
from prunus.compaction.verifying.everywhere import Everywhere
from prunus.compaction.verifying.verify import FLOAT64, Comparison
from prunus.graph.guard import expression, guard_of
from prunus.graph.passes import Modes, trace_all

HALF = {"structure": "channel", "allocation": "uniform", "target": 0.5}


def pruned(model: nn.Module, example: Any) -> tuple[nn.Module, prunus.Compact]:
    """The masked model and the compact one, in eval mode."""
    masked: Any = prunus.prune(copy.deepcopy(model).eval(), HALF, example=example)
    return masked.model, prunus.compact(model, masked.masks, example)


def same(one: Any, other: Any) -> bool:
    pairs = list(zip(tensors_of(one), tensors_of(other), strict=True))
    return bool(pairs) and all(torch.allclose(a, b, 1e-4, 1e-5) for a, b in pairs)


class Scaled(nn.Module):
    """A number, an optional tensor and a size that the code writes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 3)
        self.classes = ["one", "two", "three"]

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x)).view(-1, 32)

    def forward(self, x: Tensor, scale: float = 1.0, add: Tensor | None = None) -> Tensor:
        h = self.features(x) * scale
        if add is not None:
            h = h + add
        return self.out(F.relu(self.b(h)))


class Within(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(8, 8), Scaled()

    def forward(self, x: Tensor, scale: float = 1.0, add: Tensor | None = None) -> Tensor:
        return self.inner(F.relu(self.first(x)), scale, add)


class Sized(nn.Module):
    """Another way through the code for large pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.f, self.out = nn.Linear(256, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.c(x))
        if x.shape[-1] > 12:
            h = F.max_pool2d(F.relu(self.d(h)), 2) * 2
        return self.out(F.relu(self.f(F.adaptive_avg_pool2d(h, 4).view(-1, 256))))


class BatchMean(nn.Module):
    """The size of the batch is a divisor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.b(F.relu(self.a(x)).view(-1, 32)))
        return self.out(h - h.sum(0, keepdim=True) / x.shape[0])


class Auxiliary(nn.Module):
    """A second head, noise and a moving average while it trains."""

    def __init__(self, literal: bool) -> None:
        super().__init__()
        self.literal = literal
        self.f, self.g = nn.Linear(12, 32), nn.Dropout(0.5)
        self.out, self.aux = nn.Linear(32, 4), nn.Linear(32, 4)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.f(x))
        h = h.view(-1, 32) if self.literal else h
        out = self.out(self.g(h))
        if not self.training:
            return out
        with torch.no_grad():
            self.average.mul_(0.9).add_(0.1 * out.mean(0))
        return out, self.aux(h)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", [Scaled(), Within()], ids=["whole", "inner"])
def test_a_call_of_another_kind_is_refused_by_name(model: nn.Module) -> None:
    masked, small = pruned(model, X)
    assert small.route in ("graph", "modules")
    assert same(masked(X[:1]), small.model(X[:1]))
    assert same(masked(X, 1.0, add=None), small.model(X, 1.0, add=None))
    calls: list[dict[str, Any]] = [{"scale": 2.0}, {"add": torch.ones(4, 1)}, {"scale": 2}]
    for call in calls:
        said = f"{next(iter(call))} is .*example=\\[first, second\\]"
        with pytest.raises(InputError, match=said):
            small.model(X, **call)


def test_each_example_becomes_a_pass_of_one_module() -> None:
    more = {"x": X, "add": torch.ones(4, 1)}
    masked, small = pruned(Scaled(), [X, more, {"x": X, "scale": 2.0}])
    assert small.route == "graph"
    assert same(masked(X), small.model(X))
    assert same(masked(X, add=torch.full((4, 1), 3.0)), small.model(X, add=torch.full((4, 1), 3.0)))
    assert same(masked(X, 2.0), small.model(X, scale=2.0))
    assert len(small.model.state_dict()) == len(masked.state_dict())
    with pytest.raises(InputError, match=r"scale is 3\.0"):
        small.model(X, 3.0)
    twin = copy.deepcopy(small.model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert not same(twin(**more), small.model(**more))
    assert same(masked(**more), small.model(**more))


def test_what_a_graph_holds_for_is_in_the_file(tmp_path: Path) -> None:
    model = Auxiliary(literal=True)
    x = torch.randn(4, 12)
    masked, small = pruned(model, x)
    opened = prunus.load(small.save(tmp_path / "small.safetensors"))
    assert same(masked(x), opened(x))
    masked.train(), opened.train()
    for module in masked.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert len(opened(x)) == 2
    assert same(masked(x)[1], opened(x)[1])
    with pytest.raises(InputError, match="x has size 11 in dimension 1, and had 12"):
        opened(x[:, :11])


def test_a_size_that_chose_the_way_is_refused_beyond_it() -> None:
    masked, small = pruned(Sized(), torch.randn(2, 3, 8, 8))
    for shape in ((1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 10, 11)):
        x = torch.randn(shape)
        assert same(masked(x), small.model(x))
    with pytest.raises(InputError, match=r"x.shape\[3\] <= 12 does not hold"):
        small.model(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("batch", [1, 4])
def test_an_example_of_any_batch_serves_all_batches(batch: int) -> None:
    masked, small = pruned(BatchMean(), X[:batch])
    assert small.route == "graph"
    for n in (1, 2, 3, 4):
        assert same(masked(X[:n]), small.model(X[:n]))


@pytest.mark.parametrize("literal", [False, True])
def test_what_only_training_runs_is_there_and_falls_together(literal: bool) -> None:
    x = torch.randn(6, 12)
    masked, small = pruned(Auxiliary(literal), x)
    assert small.model.aux.weight.shape[1] < 32
    masked.train(), small.model.train()
    out, aux = small.model(x)
    assert out.shape == aux.shape
    assert same(masked(x)[1], aux)
    assert not torch.equal(small.model(x)[0], small.model(x)[0])  # dropout is at work
    before = small.model.average.clone()
    small.model(x)
    assert not torch.equal(before, small.model.average)
    masked.eval(), small.model.eval()
    assert same(masked(x), small.model(x))


def test_methods_that_a_graph_lacks_are_named_and_plain_attributes_stay() -> None:
    _, small = pruned(Scaled(), X)
    assert small.model.classes == ["one", "two", "three"]
    with pytest.raises(AttributeError, match=r"Scaled\.features is not there"):
        small.model.features(X)
    with pytest.raises(AttributeError, match="the graph of this Scaled"):
        small.model.other  # noqa: B018


def test_a_training_pass_is_followed_only_where_it_differs() -> None:
    plain = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    assert Modes.of(plain, ((torch.randn(3, 4),), {})) == Modes()
    assert [t.training for t in trace_all(plain, torch.randn(3, 4))] == [False]
    own = Auxiliary(literal=False)
    before = own.average.clone()
    assert [t.training for t in trace_all(own, torch.randn(3, 12))] == [False, True]
    assert torch.equal(own.average, before)
    failing = Modes.of(plain, ((torch.randn(1, 4),), {})).problem  # statistics of one item
    assert failing is not None
    assert "more than 1 value per channel" in failing


def test_a_way_through_the_code_that_chance_chooses_is_no_pass() -> None:
    class Skips(Scaled):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            chosen = np.random.rand() < 0.5
            return super().forward(x) if self.training and chosen else self.out(self.b(self.a(x)))

    seeds = {Modes.of(Skips(), ((X,), {})).problem for _ in range(3)}
    assert len(seeds) == 1
    masked, small = pruned(Skips().eval(), X)
    assert same(masked(X), small.model(X))


def test_what_cannot_train_as_the_example_says_is_refused_in_train_mode() -> None:
    class Targets(Scaled):
        def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:  # type: ignore[override]
            if self.training and target is None:
                raise ValueError("targets are needed")
            return super().forward(x)

    _, small = pruned(Targets(), X)
    assert small.route == "graph"
    with pytest.raises(InputError, match="not traced in train mode"):
        small.model.train()(X)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
@settings(max_examples=60, deadline=None)
def test_a_guard_takes_what_was_traced_and_says_what_is_another(sizes: Any, data: Any) -> None:
    guard = guard_of(["x", "flag"], {"flag": None}, ((torch.zeros(sizes),), {"flag": True}))
    assert isinstance(guard.arranged((torch.ones(sizes), True), {}), list)
    place = data.draw(st.integers(0, len(sizes) - 1))
    other = [n + (d == place) for d, n in enumerate(sizes)]
    assert guard.arranged((torch.zeros(other), True), {}) == (
        f"x has size {other[place]} in dimension {place}, and had {sizes[place]}"
    )
    assert guard.arranged((torch.zeros(sizes),), {}) == "flag is None, and was True"
    whole = guard.arranged((torch.zeros(sizes).long(), True), {})
    assert whole == "x is a tensor of integers, and was a tensor of floats"


@pytest.mark.parametrize(
    "text", ["__import__('os')", "s0.real", "(" * 99, "9**9**9", "s0[0]", "f(1)"]
)
def test_sizes_from_a_file_are_arithmetic_alone(text: str) -> None:
    with pytest.raises(InputError, match="no arithmetic of sizes"):
        expression(text)


class SecondHead(nn.Module):
    """A head that training alone runs, and that knows its width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.wide, self.aux = nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x).relu()
        found = self.out(y.mean((2, 3)))
        if not self.training:
            return found
        return found, self.aux(self.wide(y).relu().mean((2, 3)).view(-1, 2, 4).flatten(1))


def test_a_use_is_tried_whatever_the_first_operator_thinks_of_mixed_types() -> None:
    """A convolution takes no float32 beside float64: the error would read as no such use."""
    model, x = SecondHead(), torch.randn(2, 3, 8, 8)
    result = prunus.prune(model, {**HALF, "compact": "end"}, example=x)
    assert result.model.train()(x)[1].shape == (2, 4)


SEEN: set[int] = set()


class Pictures(nn.Module):
    """A convolution that notes the sizes that it is given, and may take one alone."""

    def __init__(self, only: int | None = None) -> None:
        super().__init__()
        self.only = only
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.only not in (None, x.shape[-1]):
            raise InputError("another size")
        found = self.conv(x).mean((2, 3))
        SEEN.add(x.shape[-1])
        return found


def test_uses_run_on_half_of_a_large_picture_or_on_all_of_it_where_half_is_refused() -> None:
    model, fixed = Pictures().eval(), Pictures(128).eval()
    fixed.conv = model.conv
    state = {name: p.detach().double() for name, p in model.named_parameters()}
    SEEN.clear()
    everywhere = Everywhere(model, state, [((torch.randn(1, 3, 128, 128),), {})], FLOAT64)
    assert everywhere.check(model, state, Comparison(0.0)).equal
    assert {64, 63} == SEEN
    SEEN.clear()
    found = everywhere.check(fixed, state, Comparison(0.0))
    assert found.equal
    assert found.refusals == ("inputs of other sizes than 128",)
    assert {128} == SEEN
    wrong = Pictures(128).eval()
    assert not everywhere.check(wrong, {**state, "conv.bias": 2 + state["conv.bias"]}, found).equal


class Recalls(nn.Module):
    """Goes on from what it keeps; its code holds a size, so that it would become a graph."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.a, self.o, self.kept = nn.Linear(5, 8), nn.Linear(8, 2), kept
        self.state: Any = {"list": [], "number": 0}.get(kept)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x)).view(-1, 8)
        if self.kept == "list":
            self.state.append(h)
            h = torch.stack(self.state).mean(0)
        elif self.kept == "number":
            self.state += 1
            h = h * self.state
        elif self.kept == "tensor":
            self.state = h if self.state is None else h + self.state
            h = self.state
        elif self.state is None:  # made once: a second call is as the first
            self.state = torch.ones(())
        return self.o(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kept", ["list", "number", "tensor"])
def test_a_graph_of_a_model_that_goes_on_from_its_last_call_is_refused(kept: str) -> None:
    recipe = {"structure": "channel", "target": 0.5, "compact": "end"}
    older = "|an output stands for values that this torch did not follow" if kept == "list" else ""
    why = f"a second call goes on from what the model keeps{older}"
    with pytest.raises(prunus.RunError, match=why):
        prunus.prune(Recalls(kept), recipe, example=torch.randn(3, 5))


def test_what_is_made_in_the_first_call_and_stays_is_no_state() -> None:
    recipe = {"structure": "channel", "target": 0.5, "compact": "end"}
    result = prunus.prune(Recalls("table"), recipe, example=torch.randn(3, 5))
    assert result.compaction is not None
    assert result.compaction.route == "graph"


def test_what_a_graph_holds_of_its_model_cannot_be_set_without_a_word() -> None:
    recipe = {"structure": "channel", "target": 0.5, "compact": "end"}
    small = prunus.prune(Recalls("table"), recipe, example=torch.randn(3, 5)).model
    for model in (small, copy.deepcopy(small)):
        model.kept = "table"  # as it was
        model.mine = 3  # what its code does not read
        with pytest.raises(InputError, match=r"Recalls\.kept cannot be set"):
            model.kept = "number"
