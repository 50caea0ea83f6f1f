"""What the runtime sparse puts into a program: sums of layers, and what is changed in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus._common.torch_internals import exported_module
from prunus.kernels import LACKING, usable
from prunus.runtimes import _sparse_choice
from prunus.runtimes._sparse_kinds import KINDS
from prunus.runtimes._sparse_sites import by_place, drop_idle, finish

if not usable():
    pytest.skip(LACKING, allow_module_level=True)


class Two(nn.Module):
    """Two layers of one width, and what is made of them."""

    def __init__(self, convolutions: bool, way: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (
            nn.Conv2d(6, 6, 3, padding=1) if convolutions else nn.Linear(9, 9) for _ in range(2)
        )
        for layer in (self.a, self.b):
            layer.weight.data.mul_(torch.rand_like(layer.weight) > 0.8)
        self.way = way

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


def changed_before_the_activation(m: Any, x: Tensor) -> Any:
    h = x * 1
    y = m.a(h)
    h.add_(1)
    return torch.relu(y), h


def changed_through_an_alias(m: Any, x: Tensor) -> Any:
    h = x * 1
    y = m.a(h[:, :])
    h.zero_()
    return m.b(F.silu(y))


def added_to_what_others_see(m: Any, x: Tensor) -> Any:
    h = x * 1
    seen = h.view(-1)
    h.add_(m.a(x))
    return seen * 2


def a_view_that_is_activated(m: Any, x: Tensor) -> Any:
    h = x * 1
    v = h.view(x.shape)
    torch.relu_(v)
    return m.a(v) + h


def changed_between_sum_and_activation(m: Any, x: Tensor) -> Any:
    y, r = m.a(x), x.clone()
    z = y + r
    r.zero_()
    return F.relu(z)


WAYS: list[Callable[[Any, Tensor], Any]] = [
    lambda m, x: F.relu(m.a(x) + m.b(x)),
    lambda m, x: (h := x + m.a(x)) + m.b(F.gelu(h)),
    changed_before_the_activation, changed_through_an_alias, added_to_what_others_see,
    a_view_that_is_activated, changed_between_sum_and_activation,
]  # fmt: skip


@pytest.mark.parametrize(
    ("way", "convolutions"),
    [(0, False), (1, False), (2, False), (4, False), (6, False), (3, True), (5, True)],
)
def test_every_layer_that_is_put_into_a_program_leaves_its_answers(
    way: int, convolutions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sparse_choice, "SECONDS", 1e-4)
    model, x = Two(convolutions, WAYS[way]).eval(), torch.randn(2, 6, 9, 9)
    with torch.no_grad():
        right = model(x)
    module = exported_module(torch.export.export(model, (x,)))
    by_place(module)
    drop_idle(module)
    count = 0
    for kind in KINDS:
        for site in kind.find(module):
            choice = kind.choose(site, tuple(x.shape), False)
            kind.put(module, site, [replace(choice, dense_ms=1e9)])
            count += 1
    assert count
    found = finish(module)([x])
    torch.testing.assert_close(found, list(right) if isinstance(right, tuple) else [right])
