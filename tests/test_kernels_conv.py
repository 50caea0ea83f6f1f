"""Sparse convolutions: torch in float64 as reference, every instruction set, what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.kernels import native as compiled
from prunus.kernels.conv import SparseConv2d, laid_out
from prunus.kernels.conv_prepared import PreparedConvs
from prunus.kernels.conv_product import densely, plain, sequence
from prunus.kernels.conv_steps import ACTIVATIONS, Activation, Pair, Program, Step
from prunus.kernels.layouts import Cut
from prunus.kernels.native import usable

if not usable():
    pytest.skip(compiled.LACKING, allow_module_level=True)

FEW = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CUTS = [(1, 1), (2, 1), (4, 1), (1, 4)]
SPARSITY = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))
HOW = st.sampled_from(["plain", "channels_last", "gaps", "unaligned"])


def weights(shape: Sequence[int], sparsity: float, *, seed: int = 0) -> Tensor:
    """With channels of the result, and of the input, that have none."""
    make = torch.Generator().manual_seed(seed)
    there = torch.rand(*shape, generator=make) >= sparsity
    if sparsity > 0:
        there &= torch.rand(shape[0], 1, 1, 1, generator=make) > 0.1
        there &= torch.rand(1, shape[1], 1, 1, generator=make) > 0.1
    return torch.randn(*shape, generator=make) * there


def pictures(shape: Sequence[int], how: str = "plain", *, seed: int = 1) -> Tensor:
    make = torch.Generator().manual_seed(seed)
    if how == "gaps":
        return torch.randn(*shape[:3], shape[3] + 3, generator=make)[..., : shape[3]]
    if how == "unaligned":
        flat = torch.randn(1 + torch.Size(shape).numel(), generator=make)
        return flat[1:].view(*shape)
    x = torch.randn(*shape, generator=make)
    return x.to(memory_format=torch.channels_last) if how == "channels_last" else x


def after(y: Tensor, activation: str) -> Tensor:
    every: dict[str, Any] = {
        "none": lambda v: v, "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu,
    }  # fmt: skip
    found: Tensor = every[activation](y)
    return found


def close(found: Tensor, right: Tensor, size: Tensor, terms: int) -> None:
    """Equal to the float64 reference within the rounding of as many float32 additions."""
    assert found.shape == right.shape
    limit = 2e-7 * (terms**0.5 + 8) * (size + 1)
    assert bool(((found.double() - right).abs() <= limit).all()), (found - right).abs().max()


@FEW
@given(
    channels=st.integers(1, 40), out=st.integers(1, 40), size=st.tuples(*[st.integers(1, 40)] * 2),
    kernel=st.tuples(*[st.sampled_from([1, 1, 2, 3, 3, 5])] * 2),
    stride=st.tuples(*[st.sampled_from([1, 1, 2, 3])] * 2),
    padding=st.tuples(*[st.integers(0, 3)] * 2), dilation=st.tuples(*[st.integers(1, 2)] * 2),
    batch=st.integers(0, 5), sparsity=SPARSITY, shifted=st.booleans(),
    cut=st.sampled_from(CUTS), more=st.booleans(), activation=st.sampled_from(ACTIVATIONS),
    how=HOW, vectors=st.integers(1, 8), seed=st.integers(0, 99),
)  # fmt: skip
def test_convolutions_equal_the_reference(
    instructions: str, channels: int, out: int, size: Pair, kernel: Pair, stride: Pair,
    padding: Pair, dilation: Pair, batch: int, sparsity: float, shifted: bool, cut: Pair,
    more: bool, activation: Activation, how: str, vectors: int, seed: int,
) -> None:  # fmt: skip
    weight = weights((out, channels, *kernel), sparsity, seed=seed)
    x = pictures((batch, channels, *size), how, seed=seed)
    step = Step("conv", 0, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    band = max(1, channels // 3) * step.taps
    layer = SparseConv2d(
        weight, torch.randn(out), stride=stride, padding=padding, dilation=dilation,
        activation=activation, shifted=shifted, how=Cut(*cut, 64, band, 16), vectors=vectors,
    )  # fmt: skip
    if min(step.size(*size)) < 1:
        with pytest.raises(InputError, match="too small"):
            layer(x)
        return
    right = F.conv2d(x.double(), weight.double(), layer.bias.double(), stride, padding, dilation)
    size_of = F.conv2d(x.double().abs(), weight.double().abs(), None, stride, padding, dilation)
    residual = pictures(right.shape, how, seed=seed + 1) if more else None
    right = after(right if residual is None else right + residual.double(), activation)
    close(layer(x, residual), right, size_of + 8, channels * step.taps)


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [((70, 300, 3, 3), (7, 7), 1), ((300, 64, 1, 1), (56, 56), 1), ((64, 64, 3, 3), (56, 56), 2),
     ((64, 3, 7, 7), (112, 96), 2), ((600, 600, 1, 1), (14, 14), 1), ((1, 2000, 1, 1), (1, 1), 1)],
)  # fmt: skip
def test_convolutions_of_known_networks_equal_the_reference(
    instructions: str, shape: tuple[int, ...], size: Pair, stride: int
) -> None:
    weight, strides = weights(shape, 0.9), (stride, stride)
    padding = (shape[2] // 2, shape[3] // 2)
    for shifted, batch in itertools.product((False, True), (1, 3)):
        layer = SparseConv2d(weight, stride=strides, padding=padding, shifted=shifted)
        x = pictures((batch, shape[1], *size))
        right = F.conv2d(x.double(), weight.double(), None, strides, padding)
        size_of = F.conv2d(x.double().abs(), weight.double().abs(), None, strides, padding)
        close(layer(x), right, size_of, weight[0].numel())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_nan_and_infinity_are_as_dense_arithmetic_gives_them(
    instructions: str, value: float
) -> None:
    weight = weights((9, 11, 3, 3), 0.8)
    x = pictures((2, 11, 9, 9))
    x[0, 5, 3, 4] = value
    for shifted in (False, True):
        layer = SparseConv2d(weight, padding=(1, 1), activation="relu", shifted=shifted)
        right = F.relu(F.conv2d(x, weight, None, 1, 1))
        torch.testing.assert_close(layer(x), right, equal_nan=True)
    for bad in (value, 3e38):  # among the weights; sums that overflow
        odd = torch.where(weight != 0, torch.tensor(bad), weight)
        whole = pictures((2, 11, 9, 9)).abs()
        found = SparseConv2d(odd, padding=(1, 1))(whole)
        torch.testing.assert_close(found, F.conv2d(whole, odd, None, 1, 1), equal_nan=True)


@pytest.mark.parametrize(("channels", "out", "groups"), [(12, 20, 4), (10, 6, 2), (8, 24, 8)])
def test_groups_keep_their_channels_apart(
    instructions: str, channels: int, out: int, groups: int
) -> None:
    weight = weights((out, channels // groups, 3, 3), 0.7)
    x, bias = pictures((2, channels, 9, 11)), torch.randn(out)
    for how in (None, Cut(1, 4, 64, 3 * 9, 16)):
        layer = SparseConv2d(weight, bias, padding=(1, 1), groups=groups, how=how)
        right = F.conv2d(x.double(), weight.double(), bias.double(), 1, 1, 1, groups)
        size = F.conv2d(x.double().abs(), weight.double().abs(), None, 1, 1, 1, groups)
        close(layer(x), right, size + 4, weight[0].numel())
        odd = x.clone()
        odd[0, 1, 4, 4] = float("nan")  # it stays in its group
        torch.testing.assert_close(
            layer(odd), F.conv2d(odd, weight, bias, 1, 1, 1, groups), equal_nan=True
        )


def test_channels_that_are_not_whole_groups_are_refused() -> None:
    layer = SparseConv2d(weights((6, 2, 1, 1), 0.5), groups=3)
    with pytest.raises(InputError, match="7 channels are not 3 groups"):
        layer(pictures((1, 7, 4, 4)))
    with pytest.raises(InputError, match="a weight of 4 groups"):
        SparseConv2d(weights((6, 2, 1, 1), 0.5), groups=4)


def test_float64_is_computed_by_torch(instructions: str) -> None:
    weight, x = weights((5, 6, 3, 3), 0.7).double(), pictures((2, 6, 8, 9)).double()
    layer = SparseConv2d(weight, torch.ones(5).double(), stride=(2, 1), activation="silu")
    right = F.silu(F.conv2d(x, weight, torch.ones(5).double(), (2, 1)))
    torch.testing.assert_close(layer(x), right)
    grouped = SparseConv2d(weights((4, 3, 3, 3), 0.5).double(), groups=2)
    torch.testing.assert_close(
        grouped(x), F.conv2d(x, weights((4, 3, 3, 3), 0.5).double(), groups=2)
    )


def test_a_picture_has_the_same_bits_on_any_threads_and_in_two_python_threads(
    instructions: str,
) -> None:
    layers = [
        SparseConv2d(weights((150, 40, k, k), 0.9, seed=k), padding=(k // 2, k // 2),
                     how=Cut(2, 1, 64, 16 * k * k, 48), shifted=k == 3)
        for k in (1, 3)
    ]  # fmt: skip
    x, before = pictures((3, 40, 19, 23)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = [layer(x) for layer in layers]
        for count in (2, 3):
            torch.set_num_threads(count)
            assert all(layer(x).equal(w) for layer, w in zip(layers, whole, strict=True))

        def work(number: int) -> bool:
            torch.set_num_threads(2)
            return all(layers[i % 2](x).equal(whole[i % 2]) for i in range(number, number + 20))

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        torch.set_num_threads(before)


# --- sequences


class Ready:
    """A sequence with its weights, random ones, and the same by torch."""

    def __init__(self, steps: Sequence[Step], channels: int, outputs: Sequence[int]) -> None:
        self.program = Program(1, tuple(steps), tuple(outputs))
        self.values, self.layouts, self.biases = [], [], []
        known = [channels]
        for i, step in enumerate(steps):
            known.append(step.channels)
            if step.kind == "conv":
                weight = weights((step.channels, known[step.x], *step.kernel), 0.8, seed=i)
                layout, values = laid_out(0.3 * weight)
                self.layouts.append(layout.numbers)
            elif step.kind == "depthwise":
                values = torch.randn(step.channels * step.taps)
                self.layouts.append(torch.empty(0, dtype=torch.int32))
            else:
                continue
            self.values.append(values)
            self.biases.append(torch.randn(step.channels) if i % 2 else torch.empty(0))

    def check(self, x: Tensor) -> None:
        parts = (self.values, self.layouts, self.biases)
        right = densely(self.program, [x], *parts)
        for found in (
            sequence(self.program.numbers(), [x], *parts),
            PreparedConvs(self.program, *parts)(x),
        ):
            for one, other in zip(found, right, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def network(*, shifted: bool) -> Ready:
    """A stem, two residual blocks of which one strides, a depthwise one, pooling of all kinds."""
    three: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1), "shifted": shifted}
    steps = [
        Step("conv", 0, number=0, channels=9, activation="relu", **(three | {"stride": (2, 2)})),
        Step("max", 1, channels=9, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        Step("conv", 2, number=1, channels=5, activation="relu"),
        Step("conv", 3, number=2, channels=5, activation="silu", **three),
        Step("conv", 4, more=2, number=3, channels=9, activation="relu"),
        Step("conv", 5, number=4, channels=14, stride=(2, 2)),
        Step("conv", 5, number=5, channels=14, more=6, **(three | {"stride": (2, 2)})),
        Step("depthwise", 7, number=6, channels=14, kernel=(3, 3), padding=(1, 1),
             activation="relu6"),
        Step("sum", 8, more=7, channels=14, activation="gelu"),
        Step("average", 9, channels=14, kernel=(2, 2), stride=(2, 2)),
        Step("mean", 9, channels=14),
        Step("depthwise", 9, number=7, channels=14, kernel=(3, 1), stride=(2, 1), more=-1),
    ]  # fmt: skip
    return Ready(steps, 3, (5, 10, 11, 12))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(37, 41), (64, 64), (33, 90)])
def test_a_sequence_keeps_its_layout_and_gives_torchs_answers(
    instructions: str, shifted: bool, size: Pair
) -> None:
    made = network(shifted=shifted)
    for batch in (1, 4):
        made.check(pictures((batch, 3, *size)))


def test_pooling_of_negative_pictures_does_not_see_the_zeros_around_them(
    instructions: str,
) -> None:
    steps = [Step("max", 0, channels=2, kernel=(3, 3), padding=(1, 1))]
    made = Ready(steps, 2, (1,))
    made.check(-1 - pictures((2, 2, 7, 9)).abs())


def test_what_overflows_in_the_middle_of_a_sequence_is_computed_densely(
    instructions: str,
) -> None:
    made = network(shifted=False)
    x = pictures((1, 3, 40, 40))
    x[0, 1, 20, 20] = float("nan")
    made.biases[1] = torch.full((5,), 3e38)
    parts = (made.values, made.layouts, made.biases)
    for given_x in (x, pictures((1, 3, 40, 40))):
        right = densely(made.program, [given_x], *parts)
        for one, other in zip(PreparedConvs(made.program, *parts)(given_x), right, strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)
    assert not bool(torch.isfinite(right[0]).all())


# --- in torch


def test_the_operator_passes_torchs_own_checks() -> None:
    layout, values = laid_out(weights((5, 4, 3, 3), 0.8))
    program = Program(1, (Step("conv", 0, number=0, channels=5, kernel=(3, 3)),), (1,))
    torch.library.opcheck(
        torch.ops.prunus.packed_convs.default,
        ([pictures((2, 4, 6, 7))], [values], [layout.numbers], [torch.randn(5)], program.numbers()),
    )


def test_a_sparse_convolution_exports_with_any_batch_and_refuses_gradients() -> None:
    model = nn.Sequential(
        SparseConv2d(weights((5, 4, 3, 3), 0.8), padding=(1, 1)), nn.ReLU(), nn.Conv2d(5, 2, 1)
    ).eval()
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            model, (pictures((3, 4, 6, 7)),), dynamic_shapes=({0: batch},)
        )
        for count in (2, 7):
            x = pictures((count, 4, 6, 7))
            torch.testing.assert_close(program.module()(x), model(x))
    found = model[0](pictures((1, 4, 6, 7)).requires_grad_())
    with pytest.raises(InputError, match="forward only"):
        found.sum().backward()


# --- what is refused


def small() -> tuple[Program, list[Tensor], list[Tensor], list[Tensor]]:
    layout, values = laid_out(weights((5, 4, 3, 3), 0.5))
    step = Step("conv", 0, number=0, channels=5, kernel=(3, 3), padding=(1, 1))
    return Program(1, (step,), (1,)), [values], [layout.numbers], [torch.zeros(5)]


@pytest.mark.parametrize(
    ("part", "wrong", "says"),
    [
        (0, torch.zeros(1, 3, 8, 8), "tiles of 5×27, not a layout of 5×36"),
        (0, torch.zeros(4, 8, 8), r"an input is \[batch, channels"),
        (0, torch.zeros(1, 4, 8, 8).half(), "float32 on the CPU"),
        (0, torch.zeros(1, 4, 8, 8, device="meta"), "not torch.float32 .* on meta"),
        (0, torch.zeros(1, 4, 8, 8).to_sparse(), "float32 on the CPU"),
        (1, torch.zeros(3), "a bias of 5 or none, not 3 and 5"),
        (1, torch.zeros(999).half(), "float32 on the CPU"),
        (2, torch.zeros(40, dtype=torch.int32), "damaged"),
        (3, torch.zeros(4), "not .* and 4"),
        (3, torch.zeros(5).double(), "float32 on the CPU"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_pointer_is_used(
    part: int, wrong: Tensor, says: str
) -> None:
    program, values, layouts, biases = small()
    parts = [[torch.zeros(1, 4, 8, 8)], values, layouts, biases]
    parts[part] = [wrong]
    with pytest.raises(InputError, match=says):
        sequence(program.numbers(), *parts)
    with pytest.raises(InputError, match=says):
        PreparedConvs(program, *parts[1:])(*parts[0])


def test_layouts_that_are_exchanged_under_one_program_are_looked_at_again() -> None:
    program, values, layouts, biases = small()
    two = replace(program.steps[0], x=1, number=1, channels=4)
    other, own = laid_out(weights((4, 5, 3, 3), 0.5))
    longer = Program(1, (program.steps[0], two), (2,)).numbers()
    x = pictures((1, 4, 8, 8))
    parts = [[x], [*values, own], [*layouts, other.numbers], [*biases, torch.zeros(4)]]
    sequence(longer, *parts)
    parts[2] = [layouts[0], layouts[0]]
    with pytest.raises(InputError, match="tiles of 4×45"):
        sequence(longer, *parts)
    parts[2] = [layouts[0], other.numbers]
    with pytest.raises(InputError, match="one of each"):
        sequence(longer, parts[0], parts[1][:1], *parts[2:])
    both = Program(2, (Step("sum", 0, more=1, channels=4),), (2,)).numbers()
    with pytest.raises(InputError, match="of one batch size"):
        sequence(both, [x, pictures((2, 4, 8, 8))], [], [], [])


def test_a_damaged_program_is_refused_or_harmless() -> None:
    """Every number in turn is replaced; what passes is computed, and nothing crashes."""
    program, values, layouts, biases = small()
    numbers, refused = program.numbers(), 0
    x = pictures((1, 4, 8, 8))
    for place, other in itertools.product(range(len(numbers)), (-1, 0, 1, 2, 7, 2**31 - 1)):
        wrong = list(numbers)
        wrong[place] = other
        try:
            sequence(wrong, [x], values, layouts, biases)
        except InputError:
            refused += 1
    assert refused > 2 * len(numbers)
    for length in range(len(numbers)):
        with pytest.raises(InputError, match="damaged"):
            sequence(numbers[:length], [x], values, layouts, biases)


def test_a_damaged_layout_is_refused_or_harmless(instructions: str) -> None:
    weight = weights((6, 4, 3, 3), 0.8)
    layout, values = laid_out(weight, Cut(2, 1, 64, 18, 16))
    step = Step("conv", 0, number=0, channels=6, kernel=(3, 3), padding=(1, 1))
    program, refused = Program(1, (step,), (1,)).numbers(), 0
    x, bias = pictures((1, 4, 8, 8)), [torch.zeros(6)]
    for place, other in itertools.product(range(len(layout.numbers)), (-1, 7, 1 << 16)):
        wrong = layout.numbers.clone()
        wrong[place] = other
        try:
            sequence(program, [x], [values], [wrong], bias)
        except InputError:
            refused += 1
    assert refused > len(layout.numbers)


def test_one_step_in_torch_is_what_the_kernels_are_compared_with() -> None:
    x = pictures((2, 3, 6, 6))
    step = Step("average", 0, channels=3, kernel=(2, 2), stride=(2, 2))
    assert plain(step, x).equal(F.avg_pool2d(x, 2))
    assert plain(Step("mean", 0, channels=3), x).equal(x.mean((2, 3), keepdim=True))
