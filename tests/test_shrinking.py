"""Models that become smaller while they train: what must not get lost on the way."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.compaction import shrink as shrinking
from prunus.progressive.engine import PruningEngine

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 0, 1])
BASE: dict[str, Any] = {
    "structure": "channel", "target": 0.6, "rounds": 3, "schedule": "linear", "retrain": "4it",
    "compact": "every_round",
}  # fmt: skip


def train(model: nn.Module, run: prunus.Run) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.attach(optimizer)
    for inputs, classes in run.batches([(X, Y)] * 4):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), classes).backward()
        optimizer.step()


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Scaled(nn.Module):
    """A buffer for each unit that no state dict holds, and that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 2)
        scale = torch.rand(16) + 0.5
        self.first, self.second = nn.Module(), nn.Module()
        for part in (self.first, self.second):
            part.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) * self.first.scale * self.second.scale)


def test_buffers_outside_the_state_dict_come_back_after_a_rejected_round() -> None:
    model = Scaled()
    scale = model.first.scale.clone()
    result = prunus.prune(
        model,
        {**BASE, "guard": {"max_drop": 0.1}},
        train=train,
        evaluate=lambda m: float(m.a.out_features == 16),
        example=X,
    )
    assert [r.verdict for r in result.rounds][1] == "rejected"
    assert torch.equal(model.first.scale, scale)
    assert model.first.scale is model.second.scale
    assert model.a.out_features == 16


def test_an_error_at_the_very_end_gives_every_value_back() -> None:
    def fails(model: nn.Module) -> float:
        raise ValueError("no test data")

    model = Scaled()
    expected = model(X)
    with pytest.raises(ValueError, match="no test data"):
        prunus.prune(model, BASE, train=train, test=fails, example=X)
    assert torch.equal(model(X), expected)


def test_an_error_after_branches_were_taken_out_puts_them_back() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for branch in self.b:
                x = x + branch(x)
            return x

    def fails(model: nn.Module) -> float:
        raise ValueError("no test data")

    torch.manual_seed(0)
    model = Residual()
    expected = model(X)
    recipe = {"structure": {"name": "layer", "modules": ["b.*"]}, "target": 0.5, "compact": "end"}
    with pytest.raises(ValueError, match="no test data"):
        prunus.prune(model, recipe, test=fails, example=X)
    assert torch.equal(model(X), expected)


def test_growing_back_takes_the_memory_first_and_then_changes_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mlp(8, 16, 16, 2)
    dense, attributes = copy.deepcopy(model.state_dict()), str(model)
    recipe = {**BASE, "rounds": 1, "dense": "1ep"}
    pruner = PruningEngine(model, recipe, example=X)
    other = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([*model.parameters(), other], lr=0.01)
    pruner.attach(optimizer)

    def step() -> None:
        (F.cross_entropy(pruner.model(X), Y) + other.sum()).backward()
        optimizer.step()

    step()
    pruner.cut(1.0)
    assert pruner.shrink(optimizer) is not None
    step()
    small = copy.deepcopy((pruner.model.state_dict(), optimizer.state_dict(), pruner.masks))

    calls = itertools.count()
    right = shrinking._empty

    def scarce(like: Tensor, shape: torch.Size) -> Tensor:
        if next(calls) == 3:
            raise MemoryError("no more")
        return right(like, shape)

    monkeypatch.setattr(shrinking, "_empty", scarce)
    with pytest.raises(MemoryError):
        pruner.unshrink()
    after = (pruner.model.state_dict(), optimizer.state_dict(), pruner.masks)
    _, old = torch.utils._pytree.tree_flatten(small)
    assert torch.utils._pytree.tree_structure(after) == old
    pairs = zip(*(torch.utils._pytree.tree_leaves(s) for s in (small, after)), strict=True)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs
               if a is not None)  # fmt: skip
    step()

    pruner.unshrink()
    assert str(pruner.model) == attributes
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in dense.items()
    }
    assert list(optimizer.state) == [other]  # no state of this model's
    assert int(optimizer.state[other]["step"]) == 3
    step()


def test_a_model_grows_back_while_a_loss_of_the_small_one_is_alive() -> None:
    pruner = PruningEngine(mlp(8, 16, 2), {**BASE, "rounds": 1, "dense": "1ep"}, example=X)
    pruner.cut(1.0)
    assert pruner.shrink() is not None
    alive = F.cross_entropy(pruner.model(X), Y)
    pruner.unshrink()
    F.cross_entropy(pruner.model(X), Y).backward()
    assert alive.requires_grad
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruner.model.parameters())


def test_tied_and_replaced_modules_grow_back_each_tensor_once() -> None:
    class Own(nn.MultiheadAttention):
        """Whose code may be its own, so that only a graph of it can be narrower."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.attention = Own(8, 4, batch_first=True)
            self.first, self.second, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            x = torch.stack([x, x.flip(1)], 1)
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.out((torch.relu(self.first(x)) + torch.relu(self.second(x))).mean(1))

    model = Twice()
    expected, kind = model(X), type(model.attention)
    recipe = {**BASE, "guard": {"max_drop": 0.1}, "target": 0.7, "rounds": 1,
              "allocation": "uniform"}  # fmt: skip
    seen = []

    def evaluate(m: nn.Module) -> float:
        seen.append(type(m.attention) is kind)
        return float(m.first.out_features == 8 and seen[-1])

    result = prunus.prune(model, recipe, train=None, evaluate=evaluate, example=X)
    assert [r.verdict for r in result.rounds][1] == "rejected"
    assert not all(seen)  # the attention had become a graph
    assert type(model.attention) is kind
    assert model.second.weight is model.first.weight
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("compact", ["end", "every_round"])
def test_recurrent_layers_shrink(compact: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(4, 12, batch_first=True), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x.view(len(x), 2, 4))[0][:, -1])

    torch.manual_seed(0)
    result = prunus.prune(Reader(), {**BASE, "compact": compact}, train=train, example=X)
    assert result.model.rnn.hidden_size < 12
    assert result.compaction is not None
    assert result.compaction.error < 1e-10


@pytest.mark.parametrize("compact", ["end", "every_round"])
def test_groups_may_come_down_to_their_last_unit(compact: str) -> None:
    recipe = {**BASE, "target": 0.8, "allocation": "global", "compact": compact}
    result = prunus.prune(mlp(8, 4, 16, 2), recipe, train=train, example=X)
    left = sum(p.numel() for p in result.model.parameters() if p.dim() > 1)
    assert result.sparsity == pytest.approx(1 - left / (32 + 64 + 32))
    assert all(density > 0 for density in result.rounds[-1].densities.values())


def test_what_is_left_may_be_last_units_and_excluded_ones() -> None:
    recipe = {**BASE, "target": 0.75, "scope": {"exclude": ["2.bias"]}, "rounds": 4}
    result = prunus.prune(mlp(8, 4, 16, 2), recipe, train=train, example=X)
    assert [m.out_features for m in result.model if isinstance(m, nn.Linear)] == [1, 16, 2]


def test_as_far_as_the_guard_allows_ends_where_whole_units_do() -> None:
    recipe = {**BASE, "target": "guard", "guard": {"max_drop": 0.1}, "rounds": None}
    result = prunus.prune(mlp(8, 8, 2), recipe, train=train, evaluate=lambda m: 1.0, example=X)
    assert "whole units" in result.reason or "guard allows" in result.reason
    assert len(result.rounds) < 12


def test_a_multiple_that_forbids_the_target_is_an_error() -> None:
    structure = {"name": "channel", "multiple_of": 12}
    with pytest.raises(prunus.InputError, match="at most"):
        prunus.prune(
            mlp(8, 16, 16, 2), {"structure": structure, "target": {"max_macs": 0.3}}, example=X
        )


@pytest.mark.parametrize("allocation", ["uniform", "global", "per_cost", "erk"])
def test_shrinking_on_the_way_removes_what_masks_would_have_removed(allocation: str) -> None:
    widths = []
    for compact in ("end", "every_round"):
        recipe = {**BASE, "target": 0.8, "rounds": 2, "allocation": allocation, "compact": compact}
        result = prunus.prune(
            mlp(8, 32, 64, 2), recipe, train=None, evaluate=lambda m: 1.0, example=X
        )
        widths.append([m.out_features for m in result.model if isinstance(m, nn.Linear)])
    assert widths[0] == widths[1]


def test_a_copy_that_would_stay_dense_is_refused() -> None:
    def with_average(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run.attach(optimizer, average=copy.deepcopy(model))

    with pytest.raises(prunus.InputError, match="stay dense"):
        prunus.prune(mlp(8, 16, 2), BASE, train=with_average, example=X)


def test_one_optimizer_over_all_rounds_keeps_its_rate_and_its_momenta() -> None:
    model = mlp(8, 16, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(X).sum().backward()
    optimizer.step()  # state from before the run
    first: list[float] = []

    def kept(model: nn.Module, run: prunus.Run) -> None:
        run.attach(optimizer)
        for number, (inputs, classes) in enumerate(run.batches([(X, Y)] * 4)):
            if number == 0:
                first.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), classes).backward()
            optimizer.step()

    recipe = {**BASE, "learning_rate": "hold_decay"}
    prunus.prune(model, recipe, train=kept, example=X)
    assert first == [0.01] * 3
    shapes = {p.shape for p in model.parameters()}
    assert {s["exp_avg"].shape for s in optimizer.state.values()} == shapes


def test_models_that_keep_an_activation_can_be_copied() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.last = torch.relu(self.a(x))
            return self.b(self.last)

    torch.manual_seed(0)
    result = prunus.prune(Keeps(), BASE, train=train, example=X)
    assert result.model.a.out_features < 16


def test_a_constant_of_the_code_is_sliced_where_a_graph_holds_it() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 2)
            self.k = torch.rand(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)) * self.k)

    torch.manual_seed(0)
    result = prunus.prune(Constant(), {**BASE, "compact": "end"}, train=train, example=X)
    assert result.compaction is not None
    assert result.compaction.error < 1e-10
    assert result.model(X).shape == (4, 2)


def test_a_wrapped_model_is_refused_before_work_starts() -> None:
    with pytest.raises(prunus.InputError, match="keeps copies of the old sizes"):
        prunus.prune(nn.DataParallel(mlp(8, 16, 2)), BASE, train=train, example=X)
