"""Convolutions under masks, forward and backward by the kernels: the gradients of dense loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import InputError
from prunus.kernels import LACKING, usable
from prunus.kernels.conv_training import ConvLayouts
from prunus.pruning import sparse_training
from prunus.pruning.enforce import Enforcer

if not usable():
    pytest.skip(LACKING, allow_module_level=True)

CASES = [  # batch, in, out, kernel, stride, padding, dilation, height and width
    (2, 5, 7, 3, 1, 1, 1, (9, 11)), (3, 8, 6, 1, 1, 0, 1, (8, 8)), (2, 6, 9, 3, 2, 1, 1, (13, 12)),
    (1, 4, 4, 5, 1, 0, 2, (17, 15)), (2, 3, 8, 3, 1, 3, 1, (6, 6)), (2, 70, 40, 3, 1, 1, 1, (6, 6)),
    (2, 6, 5, 1, 2, 0, 1, (9, 8)),
]  # fmt: skip


def masked(*shape: int, seed: int = 0, sparsity: float = 0.8) -> tuple[Tensor, Tensor]:
    """A weight and its mask, with channels that have nothing left."""
    make = torch.Generator().manual_seed(seed)
    mask = torch.rand(*shape, generator=make) >= sparsity
    mask[0] = False
    return torch.randn(*shape, generator=make) * mask, mask


def gradients(y: Tensor, given: Sequence[Tensor], dy: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, given, dy.to(y.dtype)))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_dense_arithmetic_at_their_places(
    instructions: str, case: tuple[Any, ...]
) -> None:
    batch, channels, out, kernel, stride, padding, dilation, size = case
    weight, mask = masked(out, channels, kernel, kernel)
    given = [torch.randn(batch, channels, *size), weight, torch.randn(out)]
    doubled = [t.double().requires_grad_() for t in given]
    given = [t.requires_grad_() for t in given]
    layouts = ConvLayouts.of(mask)
    where: dict[str, Any] = {
        "stride": (stride, stride), "padding": (padding, padding), "dilation": (dilation, dilation),
    }  # fmt: skip
    found, right = layouts(*given, **where), F.conv2d(*doubled, **where)
    torch.testing.assert_close(found, right.float(), rtol=1e-5, atol=1e-5)
    dy = torch.randn(right.shape)
    for one, other, kept in zip(
        gradients(found, given, dy), gradients(right, doubled, dy), (True, mask, True), strict=True
    ):
        limit = 1e-6 * float(other.abs().max()) + 1e-5
        assert float((one - other * kept).abs().max()) <= limit


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_pass_gradcheck(stride: int) -> None:
    weight, mask = masked(3, 2, 3, 3, sparsity=0.4)
    layouts = ConvLayouts.of(mask)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layouts(x, weight * mask, bias, stride=(stride, stride), padding=(1, 1))

    given = (torch.randn(2, 2, 5, 4), weight, torch.randn(3))
    assert torch.autograd.gradcheck(run, tuple(t.double().requires_grad_() for t in given))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_nan_and_infinity_go_where_dense_arithmetic_takes_them(value: float) -> None:
    weight, mask = masked(5, 4, 3, 3)
    x, dy = torch.randn(2, 4, 6, 7), torch.randn(2, 5, 6, 7)
    for odd in (x, dy):
        odd[0, 1, 2, 3] = value
        given = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        right = gradients(F.conv2d(*given, padding=1), given, dy)
        found = gradients(ConvLayouts.of(mask)(*given, None, padding=(1, 1)), given, dy)
        torch.testing.assert_close(found[0], right[0], equal_nan=True)
        torch.testing.assert_close(found[1][mask], right[1][mask], equal_nan=True)
        odd[0, 1, 2, 3] = 0.0


def test_a_gradient_has_the_same_bits_on_any_number_of_threads(instructions: str) -> None:
    weight, mask = masked(600, 20, 3, 3)
    layouts, x = ConvLayouts.of(mask), torch.randn(2, 20, 9, 8)
    own, before = weight.requires_grad_(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found += gradients(layouts(x, own, None), [own], torch.ones(2, 600, 7, 6))
    finally:
        torch.set_num_threads(before)
    assert found[0].equal(found[1])


def test_the_operators_pass_torchs_own_checks() -> None:
    weight, mask = masked(5, 4, 3, 3)
    held = ConvLayouts.of(mask)
    given = (torch.randn(2, 4, 6, 7).requires_grad_(), weight.requires_grad_(), held.layout,
             held.order, held.turned, held.turned_order, torch.randn(5).requires_grad_(),
             [1, 1], [1, 1], [1, 1])  # fmt: skip
    torch.library.opcheck(torch.ops.prunus.sparse_conv.default, given)


def test_second_derivatives_are_refused() -> None:
    weight, mask = masked(3, 2, 3, 3)
    x = torch.randn(1, 2, 5, 5).requires_grad_()
    y = ConvLayouts.of(mask)(x, weight.requires_grad_(), None)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(InputError, match="no second derivatives"):
        dx.sum().backward()


# --- in a recipe


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The channels of every convolution that ran sparse; each does, however it measures."""
    seen: list[int] = []
    run = ConvLayouts.__call__

    def watched(self: Any, *given: Any, **where: Any) -> Tensor:
        seen.append(self.rows)
        return run(self, *given, **where)

    monkeypatch.setattr(ConvLayouts, "__call__", watched)
    monkeypatch.setattr(
        sparse_training, "_step_time", lambda way, *given: F.conv2d is getattr(way, "func", None)
    )
    return seen


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def trained(sparse: bool) -> tuple[nn.Module, list[Tensor]]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recipe = {"target": 0.8, "allocation": "uniform", "schedule": {"name": "one_shot"},
              "sparse_training": sparse}  # fmt: skip
    prunus.Pruner(model, recipe, optimizer, steps=5)
    make, answers = torch.Generator().manual_seed(1), []
    for _ in range(5):
        x, y = torch.randn(8, 3, 12, 10, generator=make), torch.randint(3, (8,), generator=make)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        answers.append(loss.detach())
    return model, answers


def test_a_loop_of_convolutions_trains_as_it_does_densely(calls: list[int]) -> None:
    sparse, losses = trained(True)
    assert set(calls) == {12, 16}  # padding by its name, and groups, stay dense
    dense, right = trained(False)
    torch.testing.assert_close(losses, right, rtol=1e-4, atol=1e-5)
    for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert (one == 0).equal(other == 0)


def test_convolutions_that_are_not_faster_stay_dense(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sparse_training,
        "_step_time",
        lambda way, *given: isinstance(getattr(way, "func", 0), ConvLayouts),
    )
    trained(True)
    assert calls == []


def test_inputs_that_do_not_fit_are_refused_by_torch(calls: list[int]) -> None:
    model, enforcer = network().train(), Enforcer()
    enforcer.set_masks(model, {"0.weight": torch.rand(12, 3, 3, 3) > 0.9})
    with sparse_training.SparseTraining().over(model, enforcer):
        with pytest.raises(RuntimeError, match="channels"):
            model(torch.randn(2, 4, 12, 10))
        model(torch.randn(2, 3, 12, 10))
    assert calls == [12]
