"""What a traced pass leaves open: batches and lengths, unless that would take too long."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import InputError
from prunus.graph.guard import expression
from prunus.graph.trace import trace


class Windows(nn.Module):
    """A linear layer in windows of 7×7 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        x = F.pad(x, (0, 0, 0, -width % 7, 0, -height % 7))
        _, tall, wide, _ = x.shape
        many = (tall // 7) * (wide // 7)
        x = x.view(batch, tall // 7, 7, wide // 7, 7, dim).permute(0, 1, 3, 2, 4, 5)
        x = self.linear(x.reshape(batch * many, 49, dim)).view(batch, many, 49, dim)
        return x.reshape(batch, tall, wide, dim)[:, :height, :width]


def test_sizes_that_become_involved_are_not_open_and_the_batch_is() -> None:
    traced = trace(Windows(), torch.randn(2, 10, 10, 6), dynamic=True)
    assert set(traced.guard.places().values()) == {("x", 0)}
    other = torch.randn(5, 10, 10, 6)
    assert isinstance(traced.guard.arranged((other,), {}), list)
    assert traced.module(other).shape == other.shape


class Long(nn.Module):
    """Code that reads the batch size as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).reshape(len(x), 2, -1)


def test_a_batch_size_that_code_fixes_is_that_of_the_example() -> None:
    traced = trace(Long(), torch.randn(1, 4), dynamic=True)
    assert not traced.open
    assert traced.takes(((torch.randn(1, 4),), {}))


def test_bounds_are_part_of_the_arithmetic_of_sizes() -> None:
    assert expression("max(1, s0 // 7) == min(s0, 2)")({"s0": 14})
    for text in ("max(*s0)", "max(s0, key=s0)", "max.real", "(max)(1)(2)"):
        with pytest.raises(InputError, match="no arithmetic of sizes"):
            expression(text)
