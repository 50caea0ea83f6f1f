"""Experts: which of their weights are in scope, what can be removed, and what others read."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from helpers import Fused
from prunus.cli.main import cli
from prunus.compaction.case import Case, case_of
from prunus.compaction.compact import whole_units
from prunus.graph.raw_weights import Matrix, used_as_weights
from prunus.pruning.scope import find_layers

ROUTED = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))


class Tables(nn.Module):
    """Weights of the model's own beside tables that are added, looked up or joined."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(9, 8))
        self.places = nn.Parameter(torch.randn(6, 8))
        self.between = nn.Parameter(torch.randn(2, 6, 6))
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.w = nn.Parameter(torch.randn(8, 12))
        self.each = nn.ParameterList([nn.Parameter(torch.randn(12, 8)) for _ in range(3)])
        self.bank = nn.Parameter(torch.randn(3, 5, 8))
        self.head = nn.Linear(5, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words[ids] + self.places
        x = torch.softmax((x @ x.mT)[:, None] + self.between, -1).sum(1) @ x + self.cls
        x = torch.relu(x @ self.w) @ self.each[0]
        return self.head(torch.einsum("btd,eod->bteo", x, self.bank).sum(2)) @ self.head.weight


def names(model: nn.Module, example: object = None) -> set[str]:
    uses = {} if example is None else used_as_weights(model, lambda: model(example))
    return {layer.name for layer in find_layers(model, uses=uses)}


def test_what_multiplies_values_is_in_scope_and_tables_are_not() -> None:
    found = names(Tables(), torch.randint(0, 9, (2, 6)))
    assert found == {"w", "each.0", "each.1", "each.2", "bank", "head.weight"}


def test_without_an_example_stacks_and_lists_are_in_scope_by_their_shape() -> None:
    assert {"each.0", "each.1", "each.2", "bank", "head.weight"} <= names(Tables())
    assert names(Tables()).isdisjoint({"words", "places", "cls", "w"})
    assert names(Fused()) == {"gate_up", "down"}


def test_a_note_says_what_is_outside_of_the_scope_and_how_to_include_it() -> None:
    result = prunus.prune(Tables(), {"target": 0.5}, example=torch.randint(0, 9, (2, 6)))
    (note,) = result.notes
    assert "words, between" in note
    assert "scope.include" in note
    assert note in str(result)
    every = prunus.prune(Tables(), {"target": 0.5, "scope": {"include": ["*"]}})
    assert not every.notes


def test_each_expert_is_a_layer_of_its_own() -> None:
    model = Fused()
    uses = used_as_weights(model, lambda: model(ROUTED))
    assert uses == {
        "down": Matrix(1, 2, (0,)),
        "gate_up": Matrix(1, 2, (0,)),
        "router": Matrix(0, 1),
    }
    layers = {layer.name: layer for layer in find_layers(model, uses=uses)}
    assert layers["down"].outputs == 4 * 8
    assert layers["down"].matrix == (8, 6)


def test_a_product_from_the_left_is_read_from_the_left() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.ones(3, 4, 5)), nn.Parameter(torch.ones(3, 5))
            self.w_bias = self.b

        def forward(self, x: Tensor) -> Tensor:
            return torch.baddbmm(self.b[:, None], x, self.w)

    model = Left()
    uses = used_as_weights(model, lambda: model(torch.ones(3, 2, 4)))
    assert uses["w"] == Matrix(2, 1, (0,))
    result = prunus.prune(
        model,
        {"structure": "1:2", "allocation": "uniform", "scope": {"include": ["w"]}},
        example=torch.ones(3, 2, 4),
    )
    pairs = result.masks["w"].view(3, 2, 2, 5).sum(2)
    assert bool((pairs == 1).all())


@pytest.mark.parametrize("allocation", ["per_neuron", "uniform", "erk", "global"])
def test_weights_of_experts_go_by_every_allocation(allocation: str) -> None:
    result = prunus.prune(Fused(), {"target": 0.5, "allocation": allocation}, example=ROUTED)
    assert abs(result.sparsity - 0.5) < 0.01
    if allocation == "per_neuron":
        assert set(result.masks["down"].sum(-1).flatten().tolist()) == {3}


def test_a_neuron_is_a_row_of_one_expert() -> None:
    model = Fused()
    with torch.no_grad():
        model.down[1, 2] = 1e-3
        model.gate_up[3, 0] = 1e-3
    recipe = {"structure": "neuron", "target": 0.011, "scope": {"include": ["down", "gate_up"]}}
    result = prunus.prune(model, recipe | {"allocation": "global"}, example=ROUTED)
    gone = (~result.masks["down"].expand(4, 8, 6)).nonzero().tolist()
    assert {(e, o) for e, o, _ in gone} == {(1, 2)}


def test_blocks_lie_within_one_expert() -> None:
    recipe = {"structure": {"name": "block", "rows": 4, "columns": 2}, "target": 0.5}
    result = prunus.prune(Fused(), recipe, example=ROUTED)
    blocks = result.masks["down"].view(4, 2, 4, 3, 2).float().mean((2, 4))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("experts", "most", "inner"), [(2, 1, 6), (2, 2, 4), (5, 1, 4), (5, 2, 6)])
def test_inner_widths_of_gated_experts_go_together(experts: int, most: int, inner: int) -> None:
    torch.manual_seed(0)
    model = Fused(experts, most, inner=inner)
    recipe = {"structure": "channel", "target": 0.4, "compact": "end", "allocation": "uniform"}
    result = prunus.prune(model, recipe, example=ROUTED)
    left = result.model.get_parameter("down").shape[2]
    assert left < inner
    assert result.model.get_parameter("gate_up").shape[1] == 2 * left
    assert result.compaction is not None
    assert result.compaction.error < 1e-9


class Expert(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class Looped(nn.Module):
    """One expert for each row, called only if a row goes there."""

    def __init__(self, loop: str, *, beside: bool = True) -> None:
        super().__init__()
        self.loop, self.beside, self.open = loop, beside, 4
        self.first, self.gate, self.last = nn.Linear(5, 8), nn.Linear(5, 4), nn.Linear(8, 3)
        self.experts = nn.ModuleList([Expert(8, 6) for _ in range(4)])
        with torch.no_grad():
            self.gate.weight.copy_(torch.eye(4, 5))
            self.gate.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        chosen, h = self.gate(x).argmax(-1) % self.open, torch.relu(self.first(x))
        y = torch.zeros_like(h)
        if self.loop == "numel":
            for number, expert in enumerate(self.experts):
                (rows,) = torch.where(chosen == number)
                if rows.numel():
                    y = y.index_add(0, rows, expert(h[rows]))
        elif self.loop == "hit":
            for number in chosen.unique().tolist():
                y[chosen == number] = self.experts[number](h[chosen == number])
        else:
            y = torch.stack([self.experts[int(i)](r) for i, r in zip(chosen, h, strict=True)])
        return self.last(h + y if self.beside else y)


TO = torch.eye(4, 5).repeat(2, 1) + 0.1 * torch.rand(
    8, 5, generator=torch.Generator().manual_seed(1)
)
"""Rows that go to the experts 0 to 3, twice."""


def channels(target: float) -> dict[str, object]:
    return {"structure": "channel", "target": target, "allocation": "uniform"}


@pytest.mark.parametrize("loop", ["numel", "hit", "item"])
def test_experts_that_the_example_does_not_visit_are_cut_like_the_others(loop: str) -> None:
    torch.manual_seed(0)
    example = TO[[0, 1, 4, 5]]
    result = prunus.prune(Looped(loop), channels(0.4), example=example)
    small = prunus.compact(result.model, result.masks, example)
    assert any("experts.2, experts.3" in note for note in small.notes)
    for expert in small.model.experts:  # type: ignore[union-attr]
        inner, width = expert.up.weight.shape
        assert inner < 6
        assert width == small.model.last.in_features < 8  # type: ignore[union-attr]
    assert torch.allclose(small.model(TO), result.model(TO), atol=1e-6)
    assert torch.allclose(small.model(TO[2:4]), result.model(TO[2:4]), atol=1e-6)


def test_what_an_unvisited_link_may_read_stays_and_units_says_so() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.links = nn.ModuleList([nn.Linear(5 if i == 0 else 8, 8) for i in range(4)])
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            most = 2 if bool(x.sum() > 0) else 4
            for number, link in enumerate(self.links):
                if number < most:
                    x = torch.relu(link(x))
            return self.last(x)

    model, example = Chain(), torch.ones(2, 5)
    found = prunus.units(model, example)
    assert any("links.2" in note for note in found.notes)
    named = {name for kind in found.coupled for name, _ in kind.places}
    assert named.isdisjoint({"links.1.weight", "last.weight"})


def test_a_single_visited_expert_that_reads_and_writes_other_widths_is_no_pattern() -> None:
    torch.manual_seed(0)
    found = prunus.units(Looped("item", beside=False), TO[[0, 4]])
    assert any("give examples that visit them" in note for note in found.notes)
    both = prunus.units(Looped("item", beside=False), [TO[[0, 4]], TO[[1, 5]]])
    assert any("taken to read and write what" in note for note in both.notes)
    assert both.total == found.total + 8 + 8


def test_entries_of_a_list_of_parameters_that_are_not_read_are_cut_too() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
            self.shifts = nn.ParameterList([nn.Parameter(torch.randn(8)) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) * self.shifts[int(x[0, 0])])

    torch.manual_seed(0)
    model, zero = Shifted(), torch.zeros(2, 5)
    result = prunus.prune(model, channels(0.5), example=zero)
    small = prunus.compact(result.model, result.masks, zero)
    assert [len(p) for p in small.model.shifts] == [4, 4, 4]  # type: ignore[union-attr]
    for number in range(3):
        assert torch.allclose(small.model(zero + number), result.model(zero + number), atol=1e-6)


def test_rows_of_a_table_that_are_not_read_stay_and_lose_the_same_width() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
            self.table = nn.Parameter(torch.randn(10, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) + self.table[: x.shape[1]])

    torch.manual_seed(0)
    model, example = Placed(), torch.randn(2, 4, 5)
    result = prunus.prune(model, channels(0.5), example=example)
    small = prunus.compact(result.model, result.masks, example)
    assert tuple(small.model.table.shape) == (10, 4)
    longer = torch.randn(2, 9, 5)
    assert torch.allclose(small.model(longer), result.model(longer), atol=1e-6)


def test_the_gate_tries_unvisited_experts_in_the_places_of_visited_ones() -> None:
    torch.manual_seed(0)
    example = TO[[0, 1, 4, 5]]
    model = Looped("numel")
    model.open = 2  # for random inputs, too
    case = _case(model, example)
    assert case.check_everywhere(case.sliced()).equal
    wrong = dict(case.small)
    wrong["experts.3.up.weight"] = wrong["experts.3.up.weight"] + 1
    found = replace(case, small=wrong).check_everywhere(case.sliced())
    assert not found.equal
    assert "experts.3" in (found.problem or "")


def _case(model: nn.Module, example: Tensor) -> Case:
    result = prunus.prune(model, channels(0.4), example=example)
    cut = whole_units(model, result.masks, example, "whole")
    return case_of(result.model, cut, example, whole=2**30)


EXPERT = {"structure": "expert", "allocation": "uniform", "rounds": 1, "compact": "every_round"}


def never_chosen(model: Fused, kept: list[int]) -> Fused:
    """The model whose router's other rows give −∞, written out."""

    class Masked(Fused):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.reshape(-1, x.shape[-1])
            logits = F.linear(tokens, self.router)
            open_ = torch.full((self.num_experts,), -torch.inf)
            open_[kept] = 0
            weights, chosen = (logits + open_).softmax(-1).topk(self.top_k, dim=-1)
            weights = weights / weights.sum(-1, keepdim=True)
            gate, up = torch.einsum("td,tkod->tko", tokens, self.gate_up[chosen]).chunk(2, dim=-1)
            out = torch.einsum("tki,tkoi->tko", F.silu(gate) * up, self.down[chosen])
            return (out * weights[..., None]).sum(1).reshape(*x.shape[:-1], -1)

    made = Masked(model.num_experts, model.top_k)
    made.load_state_dict(model.state_dict())
    return made


@pytest.mark.parametrize(("experts", "most"), [(3, 1), (3, 2), (6, 2)])
def test_an_expert_that_is_taken_out_is_never_chosen(experts: int, most: int) -> None:
    torch.manual_seed(experts)
    model = Fused(experts, most)
    dense = copy.deepcopy(model)
    with torch.no_grad():
        dense.down[1] = model.down[1] = 1e-3 * model.down[1]  # the least
        dense.gate_up[1] = model.gate_up[1] = 1e-3 * model.gate_up[1]
    result = prunus.prune(model, {**EXPERT, "target": 1 / experts}, example=ROUTED)
    kept = [e for e in range(experts) if e != 1]
    small = result.model
    assert isinstance(small, Fused)
    assert small.num_experts == len(small.router) == len(small.down) == experts - 1
    assert torch.equal(small.router, dense.router[kept])
    assert torch.allclose(small(ROUTED), never_chosen(dense, kept)(ROUTED), atol=1e-6)
    assert result.sparsity == pytest.approx(1 / experts)
    assert result.compaction is not None
    assert result.compaction.error < 1e-9


def test_as_many_experts_stay_as_each_item_goes_to() -> None:
    with pytest.raises(prunus.errors.InputError, match=r"at most 0\.5 can"):
        prunus.prune(Fused(4, 2), {**EXPERT, "target": 0.75}, example=ROUTED)
    with pytest.raises(prunus.errors.InputError, match="no expert can be removed"):
        prunus.prune(Fused(2, 2), {**EXPERT, "target": 0.5}, example=ROUTED)


def test_experts_go_with_each_cut_or_are_refused() -> None:
    with pytest.raises(prunus.errors.InputError, match="add compact: every_round"):
        prunus.prune(Fused(), {"structure": "expert", "target": 0.5}, example=ROUTED)
    looped = Looped("numel")
    looped.open = 1  # every item goes to the first one, whatever its gate says
    with pytest.raises(prunus.errors.InputError, match="no expert can be removed"):
        prunus.prune(looped, {**EXPERT, "target": 0.5}, example=TO)


def test_a_router_that_looks_at_experts_in_groups_of_a_fixed_size_is_refused() -> None:
    class Grouped(Fused):
        def forward(self, x: Tensor) -> Tensor:
            first = F.linear(x.reshape(-1, 8), self.router).view(-1, 2, 4).amax(-1)
            return super().forward(x) * first.mean()

    model = Grouped(8, 2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(prunus.errors.RunError, match="Nothing was changed"):
        prunus.prune(model, {**EXPERT, "target": 0.25}, example=ROUTED)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.num_experts == 8


def test_of_experts_that_are_looked_at_in_groups_one_of_each_goes() -> None:
    class Limited(Fused):
        """The best of three groups is chosen first, by its two best experts."""

        def forward(self, x: Tensor) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            each = F.linear(rows, self.router).sigmoid().view(-1, 3, self.num_experts // 3)
            best = each.topk(2, dim=-1)[0].sum(-1).argmax(-1)
            open_ = F.one_hot(best, 3)[..., None].expand_as(each).flatten(1)
            weights, chosen = each.flatten(1).masked_fill(open_ == 0, -torch.inf).topk(2, dim=-1)
            gate, up = torch.einsum("td,tkod->tko", rows, self.gate_up[chosen]).chunk(2, dim=-1)
            out = torch.einsum("tki,tkoi->tko", F.silu(gate) * up, self.down[chosen])
            return (out * weights[..., None]).sum(1).reshape(*x.shape[:-1], -1)

    torch.manual_seed(0)
    model = Limited(12, 2)
    with torch.no_grad():
        for tensor in (model.down, model.gate_up):
            tensor[[0, 5, 9]] *= 1e-3
            tensor[[2, 6, 10]] *= 1e-2
    result = prunus.prune(model, {**EXPERT, "target": 0.5}, example=ROUTED)
    assert model.num_experts == len(model.router) == 6
    assert result.compaction is not None
    assert result.compaction.error < 1e-9
    with pytest.raises(prunus.errors.InputError, match="at most"):  # two stay in each group
        prunus.prune(Limited(12, 2), {**EXPERT, "target": 0.75}, example=ROUTED)


def test_training_goes_on_with_fewer_experts_and_the_file_opens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, seen = nn.Sequential(Fused(), nn.Linear(8, 3)), []

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.Adam(model.parameters())
        run.attach(optimizer)
        for _ in run.batches([None] * 5):
            optimizer.zero_grad()
            model(ROUTED).square().mean().backward()
            optimizer.step()
        seen.append(len(model[0].router))  # type: ignore[index, arg-type]

    recipe = {**EXPERT, "rounds": 2, "target": 0.5, "retrain": "1ep", "schedule": "linear"}
    result = prunus.prune(model, recipe, train=train, example=ROUTED)
    assert seen == [3, 2]
    assert result.compaction is not None
    path = prunus.save(result.model, tmp_path / "small.safetensors")
    opened = prunus.load(path, nn.Sequential(Fused(), nn.Linear(8, 3)))
    assert torch.equal(opened(ROUTED), result.model(ROUTED))
    again = prunus.prune(result.model, channels(0.3) | {"compact": "end"}, example=ROUTED)
    assert again.model.get_parameter("0.down").shape[2] < 6


def test_experts_go_through_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "routed.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from helpers import Fused, tiny_task\n"
        "def task():\n"
        "    return tiny_task(model=lambda: nn.Sequential(Fused(), nn.Linear(8, 2)))\n"
    )
    words = ["structure=expert", "compact=every_round", "rounds=1", "target=0.5", "dense=1ep",
             "retrain=1ep", "allocation=uniform", "guard=null", "--folder", "run"]  # fmt: skip
    run = CliRunner().invoke(cli, ["run", "iterative", f"task={tmp_path}/routed.py:task", *words])
    assert run.exit_code == 0, run.output
    assert "route: attributes" in run.output
    (layer, _) = prunus.load("run", nn.Sequential(Fused(), nn.Linear(8, 2))).children()
    assert isinstance(layer, Fused)
    assert len(layer.router) == layer.num_experts == 2
