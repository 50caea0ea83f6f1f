"""Laws that every file of every axis folder obeys; a new file is tested by being there."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from helpers import MODULES, NEEDED, Fused, Heads, allocation_of, layers_of, spec, weights
from prunus._common.units import numbers
from prunus.compaction.cut import cut_of, masks_of
from prunus.errors import InputError
from prunus.graph.analysis import analyze
from prunus.graph.experts import with_experts
from prunus.methods import catalog as folder
from prunus.methods.restores._memory import Memory
from prunus.methods.signals import SignalContext, by_unit, collect
from prunus.methods.traits import trait
from prunus.pruning.decide import Cost, LazyUnits, limits_of
from prunus.pruning.scope import find_layers
from prunus.pruning.units import member_mask, unit_alive, unit_scores
from prunus.recipe.resolve import bind
from prunus.types import Group, Member, State

FRACTION = st.floats(0, 1)


@pytest.mark.parametrize("axis", folder.AXES)
def test_every_idea_says_in_one_line_what_it_is_and_where_it_comes_from(axis: str) -> None:
    for entry in folder.entries(axis):
        assert entry.line.endswith("."), entry
        assert entry.source, entry


@pytest.mark.parametrize("axis", folder.AXES)
def test_settings_without_default_are_known_to_these_tests(axis: str) -> None:
    for name in folder.names(axis):
        parameters = inspect.signature(folder.find(axis, name)).parameters.values()
        missing = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        assert set(missing) <= set(NEEDED.get(name, {}))


# --- schedules


@pytest.mark.parametrize("name", folder.names("schedules"))
@given(ends=st.tuples(FRACTION, FRACTION), points=st.lists(FRACTION, min_size=2, max_size=9))
def test_a_schedule_goes_from_start_to_target_and_never_falls(
    name: str, ends: tuple[float, float], points: list[float]
) -> None:
    schedule = bind("schedules", spec(name))
    start, target = sorted(ends)
    assert schedule(0.0, start, target) == pytest.approx(start, abs=1e-12)
    assert schedule(1.0, start, target) == pytest.approx(target, abs=1e-12)
    values = [schedule(p, start, target) for p in sorted(points)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert all(start - 1e-12 <= v <= target + 1e-12 for v in values)
    assert values == [schedule(p, start, target) for p in sorted(points)]


# --- rates


@pytest.mark.parametrize("name", folder.names("rates"))
@given(progress=FRACTION)
def test_a_rate_is_a_factor_between_none_and_all_of_the_dense_one(
    name: str, progress: float
) -> None:
    rate = bind("rates", spec(name))
    assert 0 <= rate(progress, lambda p: 1.0) <= 1
    assert rate(0.0, lambda p: 1.0) == 1.0


# --- criteria


Batch = tuple[torch.Tensor, torch.Tensor]
HIDDEN, READS = 6, 4
NAMES = ("0.weight", "3.weight")
WAYS = ("neuron", "channel", "weight")


def network() -> nn.Sequential:
    """Hidden units behind a batch norm, none of them like another."""
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(
        nn.Linear(READS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def permuted(model: nn.Sequential, order: torch.Tensor) -> nn.Sequential:
    """The same function with its hidden units in another order."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
            twin.get_parameter(name).copy_(model.get_parameter(name)[order])
        twin.get_parameter("3.weight").copy_(model.get_parameter("3.weight")[:, order])
    return twin


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(8, READS, generator=generator)
    return [(inputs[:4], torch.tensor([0, 1, 2, 0])), (inputs[4:], torch.tensor([1, 2, 2, 1]))]


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@functools.cache
def groups_of(way: str) -> list[Group]:
    """The hidden units, or all weights one by one."""
    model = network()
    layers, shapes = find_layers(model), {n: tuple(p.shape) for n, p in model.named_parameters()}
    if way == "channel":
        return bind("structures", spec(way))(layers, shapes, analyze(model, batches()[0][0]))
    return bind("structures", spec(way))(layers[:1] if way == "neuron" else layers, shapes)


def looks(
    model: nn.Module, way: str, calibration: list[Batch], order: torch.Tensor | None = None
) -> SignalContext:
    """What a criterion sees of the network, its hidden units in an order."""
    order = torch.arange(HIDDEN) if order is None else order
    generator = torch.Generator().manual_seed(7)
    first, last = torch.rand(2, HIDDEN, READS, generator=generator)
    groups = groups_of(way)
    scored = {m.name for g in groups for m in g.members if m.scored}
    return SignalContext(
        model=model,
        parameters={n: p for n, p in model.named_parameters() if n in scored},
        calibration=calibration,
        loss=loss,
        seed=3,
        running={"0.weight": first[order], "3.weight": last[order].T[:3]},
        groups=groups,
        example=batches()[0][0],
    )


def scores_of(name: str, look: SignalContext) -> list[torch.Tensor]:
    """Of every parameter, or of every group where units are scored."""
    criterion = bind("criteria", spec(name))
    score = collect(criterion, look)
    return [score(of) for of in (look.groups if by_unit(criterion) else look.parameters)]


REFUSED = {
    ("apoz", "neuron"): "no linear layer or convolution is known to read: use structure: channel",
    ("apoz", "weight"): "no linear layer or convolution is known to read: use structure: channel",
    ("bn_scale", "neuron"): "no batch norm follows .*: structure: channel knows",
    ("bn_scale", "weight"): "no batch norm follows .*: structure: channel knows",
    ("fpgm", "weight"): "single weights: use structure: channel or neuron",
}
FITTING = [
    pair for pair in itertools.product(folder.names("criteria"), WAYS) if pair not in REFUSED
]  # fmt: skip


@pytest.mark.parametrize(("name", "way"), REFUSED)
def test_a_criterion_that_does_not_fit_the_units_says_which_do(name: str, way: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name, way]):
        scores_of(name, looks(network(), way, batches()))


@pytest.mark.parametrize(("name", "way"), FITTING)
def test_a_criterion_gives_finite_scores_of_the_right_shape_and_changes_nothing(
    name: str, way: str
) -> None:
    model = network()
    look = looks(model, way, batches())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (scores_of(name, look) for _ in range(2))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if by_unit(bind("criteria", spec(name))):
        shapes = [(g.units,) for g in look.groups]
    else:
        shapes = [tuple(p.shape) for p in look.parameters.values()]
    assert [tuple(s.shape) for s in first] == shapes
    for one, other in zip(first, second, strict=True):
        assert bool(torch.isfinite(one).all())
        assert torch.equal(one, other)
        assert not one.requires_grad


@pytest.mark.parametrize("name", [n for n in folder.names("criteria")
                                  if trait("criteria", n, "CALIBRATION")])  # fmt: skip
def test_a_batch_that_fails_leaves_no_trace_in_the_model(name: str) -> None:
    model = network()
    look = looks(model, "channel", [*batches(), (torch.ones(2, READS + 1), torch.tensor([0, 1]))])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        scores_of(name, look)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("name", "way"), [
    pair for pair in FITTING if not trait("criteria", pair[0], "SAMPLES")  # numbers by place
])  # fmt: skip
def test_scores_follow_the_units_when_these_change_places(name: str, way: str) -> None:
    order = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(8))
    model = network()
    given = scores_of(name, looks(model, way, batches()))
    moved = scores_of(name, looks(permuted(model, order), way, batches(), order))
    shapes = [(HIDDEN, READS), (3, HIDDEN)]
    for one, other, shape in zip(given, moved, shapes, strict=False):
        single = one.view(shape) if way == "weight" else one
        expected = single[order] if len(single) == HIDDEN else single[:, order]
        expected = expected.reshape(one.shape)
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [
    n for n in folder.names("criteria") if not trait("criteria", n, "BY_BATCH")
])  # fmt: skip
def test_scores_do_not_depend_on_how_calibration_is_cut_into_batches(name: str) -> None:
    whole = tuple(torch.cat(part) for part in zip(*batches(), strict=True))
    singly = [tuple(part[i : i + 1] for part in whole) for i in range(8)]
    given = scores_of(name, looks(network(), "channel", batches()))
    for other in ([whole], singly):
        again = scores_of(name, looks(network(), "channel", other))  # type: ignore[arg-type]
        for one, two in zip(given, again, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", folder.names("criteria"))
def test_every_criterion_removes_exactly_as_many_as_asked_with_a_seed(name: str) -> None:
    whole = trait("criteria", name, "BY_UNIT")
    recipe = {
        "criterion": name, "structure": "channel" if whole else "weight", "target": 0.5,
        "dense": "1it", "retrain": "1it", "rounds": 1, "scope": {"include": ["0.weight"]},
    }  # fmt: skip

    def train(model: nn.Module, run: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.attach(optimizer)
        for batch in run.batches(batches()):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

    masks = []
    for _ in range(2):
        result = prunus.prune(
            network(), recipe, train=train, calibration=batches(), loss=loss,
            example=batches()[0][0],
        )  # fmt: skip
        assert result.sparsity == 0.5
        masks.append(result.masks["0.weight"])
    assert torch.equal(*masks)


def test_a_criterion_that_returns_its_signal_gets_a_copy_to_be_changed() -> None:
    model = nn.Linear(2, 2)

    def itself(weight: torch.Tensor) -> torch.Tensor:
        return weight

    look = SignalContext(model, {"weight": model.weight}, None, None, 0, None)
    before = model.weight.detach().clone()
    collect(itself, look)("weight").zero_()
    assert torch.equal(model.weight, before)


# --- allocations


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Group], dict[Group, torch.Tensor], float]:
    runs = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    groups = weights(*(runs * s for s in sizes), run=runs)
    few = st.integers(0, draw(st.sampled_from([1, 3, 1000])))
    scores = {
        g: torch.tensor(draw(st.lists(few, min_size=g.units, max_size=g.units))).float() + 1
        for g in groups
    }
    return groups, scores, draw(st.floats(0, 1))


def reach(groups: list[Group]) -> float:
    return 1 - len(groups) / sum(g.units for g in groups)


@pytest.mark.parametrize("name", folder.names("allocations"))
@given(problem=problems())
@settings(max_examples=60, deadline=None)
def test_an_allocation_removes_exactly_as_many_as_asked_and_respects_limits(
    name: str, problem: tuple[list[Group], dict[Group, torch.Tensor], float]
) -> None:
    groups, scores, target = problem
    target = min(target, reach(groups))
    allocation = allocation_of(name, groups)
    limits, cost = limits_of(groups, dict.fromkeys(groups)), Cost(groups)
    counts = allocation(scores, cost, target, limits)
    again = allocation(scores, cost, target, limits)
    kept = {g: int(torch.as_tensor(counts[g]).sum()) for g in groups}
    total = sum(g.units for g in groups)
    asked = total - round(target * total)
    assert {g: int(torch.as_tensor(again[g]).sum()) for g in groups} == kept
    assert all(0 <= kept[g] <= g.units for g in groups)
    if name != "per_neuron":
        assert all(kept[g] >= limits[g].least for g in groups)
    if name == "threshold":  # the rule decides, and never goes past the target
        assert sum(kept.values()) >= asked
    else:
        assert sum(kept.values()) == asked
    if name == "per_neuron":
        assert all(int(n) <= g.run for g in groups for n in counts[g])


@pytest.mark.parametrize("name", sorted({*folder.names("allocations")} - {"per_neuron"}))
@given(
    sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 9)), min_size=1, max_size=4),
    target=st.floats(0, 0.999),
)
@settings(max_examples=40, deadline=None)
def test_units_of_many_weights_never_pass_the_target(
    name: str, sizes: list[tuple[int, int]], target: float
) -> None:
    groups = [
        Group(f"g{i}", n, (Member(f"g{i}"),), (n, size), 0, sizes=torch.full((n,), size))
        for i, (n, size) in enumerate(sizes)
    ]
    generator = torch.Generator().manual_seed(len(sizes))
    scores = {g: torch.rand(g.units, generator=generator).double() + 1 for g in groups}
    limits, cost = limits_of(groups, dict.fromkeys(groups)), Cost(groups)
    target = min(target, cost({g: limits[g].least for g in groups}))
    counts = allocation_of(name, groups)(scores, cost, target, limits)
    assert cost(counts) <= target + 1e-9
    assert all(limits[g].least <= int(counts[g]) <= limits[g].most for g in groups)


# --- structures


class Normed(Heads):
    """With a norm, for the structure of what norms count."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2))


ANALYZED = [
    name
    for name in folder.names("structures")
    if "analysis" in inspect.signature(folder.find("structures", name)).parameters
]
PLAIN = [name for name in folder.names("structures") if name not in ANALYZED]


@pytest.mark.parametrize("name", ANALYZED)
def test_masks_of_a_coupled_unit_remove_all_its_slices_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    hidden = trait("structures", name, "HIDDEN") is True
    model = Fused() if name == "expert" else Normed() if hidden else Heads()
    layers = find_layers(model)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    analysis = analyze(model, torch.randn(3, 8), hidden=hidden)
    if name == "expert":
        analysis = with_experts(analysis, layers)
    groups = bind("structures", spec(name))(layers, shapes, analysis)
    assert groups
    for group in groups:
        assert group.classes is not None
        assert len(group.classes) == group.units
        counted = torch.zeros(group.units, dtype=torch.int64)
        for member in group.members:
            number = numbers(member)
            assert number is not None
            full = number.expand(shapes[member.name])
            if member.scored:
                counted += torch.bincount(full[full >= 0].flatten(), minlength=group.units)
        assert group.sizes is not None
        assert torch.equal(counted, group.sizes)
        keep = torch.arange(group.units) != 1
        masks = {m.name: member_mask(m, keep, shapes[m.name]) for m in group.members}
        cut = cut_of(analysis, masks)
        assert cut.removed.nonzero()[0].tolist() == [group.classes[1]]
        again = masks_of(cut, dict(model.named_parameters()))
        assert masks.keys() == again.keys()
        for key, mask in masks.items():
            assert torch.equal(mask.expand(shapes[key]), again[key].expand(shapes[key]))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", PLAIN)
def test_every_unit_of_a_structure_holds_the_weights_it_says_and_masks_remove_just_them(
    name: str, module: str
) -> None:
    _, layers, shapes = layers_of(module)
    try:
        groups = bind("structures", spec(name))(layers, shapes)
    except InputError:
        assert name == "n_m"
        assert layers[0].shape[layers[0].in_dim] % 4
        return
    seen: dict[str, torch.Tensor] = {}
    for group in groups:
        counted = torch.zeros(group.units, dtype=torch.int64)
        for member in group.members:
            number = numbers(member)
            if number is None:
                number = torch.arange(math.prod(shapes[member.name]))
            full = (
                number.view(shapes[member.name])
                if member.index is None
                else number.expand(shapes[member.name])
            )
            inside = full >= 0
            assert not bool((seen.get(member.name, torch.zeros_like(inside)) & inside).any())
            seen[member.name] = seen.get(member.name, torch.zeros_like(inside)) | inside
            if member.scored:
                counted += torch.bincount(full[inside].flatten(), minlength=group.units)
            keep = torch.rand(group.units) > 0.5
            mask = member_mask(member, keep, shapes[member.name]).expand(shapes[member.name])
            assert torch.equal(mask, keep[full.clamp(min=0)] | ~inside)
        sizes = torch.ones_like(counted) if group.sizes is None else group.sizes
        assert torch.equal(counted, sizes)
        if group.run:
            assert group.units % group.run == 0
    assert any(m.name == layers[0].name for g in groups for m in g.members)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", PLAIN)
def test_unit_scores_are_the_mean_of_their_weights(name: str, module: str) -> None:
    _, layers, shapes = layers_of(module)
    try:
        groups = bind("structures", spec(name))(layers, shapes)
    except InputError:
        return
    values = {n: torch.rand(s, dtype=torch.float64) for n, s in shapes.items()}
    for group in groups:
        found = unit_scores(group, values.__getitem__)
        total, count = torch.zeros(group.units).double(), torch.zeros(group.units).double()
        for member in group.members:
            if member.scored:
                number = numbers(member)
                full = (
                    torch.arange(group.units).view(shapes[member.name])
                    if number is None
                    else number.expand(shapes[member.name])
                )
                inside = full >= 0
                total.index_add_(0, full[inside], values[member.name][inside])
                count.index_add_(0, full[inside], torch.ones(int(inside.sum())).double())
        assert torch.allclose(found.double(), total / count, rtol=1e-12)
        keep = torch.rand(group.units) > 0.4
        masks = {m.name: member_mask(m, keep, shapes[m.name]) for m in group.members}
        alive = unit_alive(group, masks, shapes)
        assert alive is not None
        assert torch.equal(alive, keep)


def test_lazy_units_read_the_same_whether_kept_or_made_anew() -> None:
    groups = weights(6, 4)
    scores = {"g0": torch.rand(6), "g1": torch.rand(4)}
    alive = {groups[0]: torch.tensor([True] * 5 + [False]), groups[1]: None}
    units = LazyUnits(groups, scores.__getitem__, alive)
    assert torch.equal(units[groups[1]], scores["g1"])
    assert units[groups[0]][5] == -torch.inf
    assert torch.equal(units[groups[0]], units[groups[0]])


# --- restore


@pytest.mark.parametrize("name", folder.names("restore"))
def test_a_restore_gives_every_tensor_in_its_shape_and_changes_none_in_place(name: str) -> None:
    def state(value: float) -> State:
        return State({"w": torch.full((2, 3), value), "running": torch.tensor(value)}, {0: value})

    memory = Memory(*(lambda v=v: state(v) for v in (1.0, 2.0, 3.0, 4.0)))  # type: ignore[misc]
    given_state = state(9.0)
    masks = {"w": torch.tensor([[True, False, True], [False, True, True]])}
    made = bind("restore", spec(name))(given_state, masks, memory)
    assert {k: v.shape for k, v in made.tensors.items()} == {
        "w": torch.Size([2, 3]), "running": torch.Size([]),
    }  # fmt: skip
    assert torch.equal(given_state.tensors["w"], torch.full((2, 3), 9.0))
