"""Whole experts that are entries of a list: taken out with the router's rows, in every style."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus._common.narrow_list import NarrowList
from prunus.compaction.cut import cut_of
from prunus.compaction.files.artifact import joined_file, parts_of
from prunus.errors import InputError, RunError
from prunus.graph.never_chosen import NeverChosen
from prunus.progressive.cut import all_forgotten
from prunus.progressive.engine import PruningEngine

EXPERT = {"structure": "expert", "allocation": "uniform", "rounds": 1, "compact": "every_round"}
X = torch.randn(16, 5, generator=torch.Generator().manual_seed(2))


class Expert(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Mixture(nn.Module):
    """What all styles share: a layer before, a router, a list of experts, a layer behind."""

    def __init__(self, count: int = 4, most: int = 2) -> None:
        super().__init__()
        self.num_experts, self.top_k = count, most
        self.inp, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.gate = nn.Linear(8, count, bias=False)
        self.experts = nn.ModuleList([Expert(8, 6) for _ in range(count)])

    def forward(self, x: Tensor) -> Any:
        return self.out(self.mix(torch.relu(self.inp(x))))

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.gate(x).softmax(-1).topk(self.top_k, dim=-1)
        return weights / weights.sum(-1, keepdim=True), chosen


class Enumerated(Mixture):
    def mix(self, x: Tensor) -> Tensor:
        gate, y = self.gate(x).softmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            y = y + gate[:, i : i + 1] * expert(x)
        return y


class Stacked(Mixture):
    def mix(self, x: Tensor) -> Tensor:
        every = torch.stack([self.experts[i](x) for i in range(len(self.experts))], 1)
        return torch.einsum("be,bed->bd", self.gate(x).sigmoid(), every)


class OneHot(Mixture):
    """As Mixtral was written before its experts were fused."""

    def mix(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        y, hit = torch.zeros_like(x), F.one_hot(chosen, num_classes=self.num_experts)
        for number in range(self.num_experts):
            place, row = torch.where(hit.permute(2, 1, 0)[number])
            now = self.experts[number](x[None, row].reshape(-1, 8)) * weights[row, place, None]
            y.index_add_(0, row, now)
        return y


class OnlyHit(Mixture):
    """Experts to which no item goes are not called."""

    def mix(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        y = torch.zeros_like(x)
        for number in chosen.unique().tolist():
            row, place = torch.where(chosen == number)
            y = y.index_add(0, row, self.experts[number](x[row]) * weights[row, place, None])
        return y


class Dispatched(Mixture):
    """Items sorted by their experts, split and put together again."""

    def mix(self, x: Tensor) -> Tensor:
        best, chosen = self.gate(x).topk(self.top_k, 1)
        gates = torch.zeros(len(x), self.num_experts, dtype=x.dtype)
        gates = gates.scatter(1, chosen, best.softmax(1))
        expert, row = gates.T.nonzero().unbind(1)
        parts = x[row].split((gates > 0).sum(0).tolist())
        made = torch.cat([self.experts[i](parts[i]) for i in range(self.num_experts)])
        return torch.zeros_like(x).index_add(0, row, made * gates[row, expert, None])


class Gates(Mixture):
    """Gates that are no choice: any number, zero where an expert does not count."""

    def mix(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        return sum((gate[:, i, None] * e(x) for i, e in enumerate(self.experts)), 0 * x)


class Corrected(Mixture):
    """Chosen by sigmoids and a correction, beside an expert that all items go to."""

    def __init__(self, count: int = 6) -> None:
        super().__init__(count)
        self.shared = Expert(8, 4)
        self.register_buffer("bias", torch.randn(count))

    def mix(self, x: Tensor) -> Tensor:
        scores = self.gate(x).sigmoid()
        chosen = (scores + self.bias).topk(self.top_k, -1)[1]
        weights = scores.gather(1, chosen)
        y = self.shared(x)
        for number in range(len(self.experts)):
            row, place = torch.where(chosen == number)
            y = y.index_add(0, row, self.experts[number](x[row]) * weights[row, place, None])
        return y


class Capacity(Mixture):
    """Each expert takes as many items as its share; it knows how many experts there were."""

    def mix(self, x: Tensor) -> Tensor:
        gate, y = self.gate(x).softmax(-1), torch.zeros_like(x)
        most = max(1, 2 * len(x) // self.num_experts)
        for i, expert in enumerate(self.experts):
            weights, rows = gate[:, i].topk(most)
            y = y.index_add(0, rows, expert(x[rows]) * weights[:, None])
        return y


class Pairs(Mixture):
    """Two lists, an entry of each for an expert."""

    def __init__(self) -> None:
        super().__init__()
        del self.experts
        self.up = nn.ModuleList([nn.Linear(8, 6) for _ in range(4)])
        self.down = nn.ModuleList([nn.Linear(6, 8) for _ in range(4)])

    def mix(self, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(-1)
        both = enumerate(zip(self.up, self.down, strict=True))
        return sum((gate[:, i, None] * d(F.gelu(u(x))) for i, (u, d) in both), 0 * x)


STYLES = [Enumerated, Stacked, OneHot, OnlyHit, Dispatched, Gates, Corrected, Capacity, Pairs]


def made(kind: type[Mixture]) -> Mixture:
    torch.manual_seed(0)
    return kind()


def never_chosen(model: nn.Module, kept: Mapping[str, Any]) -> nn.Module:
    """A copy in float64 whose router gives −∞, or a gate of zero, for the experts that are gone."""
    twin = copy.deepcopy(model).double()
    rows = set(kept["gate.weight"][0].tolist())
    gone = torch.tensor([i for i in range(len(model.gate.weight)) if i not in rows])  # type: ignore[union-attr, arg-type]
    fill = 0.0 if isinstance(model, Gates) else -torch.inf
    twin.gate.register_forward_hook(lambda _, __, y: y.index_fill(-1, gone, fill))  # type: ignore[union-attr]
    if isinstance(model, Corrected):
        twin.bias[gone] = -torch.inf  # type: ignore[index, operator]
    return twin


@pytest.mark.parametrize("kind", STYLES)
def test_an_expert_of_a_list_goes_with_its_row_of_the_router(
    kind: type[Mixture], tmp_path: Path
) -> None:
    dense = made(kind)
    result = prunus.prune(copy.deepcopy(dense), {**EXPERT, "target": 0.5}, example=X)
    small, wanted = result.model, never_chosen(dense, result.kept)
    assert type(small) is kind
    assert len(small.gate.weight) == len(dense.gate.weight) // 2
    opened = prunus.load(prunus.save(small, tmp_path / "small.safetensors"), kind())
    for model in (small, opened, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        for train in (False, True):
            for batch in (1, 2, 40):
                x = torch.randn(batch, 5, dtype=torch.float64)
                found = copy.deepcopy(model).double().train(train)(x)
                assert torch.allclose(found, wanted.train(train)(x), atol=1e-12)


@pytest.mark.parametrize(("kind", "most"), [(Stacked, 0.7), (Pairs, 0.7), (OneHot, 0.98)])
def test_macs_are_bounded_as_the_smaller_model_counts_them(
    kind: type[Mixture], most: float
) -> None:
    result = prunus.prune(made(kind), {**EXPERT, "target": {"max_macs": most}}, example=X)
    before, after = result.cost_before["macs"], result.cost_after["macs"]
    assert before
    assert after
    assert after / before <= most
    assert result.rounds[-1].achieved == pytest.approx(1 - after / before)


def test_of_experts_that_items_are_sent_to_a_bound_on_macs_says_what_to_bound() -> None:
    with pytest.raises(InputError, match=r"at most 0\.04167 can.*bound max_params or max_bytes"):
        prunus.prune(made(OneHot), {**EXPERT, "target": {"max_macs": 0.7}}, example=X)


class Tasks(nn.Module):
    """A router for each of two tasks over the same experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(5, 8) for _ in range(4)])
        self.gates = nn.ModuleList([nn.Linear(5, 4) for _ in range(2)])
        self.ends = nn.ModuleList([nn.Linear(8, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        every = torch.stack([torch.relu(e(x)) for e in self.experts], 1)
        mixed = [(gate(x).softmax(-1)[..., None] * every).sum(1) for gate in self.gates]
        return [end(y) for end, y in zip(self.ends, mixed, strict=True)]


def test_every_router_over_the_same_experts_loses_its_row() -> None:
    torch.manual_seed(0)
    dense = Tasks()
    result = prunus.prune(copy.deepcopy(dense), {**EXPERT, "target": 0.5}, example=X)
    small, kept = result.model, result.kept["gates.0.weight"][0]
    assert kept is not None
    assert torch.equal(kept, result.kept["gates.1.bias"][0])  # type: ignore[arg-type]
    every = torch.stack([torch.relu(dense.experts[int(i)](X)) for i in kept], 1)
    for gate, end, found in zip(dense.gates, dense.ends, small(X), strict=True):
        weights = gate(X)[:, kept].softmax(-1)
        assert torch.allclose(end((weights[..., None] * every).sum(1)), found, atol=1e-6)


class Noisy(Mixture):
    """Router weights of the model's own, with noise of learned size in training."""

    def __init__(self) -> None:
        super().__init__()
        del self.gate
        self.router, self.noise = (nn.Parameter(torch.randn(8, 4)) for _ in range(2))

    def mix(self, x: Tensor) -> Tensor:
        clean = x @ self.router
        if self.training:
            clean = clean + torch.randn_like(clean) * F.softplus(x @ self.noise)
        best, chosen = clean.topk(self.top_k, -1)
        gate = torch.zeros_like(clean).scatter(1, chosen, best.softmax(-1))
        return sum((gate[:, i, None] * e(x) for i, e in enumerate(self.experts)), 0 * x)


def test_whatever_is_added_to_the_routers_logits_loses_the_same_indices() -> None:
    dense = made(Noisy)
    result = prunus.prune(copy.deepcopy(dense), {**EXPERT, "target": 0.5}, example=X)
    kept = result.kept["router"][1]
    assert kept is not None
    assert torch.equal(kept, result.kept["noise"][1])  # type: ignore[arg-type]
    wanted = copy.deepcopy(dense).eval()
    with torch.no_grad():
        wanted.router.copy_(dense.router)
    h = torch.relu(dense.inp(X))
    best, chosen = (h @ dense.router)[:, kept].topk(2, -1)
    gate = torch.zeros(16, 2).scatter(1, chosen, best.softmax(-1))
    y = sum(gate[:, n, None] * dense.experts[int(i)](h) for n, i in enumerate(kept))
    assert torch.allclose(result.model.eval()(X), dense.out(y), atol=1e-6)
    assert result.model.train()(X).shape == (16, 3)


def test_lists_of_blocks_and_tables_of_as_many_rows_are_no_experts() -> None:
    class Net(nn.Module):
        """Four blocks of four experts, a table of four rows and four answers."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Enumerated() for _ in range(4)])
            self.table = nn.Embedding(4, 5)
            self.answers = nn.Linear(5, 4)
            for block in self.blocks:
                block.out = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.table((x[:, 0] > 0).long())
            for block in self.blocks:
                x = x + block(x)
            return self.answers(x)

    torch.manual_seed(0)
    result = prunus.prune(Net(), {**EXPERT, "target": 0.25}, example=X)
    small: Any = result.model
    assert len(small.blocks) == len(small.answers.weight) == len(small.table.weight) == 4
    assert [len(block.experts) for block in small.blocks] == [3] * 4
    assert all(name.endswith("gate.weight") or ".experts." in name for name in result.kept)


class ByName(OnlyHit):
    """Experts asked for by the names that they have in the list."""

    def mix(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        y = torch.zeros_like(x)
        for number in chosen.unique().tolist():
            row, place = torch.where(chosen == number)
            now = getattr(self.experts, str(number))(x[row])
            y = y.index_add(0, row, now * weights[row, place, None])
        return y


class Averaged(Mixture):
    """Divides by how many experts there are, which the dense model's router does not change."""

    def mix(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        every = [gate[:, i, None] * e(x) for i, e in enumerate(self.experts)]
        return torch.stack(every).mean(0)


class Counted(Mixture):
    """Counts its experts with a number in its code."""

    def mix(self, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(-1)
        return sum((gate[:, i, None] * self.experts[i](x) for i in range(4)), 0 * x)


class Told(Mixture):
    """Gives its gates, too."""

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.inp(x))
        gate = self.gate(h).softmax(-1)
        return self.out(
            sum((gate[:, i, None] * e(h) for i, e in enumerate(self.experts)), 0 * h)
        ), gate


@pytest.mark.parametrize("kind", [ByName, Averaged, Counted, Told])
def test_what_looks_at_its_experts_in_another_way_is_refused_and_stays(kind: type[Mixture]) -> None:
    model = made(kind)
    with torch.no_grad():  # the last items of the list would be served rightly by any
        model.gate.weight[3] = 3 + model.gate.weight[3].abs()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RunError, match="Nothing was changed; structure: channel"):
        prunus.prune(model, {**EXPERT, "target": 0.25}, example=X)
    assert type(model.experts) is nn.ModuleList
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_expert_to_which_no_item_of_the_gate_goes_is_tried_in_anothers_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_sided() -> ByName:
        torch.manual_seed(0)
        model = ByName(6, 1)
        with torch.no_grad():
            model.inp.bias += 3  # so that signs of the router's rows decide
            rows = torch.tensor([[2.0], [-9], [-9], [-9], [-9], [-9]])
            model.gate.weight.copy_(rows.expand(6, 8))
            model.experts[2].w1.weight *= 1e-3  # the least
        return model

    with pytest.raises(RunError, match="they differ by"):
        prunus.prune(one_sided(), {**EXPERT, "target": 0.17}, example=X)
    monkeypatch.setattr("prunus.compaction.experts.swaps", lambda *_: ())
    prunus.prune(one_sided(), {**EXPERT, "target": 0.17}, example=X)  # nothing else sees it


class Tied(Enumerated):
    def __init__(self) -> None:
        super().__init__()
        for expert in self.experts:
            expert.w3.weight = self.experts[0].w3.weight


class Hashed(Mixture):
    """No router: the items' own numbers decide."""

    def mix(self, x: Tensor) -> Tensor:
        number, y = (x.sum(-1) * 7).long() % 4, torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            y[number == i] = expert(x[number == i])
        return y


class OverItems(Mixture):
    """A softmax over the items of a batch, of which none may be all −∞."""

    def mix(self, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(0)
        return sum((gate[:, i, None] * e(x) for i, e in enumerate(self.experts)), 0 * x)


@pytest.mark.parametrize("kind", [Tied, Hashed, OverItems])
def test_experts_that_no_router_can_forget_are_refused(kind: type[Mixture]) -> None:
    with pytest.raises(InputError, match="no expert can be removed from this model"):
        prunus.prune(made(kind), {**EXPERT, "target": 0.25}, example=X)


def test_as_many_entries_stay_as_each_item_goes_to() -> None:
    with pytest.raises(InputError, match=r"at most 0\.5 can"):
        prunus.prune(made(OnlyHit), {**EXPERT, "target": 0.75}, example=X)


def trained(steps: int, stop: int = 100) -> Any:
    """A train function that may stop in the middle."""

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        run.attach(optimizer)
        left = len(model.experts)  # type: ignore[arg-type]
        states.append((left, len(optimizer.state)))
        for number, _ in enumerate(run.batches([None] * steps)):
            if left == 2 and number == stop:
                raise InterruptedError
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()

    states: list[tuple[int, int]] = []
    train.states = states  # type: ignore[attr-defined]
    return train


ROUNDS = {**EXPERT, "rounds": 2, "target": 0.5, "retrain": "1ep", "schedule": "linear"}


def test_training_goes_on_with_the_momenta_of_what_is_left() -> None:
    train, model = trained(5), made(Enumerated)
    result = prunus.prune(model, ROUNDS, train=train, example=X)
    left = len(list(model.parameters()))
    assert train.states == [(3, 0), (2, left)]
    assert result.compaction is not None
    assert result.compaction.units == 2
    assert result.sparsity == pytest.approx(0.5)
    gone = [i for i in range(4) if f"experts.{i}.w1.weight" in result.masks]
    assert not any(result.masks[f"experts.{i}.w1.weight"].any() for i in gone)
    stay = [i for i in range(4) if i not in gone]
    assert result.kept["gate.weight"][0].tolist() == stay  # type: ignore[union-attr]
    assert {n.split(".")[1] for n, _ in model.named_parameters() if n.startswith("experts.")} == {
        str(i) for i in stay
    }


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = prunus.prune(made(OneHot), ROUNDS, train=trained(5), example=X)
    folder = tmp_path / "run"
    with pytest.raises(InterruptedError):
        prunus.prune(made(OneHot), ROUNDS, train=trained(5, 3), example=X, folder=folder)
    again = prunus.prune(made(OneHot), ROUNDS, train=trained(5), example=X, folder=folder)
    found, wanted = again.model.state_dict(), whole.model.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)
    opened = prunus.load(folder, OneHot())
    assert torch.equal(opened(X), again.model.eval()(X))


def test_a_rejected_round_gives_its_expert_back_to_model_and_optimizer() -> None:
    model = made(Enumerated)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def train(model: nn.Module, run: prunus.Run) -> None:
        run.attach(optimizer)
        for _ in run.batches([None] * 3):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()

    def evaluate(model: nn.Module) -> float:
        return float(len(model.experts) > 2)  # type: ignore[arg-type]

    recipe = {**ROUNDS, "guard": {"max_drop": 0.1}}
    result = prunus.prune(model, recipe, train=train, evaluate=evaluate, example=X)
    assert "rejected" in [r.verdict for r in result.rounds]
    assert isinstance(model.experts, NarrowList)
    assert len(model.experts) == len(model.gate.weight) == model.num_experts == 3
    held = {id(p) for p in optimizer.param_groups[0]["params"] if p.numel()}
    assert held == {id(p) for p in model.parameters()}


def test_a_loop_of_ones_own_goes_on_with_fewer_experts() -> None:
    model = made(Enumerated)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    recipe = {k: v for k, v in ROUNDS.items() if k != "retrain"}
    pruner = prunus.Pruner(model, recipe, optimizer, example=X, steps=10, steps_per_epoch=5)
    counts = []
    for _ in range(10):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        counts.append(len(model.experts))
    assert counts[0] == 3
    assert counts[-1] == 2
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in model.parameters()
    }
    assert pruner.kept["gate.weight"][0].numel() == 2  # type: ignore[union-attr]


def test_a_loops_state_goes_on_in_another_process() -> None:
    recipe = {k: v for k, v in ROUNDS.items() if k != "retrain"}

    def fresh() -> tuple[Mixture, torch.optim.Optimizer, prunus.Pruner]:
        model = made(Enumerated)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return model, optimizer, prunus.Pruner(
            model, recipe, optimizer, example=X, steps=10, steps_per_epoch=5
        )  # fmt: skip

    def steps(model: Mixture, optimizer: torch.optim.Optimizer, number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()

    model, optimizer, pruner = fresh()
    steps(model, optimizer, 7)
    saved = copy.deepcopy((pruner.state_dict(), model.state_dict(), optimizer.state_dict()))
    steps(model, optimizer, 3)
    again, second, other = fresh()
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    steps(again, second, 3)
    wanted = model.state_dict()
    assert list(again.state_dict()) == list(wanted)
    assert all(torch.equal(v, wanted[k]) for k, v in again.state_dict().items())


class Normed(Enumerated):
    """Experts that keep statistics."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.experts = nn.ModuleList([nn.Sequential(*copy.deepcopy(layers)) for _ in range(4)])


def test_buffers_go_with_their_expert_and_every_example_is_compared(tmp_path: Path) -> None:
    dense = made(Normed)
    recipe = {**EXPERT, "target": 0.5}
    result = prunus.prune(copy.deepcopy(dense), recipe, example=[X, X[:4]])
    small = result.model
    assert len(small.experts) == 2  # type: ignore[arg-type]
    assert len(list(small.buffers())) == 2 * 3
    wanted = never_chosen(dense, result.kept)
    for train in (True, False):
        found = copy.deepcopy(small).double().train(train)(X.double())
        answer = copy.deepcopy(wanted).train(train)(X.double())  # statistics move in train mode
        assert torch.allclose(found, answer, atol=1e-12)
    opened = prunus.load(prunus.save(small, tmp_path / "small.safetensors"), Normed())
    assert torch.equal(opened(X), small.eval()(X))


def test_a_list_that_lost_entries_can_lose_more_of_them_and_width(tmp_path: Path) -> None:
    first = prunus.prune(made(Enumerated), {**EXPERT, "target": 0.25}, example=X)
    second = prunus.prune(first.model, {**EXPERT, "target": 0.34}, example=X)
    assert len(second.model.experts) == 2  # type: ignore[arg-type]
    recipe = {"structure": "channel", "target": 0.3, "compact": "end", "allocation": "uniform"}
    third = prunus.prune(second.model, recipe, example=X)
    assert third.compaction is not None
    assert third.compaction.error < 1e-9
    file = prunus.save(third.model, tmp_path / "small.safetensors")
    opened = prunus.load(file, Enumerated())
    assert list(opened.state_dict()) == list(third.model.state_dict())
    assert torch.equal(opened(X), third.model.eval()(X))


def test_a_smaller_list_is_exported_and_compiled_like_any_other() -> None:
    small = prunus.prune(made(Enumerated), {**EXPERT, "target": 0.25}, example=X).model.eval()
    exported = torch.export.export(small, (X,)).module()
    assert torch.allclose(exported(X), small(X), atol=1e-6)
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), small(X))


def test_a_narrow_list_is_a_list_that_refuses_what_would_mix_up_names() -> None:
    left = NarrowList({"0": nn.Linear(1, 1), "2": nn.Linear(1, 2), "3": nn.Linear(1, 3)})
    assert [m.out_features for m in left] == [1, 2, 3]
    assert left[-1] is left[2] is left._modules["3"]
    assert [m.out_features for m in left[1:]] == [2, 3]
    with pytest.raises(IndexError):
        left[3]
    left[1] = nn.Linear(1, 5)
    assert list(left._modules) == ["0", "2", "3"]
    for change in (
        lambda: left.append(nn.Identity()),
        lambda: left.extend([nn.Identity()]),
        lambda: left.insert(0, nn.Identity()),
        lambda: left.pop(0),
    ):
        with pytest.raises(InputError, match=r"nn\.ModuleList\(\[\*this\]\)"):
            change()
    whole = nn.ModuleList([*left])
    assert list(whole._modules) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("lists", "why"),
    [
        ({"experts": ["0", "0"]}, "cannot stay"),
        ({"experts": ["1", "0"]}, "cannot stay"),
        ({"experts": []}, "cannot stay"),
        ({"experts": ["0", "9"]}, "cannot stay"),
        ({"experts": [0, 1]}, "cannot stay"),
        ({"gate": ["0"]}, "no nn.ModuleList 'gate'"),
        ({"nowhere": ["0"]}, "no nn.ModuleList 'nowhere'"),
        ([], "damaged manifest"),
        ({"experts": ["0", "1", "2"]}, "is missing"),
    ],
)
def test_a_file_that_names_other_entries_is_refused_and_the_model_stays(
    lists: Any, why: str, tmp_path: Path
) -> None:
    small = prunus.prune(made(Enumerated), {**EXPERT, "target": 0.5}, example=X).model
    file = prunus.save(small, tmp_path / "small.safetensors")
    text, tensors = parts_of(file.read_bytes())
    manifest = json.loads(text)
    assert manifest["format"] == "prunus compact 6"
    assert len(manifest["lists"]["experts"]) == 2
    file.write_bytes(joined_file(json.dumps({**manifest, "lists": lists}), tensors))
    model = made(Enumerated)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=why):
        prunus.load(file, model)
    assert type(model.experts) is nn.ModuleList
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_expert_that_masks_remove_and_no_cut_takes_out_is_no_silent_zero() -> None:
    engine = PruningEngine(made(Enumerated), {**EXPERT, "target": 0.25}, example=X)
    engine.cut(1.0)
    analysis = engine.space.analysis
    assert analysis is not None
    found = cut_of(analysis, engine.masks)
    all_forgotten(engine.space.groups, found, engine.masks)
    nothing = replace(found, removed=np.zeros_like(found.removed))
    with pytest.raises(RunError, match="1 experts were chosen to go and 0 of them can"):
        all_forgotten(engine.space.groups, nothing, engine.masks)


class Classes(Enumerated):
    """Whole numbers do not show what an expert matters."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).argmax(-1)


def test_where_answers_are_whole_numbers_nothing_is_an_expert() -> None:
    with pytest.raises(InputError, match="expert"):
        prunus.prune(made(Classes), {**EXPERT, "target": 0.5}, example=X)
    ones = torch.ones(2, 2, dtype=torch.int64)
    with NeverChosen():
        assert torch.equal(ones @ ones, 2 * ones)
