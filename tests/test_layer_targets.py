"""Sparsities of single layers: targets of their own, and limits, by pattern."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from helpers import allocation_of
from prunus.cli.main import cli
from prunus.errors import InputError
from prunus.methods import catalog
from prunus.progressive.engine import PruningEngine
from prunus.pruning.bounded import bounded
from prunus.pruning.caps import Cap, Caps
from prunus.pruning.decide import Cost, limits_of
from prunus.recipe.schema import Recipe
from prunus.types import Counts, Group, Limits, Member, Units


def net(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*(x for la in layers for x in (la, nn.ReLU())))


def zeros(model: nn.Module) -> dict[str, int]:
    return {n: int((p == 0).sum()) for n, p in model.named_parameters() if p.dim() > 1}


def stubborn(
    units: Units, cost: Any, target: float, limits: dict[Group, Limits]
) -> Counts:  # a user's own, which knows nothing of limits
    """The same from every group, the rest from the first."""
    kept: Counts = {g: g.units - int(target * g.units) for g in units}
    total = sum(g.units for g in units)
    missing = round(target * total) - sum(g.units - int(kept[g]) for g in units)
    for group in units:
        more = min(missing, int(kept[group]))
        kept[group] = int(kept[group]) - more
        missing -= more
    return kept


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Group], dict[Group, torch.Tensor], Caps, float]:
    rows = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=4))
    groups = [
        Group(f"g{i}", n * run, (Member(f"g{i}"),), (n, run), run)
        for i, (n, run) in enumerate(rows)
    ]
    scores = {
        g: torch.tensor(draw(st.lists(st.integers(1, 4), min_size=g.units, max_size=g.units)))
        .float()
        for g in groups
    }  # fmt: skip
    caps = {}
    for group in groups:
        ends = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
        if draw(st.booleans()):
            caps[group] = Cap(*ends) if draw(st.booleans()) else Cap(ends[0], ends[0])
    return groups, scores, Caps(caps), draw(st.floats(0, 1))


@pytest.mark.parametrize("name", [*catalog.names("allocations"), "stubborn"])
@given(problem=problems())
@settings(max_examples=30, deadline=None)
def test_limits_are_never_crossed_and_the_total_is_exact(
    name: str, problem: tuple[list[Group], dict[Group, torch.Tensor], Caps, float]
) -> None:
    groups, scores, caps, target = problem
    limits, cost = caps.within(limits_of(groups, dict.fromkeys(groups))), Cost(groups)
    ends = [cost({g: getattr(x, k) for g, x in limits.items()}) for k in ("most", "least")]
    target = min(max(target, ends[0]), ends[1])
    own = stubborn if name == "stubborn" else allocation_of(name, groups)
    counts = bounded(own, caps.of)(scores, cost, target, limits)
    kept = {g: int(torch.as_tensor(n).sum()) for g, n in counts.items()}
    assert list(kept) == groups
    assert all(limits[g].least <= kept[g] <= limits[g].most for g in caps.of)
    total = sum(g.units for g in groups)
    if name == "threshold":  # takes what it takes
        assert sum(kept.values()) >= total - round(target * total)
    elif name not in ("per_neuron", "stubborn") or len(caps.of) == len(groups):
        assert sum(kept.values()) == total - round(target * total)
    for group, cap in caps.of.items():
        gone = (group.units - kept[group]) / group.units
        if cap.exact:
            assert abs(gone - cap.most) <= 0.5 / group.units + 1e-9 or kept[group] == 1
        else:
            assert gone <= cap.most + 1e-9


@example(widths=[3, 5, 2, 2], most=1.0, own=0.25, target=0.25, structure="block")
@given(
    widths=st.lists(st.integers(2, 9), min_size=4, max_size=5),
    most=st.floats(0, 1),
    own=st.floats(0, 0.8),
    target=st.floats(0.05, 0.8),
    structure=st.sampled_from(["weight", "block", "neuron"]),
)
@settings(max_examples=30, deadline=None)
def test_a_model_gets_what_was_asked_or_is_refused_with_what_it_could_get(
    widths: list[int], most: float, own: float, target: float, structure: str
) -> None:
    model = net(*widths)
    values = {"structure": structure, "target": {"sparsity": target, "layers": {"0": own}},
              "limits": {"2": {"most": most}}}  # fmt: skip
    try:
        prunus.prune(model, values)
    except InputError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        said = ("at most", "these alone", "too little", "less than one unit", "nothing of")
        assert any(text in refused for text in said), refused
        assert not any(zeros(model).values())
        return
    gone = zeros(model)
    second, first = model[2].weight.numel(), model[0].weight.numel()
    assert gone["2.weight"] <= most * second + 1e-9
    unit = {"weight": 1, "block": 4, "neuron": widths[0]}[structure]
    assert abs(gone["0.weight"] - own * first) <= unit / (1 if structure != "weight" else 2) + 1e-9
    if structure == "weight":
        every = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        assert sum(gone.values()) == round(target * every)


def test_blocks_at_an_edge_count_by_their_weights() -> None:
    model = net(3, 5, 2, 2)  # the first weight: three blocks of four rows, three of one
    prunus.prune(model, {"structure": "block", "target": {"sparsity": 0.25, "layers": {"0": 0.25}}})
    assert abs(zeros(model)["0.weight"] - 0.25 * 15) <= 2


@pytest.mark.parametrize("rounds", [1, 3, None])
def test_a_layer_ends_at_its_own_sparsity_and_never_passes_its_limit_on_the_way(
    rounds: int | None,
) -> None:
    model = net(8, 10, 10, 5)
    seen: list[dict[str, int]] = []
    recipe = {"target": {"sparsity": 0.6, "layers": {"0": 0.5}}, "limits": {"2": {"most": 0.62}},
              "rounds": rounds, "schedule": "linear"}  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = prunus.Pruner(model, recipe, optimizer, steps=6)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).square().mean().backward()
        optimizer.step()
        seen.append(zeros(model))
    assert all(s["2.weight"] <= 62 and s["0.weight"] <= 40 for s in seen)
    assert (seen[-1]["0.weight"], sum(seen[-1].values())) == (40, round(0.6 * 230))
    assert pruner.done


def test_layers_alone_are_the_whole_target() -> None:
    model = net(8, 10, 10, 5)
    result = prunus.prune(model, {"target": {"layers": {"0": 0.5, "2.weight": 0.9}}})
    assert zeros(model) == {"0.weight": 40, "2.weight": 90, "4.weight": 0}
    assert result.sparsity == pytest.approx(130 / 230)


def test_a_guard_stops_at_what_limits_allow_and_says_so() -> None:
    recipe = {"target": "guard", "guard": {"max_drop": 0.1}, "limits": {"*": {"most": 0.5}}}
    result = prunus.prune(net(8, 10, 5), recipe, evaluate=lambda m: 0.9)
    assert result.sparsity == 0.5
    assert "as far as limits and whole units allow: sparsity 0.5" in result.reason


def test_channels_keep_to_the_limits_of_the_layer_whose_outputs_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(),
                          nn.Conv2d(20, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 3))  # fmt: skip
    recipe = {"structure": "channel", "target": {"max_macs": 0.4, "layers": {"0": 0.25}},
              "limits": {"2": {"most": 0.3}, "4.*": {"least": 0.5}}, "compact": "end"}  # fmt: skip
    small = prunus.prune(model, recipe, example=torch.randn(1, 1, 12, 12)).model
    assert small[0].out_channels == 9
    assert small[2].out_channels >= 14
    assert small[4].out_channels <= 8
    with pytest.raises(InputError, match=r"at most .* limits of layers hold"):
        prunus.prune(model, {"structure": "channel", "target": 0.9, "limits": {"*": {"most": 0.1}}},
                     example=torch.randn(1, 1, 12, 12))  # fmt: skip


def test_what_is_gone_already_counts() -> None:
    model = net(8, 10, 10, 5)
    prunus.prune(model, {"target": 0.8, "scope": {"include": ["0"]}})  # 64 of 80
    prunus.prune(model, {"target": 0.5, "limits": {"0": {"most": 0.3}, "4": {"least": 0.4}}})
    assert zeros(model)["0.weight"] == 64
    assert sum(zeros(model).values()) == 115
    assert zeros(model)["4.weight"] >= 20
    with pytest.raises(InputError, match="with what is removed already"):
        prunus.prune(model, {"target": 0.5, "limits": {"2": {"least": 0.6}}})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"limits": {"0.wieght": {"most": 0.3}}}, "did you mean '0.weight'"),
        ({"target": {"sparsity": 0.5, "layers": {"9": 0.3}}}, "'9' matches no parameter in scope"),
        ({"limits": {"0": {"most": 0.3, "least": 0.4}}}, "least 0.4 is above most 0.3"),
        ({"limits": {"0": 0.3}}, "write {most: 0.3}"),
        ({"limits": {"0": {"mots": 0.3}}}, "did you mean 'most'"),
        ({"target": {"sparsity": 0.5, "layers": {"0": 1.3}}}, "target.layers.0"),
        ({"target": 0.9, "limits": {"2": {"most": 0.1}}}, "at most 0.6"),
        ({"target": 0.1, "limits": {"2": {"least": 0.9}}}, "these alone make 0.391304"),
        ({"limits": {"0": {"most": 0.1}}, "target": {"sparsity": 0.3, "layers": {"0": 0.5}}},
         "contradict each other at 0.weight"),
        ({"target": {"sparsity": 0.3, "layers": {"*t": 0.5, "0*": 0.4}}}, "more exact"),
        ({"target": {"sparsity": 0.6, "layers": {"0": 0.999}}}, "leaves too little of 0.weight"),
        ({"structure": "2:4", "allocation": "uniform", "limits": {"0": {"most": 0.4}}}, "2:4|n:m"),
        ({"structure": {"name": "layer", "modules": ["0", "2"]}, "target": 0.4,
          "limits": {"0": {"most": 0.4}}}, "only a part of them"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_done(
    values: dict[str, Any], says: str
) -> None:
    model = net(8, 10, 10, 5)
    with pytest.raises(InputError, match=says):
        prunus.prune(model, values)
    assert not any(zeros(model).values())


def test_the_most_exact_pattern_of_a_target_counts_and_every_limit_holds() -> None:
    layers = {"*": 0.5, "0": 0.25, "0.weight": 0.75, "2*": 0.3}
    model = net(8, 10, 10, 5)
    prunus.prune(model, {"target": {"layers": layers}})
    assert zeros(model) == {"0.weight": 60, "2.weight": 30, "4.weight": 25}
    limits = {"*": {"most": 0.7}, "2": {"most": 0.4, "least": 0.1}}
    engine = PruningEngine(net(8, 10, 10, 5), {"target": 0.5, "limits": limits})
    caps = {g.name: cap for g, cap in engine.space.caps.of.items()}
    assert caps["2.weight"] == Cap(0.1, 0.4)
    assert caps["0.weight"] == Cap(0.0, 0.7)


def units(*words: str) -> list[str]:
    done = CliRunner().invoke(cli, ["units", *words])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_units_shows_limits_and_targets_where_a_recipe_has_any() -> None:
    own = ["target={sparsity: 0.5, layers: {'2': 0.25}}", "limits.0.most=0.3"]
    plain = units("digits")
    assert units("channels", "task=digits") == plain
    *same, _, head, first, second = units("channels", "task=digits", *own)
    assert same == plain
    lines = [line.split(maxsplit=1) for line in (head, first, second)]
    assert lines == [
        ["group", "limits"],
        ["0.weight", "at most 0.3"],
        ["2.weight", "sparsity 0.25"],
    ]
    weights = units("one_shot", "task=digits", *own[1:], "limits.0.least=0.1")
    assert weights[-1].split(maxsplit=1) == ["0.weight", "at least 0.1, at most 0.3"]

    *before, last = units("channels", "task=digits", own[1], "--json")
    assert before == units("digits", "--json")
    assert json.loads(last) == {"group": "0.weight", "limits": [0.0, 0.3]}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["digits", "target=0.5"], "digits is none"),
        (["digts"], "did you mean 'digits'"),
        (["lost.yaml"], "'lost.yaml'"),
        (["channels", "task=null"], "names no task"),
        (["channels", "task=digits", "limits.9.most=0.3"], "'9' matches no parameter in scope"),
    ],
)
def test_units_says_what_it_cannot_show(words: list[str], says: str) -> None:
    done = CliRunner().invoke(cli, ["units", *words])
    assert (done.exit_code, says in done.output) == (2, True), done.output


def test_the_command_line_says_the_same_as_a_file() -> None:
    words = ["target.layers.encoder.*=0.5", "limits.head.0.most=0.3", "limits.stem={least: 0.1}"]
    recipe = Recipe.load({"target": 0.8}, words)
    assert recipe.to_dict() == {
        "version": 1,
        "target": {"sparsity": 0.8, "layers": {"encoder.*": 0.5}},
        "limits": {"head.0": {"most": 0.3}, "stem": {"least": 0.1}},
    }
    assert Recipe.load(recipe.to_dict()).digest() == recipe.digest() != Recipe(target=0.8).digest()  # type: ignore[arg-type]
    assert "limits" not in Recipe(target=0.8).to_dict()  # type: ignore[arg-type]
