"""A graph of one pass refuses data that decide otherwise than the data that were traced."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import InputError, RunError
from prunus.graph.recorder import record

Channels = {"target": 0.5, "structure": "channel"}


class Net(nn.Module):
    """Sizes in its code make a graph of it; what ``decide`` does is left to data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 16)
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 3)

    def start(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.first(x))).view(-1, 4, 4).reshape(-1, 16)

    def end(self, y: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(y)).view(-1, 2, 8).reshape(-1, 16))


class OnTest(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.start(x)
        return self.end(y * 2 if (x > 2).any() else y)


class OnFlag(Net):
    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        y = self.start(x)
        return self.end(y * 2 if flag.item() else y)


class Selects(Net):
    """How many rows it takes changes no operator."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.start(x)
        if (x > 1e4).any():
            y = y + 1
        return self.end(y[x[:, 0] > 0]).sum(0)


class Counts(Net):
    """How many rows it finds is a factor."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.start(x)
        if (x > 1e4).any():
            y = y + 1
        return self.end(y) * len((x[:, 0] > 0).nonzero())


def both(model: nn.Module, example: Any) -> tuple[nn.Module, nn.Module]:
    """A masked model and the compact one."""
    masked = copy.deepcopy(model)
    prunus.prune(masked, Channels, example=example)
    result = prunus.prune(model, {**Channels, "compact": "end"}, example=example)
    assert result.compaction is not None
    assert result.compaction.route == "graph"
    return masked, result.model


def rows(high: float = 1.0) -> Tensor:
    x = torch.rand(4, 6) - 0.5
    x[0, 0], x[1, 1] = 0.4, high
    return x


def test_another_outcome_of_a_test_is_refused_and_the_same_one_is_answered() -> None:
    masked, compact = both(OnTest().eval(), rows())
    for _ in range(5):
        x = rows()
        torch.testing.assert_close(compact(x), masked(x))
    with pytest.raises(InputError, match=r"is_nonzero .* was False .* example=\[first, second\]"):
        compact(rows(high=3.0))


def test_two_examples_are_two_outcomes() -> None:
    x = torch.randn(4, 6)
    example = [(x, torch.tensor(True)), (x, torch.tensor(False))]
    masked, compact = both(OnFlag().eval(), example)
    for flag in (True, False, True):
        x = torch.randn(4, 6)
        torch.testing.assert_close(compact(x, torch.tensor(flag)), masked(x, torch.tensor(flag)))


def test_a_pass_that_data_refuse_leaves_no_statistics_behind() -> None:
    x = torch.randn(4, 6)
    example = [(x, torch.tensor(True)), (x, torch.tensor(False))]
    masked, compact = both(OnFlag().eval(), example)
    masked.train(), compact.train()
    for flag in (False, True, False):
        x = torch.randn(4, 6)
        torch.testing.assert_close(compact(x, torch.tensor(flag)), masked(x, torch.tensor(flag)))
    buffers = [dict(m.named_buffers()) for m in (masked, compact)]
    kept = buffers[0]["norm.running_mean"][masked.norm.weight != 0]  # type: ignore[union-attr,operator]
    torch.testing.assert_close(buffers[1]["norm.running_mean"], kept)


def test_a_count_that_changes_no_operator_may_be_any_but_zero() -> None:
    masked, compact = both(Selects().eval(), rows())
    counts = set()
    for _ in range(8):
        x = torch.rand(4, 6) - 0.5
        x[0, 0] = 0.3
        counts.add(int((x[:, 0] > 0).sum()))
        torch.testing.assert_close(compact(x), masked(x))
    assert len(counts) > 1
    with pytest.raises(InputError, match=r"how many .* is 0 now"):
        compact(-rows().abs())


def test_a_count_that_is_a_factor_is_refused() -> None:
    x = rows()
    with torch.no_grad():
        module = record(Counts().eval(), (x,), {})
    module(x * 0.9)
    with pytest.raises(RuntimeError, match="how many"):
        module(x.abs())
    with pytest.raises(RunError, match="how many"):  # the gate's inputs have other counts
        both(Counts().eval(), rows())


@pytest.mark.parametrize("how", ["tolist", "numpy", "item"])
def test_values_that_leave_torch_are_checked(how: str) -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            if how == "tolist":
                return x * n.tolist()[0]
            return x * (int(n.numpy()[0]) if how == "numpy" else n[0].item())

    module = record(Reads(), (torch.ones(2), torch.tensor([2, 3])), {})
    assert module(torch.ones(2) * 3, torch.tensor([2, 3])).tolist() == [6.0, 6.0]
    with pytest.raises(RuntimeError, match="decided by data: what "):
        module(torch.ones(2), torch.tensor([4, 3]))


def test_a_saved_graph_still_refuses(tmp_path: Path) -> None:
    masked, compact = both(OnTest().eval(), rows())
    prunus.save(compact, tmp_path / "model.prunus")
    loaded = prunus.load(tmp_path / "model.prunus")
    x = rows()
    torch.testing.assert_close(loaded(x), masked(x))
    with pytest.raises(InputError, match="is_nonzero"):
        loaded(rows(high=3.0))


def test_sizes_that_depend_on_values_can_be_exported_and_analyzed() -> None:
    class Open(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.start(x)
            found = (x[:, 0] > 0).nonzero()[:, 0]
            return self.end(y) / (found.shape[0] + 1)

    masked, compact = both(Open().eval(), rows())
    for _ in range(4):
        x = torch.randn(4, 6)
        torch.testing.assert_close(compact(x), masked(x))
