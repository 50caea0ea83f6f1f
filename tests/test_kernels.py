"""The sparse kernels: a float64 reference, every instruction set, gradients, what is refused."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fresh import Pythons
from prunus.errors import InputError
from prunus.kernels import native as compiled
from prunus.kernels.choosing import Kernel, blocks_of, single
from prunus.kernels.layouts import Cut, Layout, dense, mask, slices, tiles
from prunus.kernels.linear import SparseLinear
from prunus.kernels.native import SETS, VARIABLE, built, library, usable
from prunus.kernels.pattern import Pattern
from prunus.kernels.product import ACTIVATIONS, gradient, product
from prunus.pruning.sparse_training import Layouts

if not usable():
    pytest.skip(compiled.LACKING, allow_module_level=True)

FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CUTS = [
    Cut(side, height, width, band, 64)
    for side, height in ((1, 1), (2, 1), (4, 1), (1, 4))
    for width, band in ((4, 300), (8, 7), (16, 64), (32, 1000), (64, 33))
]
FORMS: dict[str, Callable[[Pattern], Layout]] = {
    "mask": mask,
    "slices": slices,
    "columns": lambda pattern: slices(pattern, form="columns"),
    "windows": lambda pattern: slices(pattern, form="windows"),
}


def matrix(rows: int, cols: int, sparsity: float, *, seed: int = 0) -> Tensor:
    """With empty rows and columns among the others."""
    make = torch.Generator().manual_seed(seed)
    there = torch.rand(rows, cols, generator=make) >= sparsity
    if sparsity > 0:
        there &= torch.rand(rows, 1, generator=make) > 0.1
        there &= torch.rand(1, cols, generator=make) > 0.1
    return torch.randn(rows, cols, generator=make) * there


def tokens_of(count: int, cols: int, how: str, *, seed: int = 1) -> Tensor:
    """Contiguous, with gaps between rows, transposed, or beginning in the middle of a line."""
    make = torch.Generator().manual_seed(seed)
    if how == "gaps":
        return torch.randn(count, cols + 3, generator=make)[:, :cols]
    if how == "transposed":
        return torch.randn(cols, count, generator=make).T
    if how == "unaligned":
        return torch.randn(count * cols + 1, generator=make)[1:].view(count, cols)
    return torch.randn(count, cols, generator=make)


def close(found: Tensor, weight: Tensor, x: Tensor, **more: Any) -> None:
    """Equal to the float64 reference within the rounding of as many float32 additions."""
    right = reference(weight, x, **more)
    size = F.linear(x.double().abs(), weight.double().abs()) + 1
    assert found.shape == right.shape
    limit = (2e-7 * (weight.shape[1] ** 0.5 + 8)) * size
    assert bool(((found.double() - right).abs() <= limit).all()), (found - right).abs().max()


def reference(
    weight: Tensor, x: Tensor, *, bias: Tensor | None = None, residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    y = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    y = y if residual is None else y + residual.double()
    after = {"none": lambda v: v, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
    return after[activation](y)  # type: ignore[no-any-return, operator]


def packed(layout: Layout, weight: Tensor) -> tuple[Tensor, Tensor]:
    return layout.numbers, layout.pack(weight.reshape(-1)[Pattern.of(weight).flat()])


HOW = st.sampled_from(["plain", "gaps", "transposed", "unaligned"])
SPARSITY = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))


@FEW
@given(
    rows=st.integers(1, 300), cols=st.integers(1, 400), sparsity=SPARSITY,
    tokens=st.one_of(st.sampled_from([0, 1, 63, 64, 65]), st.integers(0, 200)),
    cut=st.sampled_from(CUTS), how=HOW, seed=st.integers(0, 99),
)  # fmt: skip
def test_tiles_equal_the_reference(
    instructions: str, rows: int, cols: int, sparsity: float, tokens: int, cut: Cut, how: str,
    seed: int,
) -> None:  # fmt: skip
    weight = matrix(rows, cols, sparsity, seed=seed)
    x = tokens_of(tokens, cols, how, seed=seed)
    close(product(*packed(tiles(Pattern.of(weight), cut), weight), x), weight, x)


@pytest.mark.parametrize("shape", [(1, 1), (2304, 3000), (3001, 17), (17, 3001)])
def test_tiles_equal_the_reference_where_matrices_are_large(
    instructions: str, shape: tuple[int, int]
) -> None:
    weight = matrix(*shape, 0.95)
    for tokens in (1, 7, 1500):
        x = tokens_of(tokens, shape[1], "plain")
        close(product(*packed(tiles(Pattern.of(weight)), weight), x), weight, x)


@FEW
@given(
    rows=st.integers(1, 300), cols=st.integers(1, 400), sparsity=SPARSITY, how=HOW,
    form=st.sampled_from(sorted(FORMS)), seed=st.integers(0, 99), tokens=st.integers(0, 3),
)  # fmt: skip
def test_the_layouts_for_one_token_equal_the_reference(
    instructions: str, rows: int, cols: int, sparsity: float, how: str, form: str, seed: int,
    tokens: int,
) -> None:  # fmt: skip
    weight = matrix(rows, cols, sparsity, seed=seed)
    x = tokens_of(tokens, cols, how, seed=seed)
    close(product(*packed(FORMS[form](Pattern.of(weight)), weight), x), weight, x)


@FEW
@given(rows=st.integers(0, 130), cols=st.integers(0, 130), sparsity=SPARSITY,
       cut=st.sampled_from(CUTS), seed=st.integers(0, 99))  # fmt: skip
def test_a_layout_stands_for_its_matrix(
    rows: int, cols: int, sparsity: float, cut: Cut, seed: int
) -> None:
    weight = matrix(rows, cols, sparsity, seed=seed)
    pattern = Pattern.of(weight)
    for layout in (tiles(pattern, cut), *(make(pattern) for make in FORMS.values())):
        assert dense(*packed(layout, weight)).equal(weight)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_bias_residual_and_activation_follow_at_once(
    instructions: str, activation: str, tokens: int
) -> None:
    weight = 4 * matrix(37, 50, 0.8)
    more = {
        "bias": torch.randn(37),
        "residual": tokens_of(tokens, 37, "gaps"),
        "activation": activation,
    }
    x = tokens_of(tokens, 50, "plain")
    pattern = Pattern.of(weight)
    for layout in (tiles(pattern), *(make(pattern) for make in FORMS.values())):
        close(product(*packed(layout, weight), x, **more), weight, x, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_activations_are_right_far_from_zero(instructions: str, activation: str) -> None:
    x = torch.cat(
        [torch.linspace(-40, 40, 4001), torch.tensor([-1e30, -200.0, -88.0, 88.9, 1e30, 1e-30])]
    )
    weight = torch.ones(1, 1)
    found = product(*packed(tiles(Pattern.of(weight)), weight), x[:, None], activation=activation)
    right = reference(weight, x[:, None], activation=activation)
    near = 1e-7 * (x.abs() < 20)[:, None]
    assert bool(((found - right).abs() <= 4e-7 * right.abs() + near + 1e-36).all())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_nan_and_infinity_are_as_dense_arithmetic_gives_them(
    instructions: str, value: float, tokens: int
) -> None:
    weight = matrix(40, 33, 0.8)
    x = tokens_of(tokens, 33, "plain")
    x[0, 5] = value
    x[-1, 32] = value
    right = F.linear(x, weight)
    pattern = Pattern.of(weight)
    for layout in (tiles(pattern), *(make(pattern) for make in FORMS.values())):
        torch.testing.assert_close(product(*packed(layout, weight), x), right, equal_nan=True)
    for bad in (torch.tensor(value), torch.tensor(3e38)):  # among the weights; sums that overflow
        odd = torch.where(weight != 0, bad, weight)
        whole = tokens_of(tokens, 33, "plain").abs()
        found = product(*packed(tiles(pattern), odd), whole)
        torch.testing.assert_close(found, F.linear(whole, odd), equal_nan=True)


def test_a_token_has_the_same_bits_whatever_stands_beside_it_and_on_any_threads(
    instructions: str,
) -> None:
    weight = matrix(700, 500, 0.9)
    held = packed(tiles(Pattern.of(weight), Cut(panel=64)), weight)
    x = tokens_of(300, 500, "plain")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = product(*held, x)
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            assert product(*held, x).equal(whole)
            assert product(*held, x[:100]).equal(whole[:100])
    finally:
        torch.set_num_threads(before)
    for first, many in ((0, 1), (7, 3), (64, 64), (290, 10)):
        assert product(*held, x[first : first + many]).equal(whole[first : first + many])


def test_two_python_threads_give_the_bits_of_one(instructions: str) -> None:
    made = []
    for seed in range(4):
        weight = matrix(300, 400, 0.9, seed=seed)
        layout = (tiles, mask, slices)[seed % 3](Pattern.of(weight))
        made.append((*packed(layout, weight), tokens_of(90 if seed % 3 == 0 else 1, 400, "plain")))
    right = [product(*given) for given in made]

    def work(number: int) -> bool:
        torch.set_num_threads(2)
        return all(product(*made[i % 4]).equal(right[i % 4]) for i in range(number, number + 60))

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        torch.set_num_threads(before)


def test_a_forked_process_has_threads_of_its_own(python: Pythons) -> None:
    code = (
        "import os, signal, torch\n"
        "from prunus.kernels import Pattern, tiles\n"
        "from prunus.kernels.product import product\n"
        "weight = torch.eye(300)\n"
        "layout = tiles(Pattern.of(weight)); values = layout.pack(torch.ones(300))\n"
        "x = torch.arange(6000.0).view(20, 300)\n"  # too few for torch to start threads itself
        "torch.set_num_threads(2)\n"
        "assert product(layout.numbers, values, x).equal(x)\n"
        "child = os.fork()\n"
        "signal.alarm(60)\n"
        "right = product(layout.numbers, values, x).equal(x)\n"
        "if child == 0: os._exit(0 if right else 3)\n"
        "assert right and os.waitpid(child, 0)[1] == 0\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


# --- values of two bytes and of one


@pytest.mark.parametrize(("kind", "limit"), [("bfloat16", 2**-8), ("int8", 1 / 127)])
@pytest.mark.parametrize("sparsity", [0.5, 0.95])
def test_short_values_are_the_rounded_ones(
    instructions: str, kind: Any, limit: float, sparsity: float
) -> None:
    weight = matrix(130, 200, sparsity)
    pattern = Pattern.of(weight)
    for blocks in (1, 16):
        made = single(pattern, weight[weight != 0], kind=kind, blocks=blocks)
        rounded = dense(made.layout, made.values)
        far = (rounded - weight).abs().amax(1)
        assert bool((far <= limit * weight.abs().amax(1)).all())
        assert bool((far.max() > 0) & (rounded[weight == 0] == 0).all())
        x = tokens_of(1, 200, "plain")
        close(product(made.layout, made.values, x), rounded, x)
        assert made.values.element_size() == (2 if kind == "bfloat16" else 1)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_layer_with_short_values_computes_the_same_function_at_any_number_of_tokens(
    kind: Any,
) -> None:
    weight = matrix(64, 96, 0.8)
    layer = SparseLinear(weight, tokens=(1, 16, 128), kind=kind).eval()
    x = tokens_of(100, 96, "plain")
    with torch.no_grad():
        whole = layer(x)
        for many in (1, 5, 16):
            torch.testing.assert_close(layer(x[:many]), whole[:many])


# --- gradients


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("cut", [CUTS[2], CUTS[7], CUTS[16]])
def test_gradients_pass_gradcheck(instructions: str, activation: str, cut: Cut) -> None:
    weight = matrix(9, 11, 0.6).double()
    layer = SparseLinear(weight, torch.randn(9).double(), activation=activation)
    x = tokens_of(5, 11, "plain").double().requires_grad_()
    residual = torch.randn(5, 9).double().requires_grad_()

    def run(*given: Tensor) -> Tensor:
        values, bias, own, more = given
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (own, more))  # type: ignore[no-any-return]

    values = layer.values.detach().clone().requires_grad_()
    bias = torch.randn(9).double().requires_grad_()
    assert torch.autograd.gradcheck(run, (values, bias, x, residual))


@FEW
@given(rows=st.integers(1, 150), cols=st.integers(1, 150), sparsity=SPARSITY, how=HOW,
       tokens=st.integers(0, 150), cut=st.sampled_from(CUTS), seed=st.integers(0, 99))  # fmt: skip
def test_gradients_of_weights_are_those_of_dense_arithmetic_at_their_places(
    instructions: str, rows: int, cols: int, sparsity: float, how: str, tokens: int, cut: Cut,
    seed: int,
) -> None:  # fmt: skip
    weight = matrix(rows, cols, sparsity, seed=seed)
    x, dy = tokens_of(tokens, cols, how, seed=seed), tokens_of(tokens, rows, how, seed=seed + 1)
    layout = tiles(Pattern.of(weight), cut)
    every = gradient(layout.numbers, x, dy)
    found = dense(layout.numbers, every * (layout.order >= 0))  # padding is nobody's
    right = (dy.double().T @ x.double()) * (weight != 0)
    size = dy.double().abs().T @ x.double().abs() + 1
    assert bool(((found - right).abs() <= 1e-6 * size).all())


def test_a_training_step_is_that_of_the_dense_layer_under_its_mask() -> None:
    weight, bias = matrix(60, 80, 0.9), torch.randn(60)
    x, target = tokens_of(40, 80, "plain").requires_grad_(), torch.randn(40, 60)
    layer = SparseLinear(weight, bias, activation="gelu")
    whole, own = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    F.mse_loss(F.gelu(F.linear(x, whole, own)), target).backward()
    dx, x.grad = x.grad, None
    F.mse_loss(layer(x), target).backward()
    there = weight != 0
    torch.testing.assert_close(layer.values.grad, whole.grad[there])  # type: ignore[index]
    torch.testing.assert_close(layer.bias.grad, own.grad)
    torch.testing.assert_close(x.grad, dx)


def test_what_an_optimizer_changed_is_computed_in_eval_mode_too() -> None:
    layer = SparseLinear(matrix(20, 30, 0.8)).eval()
    x = tokens_of(3, 30, "plain")
    with torch.no_grad():
        layer(x)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.dense()))


def test_second_derivatives_are_refused() -> None:
    layer = SparseLinear(matrix(4, 5, 0.5))
    x = tokens_of(2, 5, "plain").requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(InputError, match="no second derivatives"):
        dx.sum().backward()


# --- in torch


def test_the_operators_pass_torchs_own_checks() -> None:
    layer = SparseLinear(matrix(20, 30, 0.8), torch.randn(20), activation="relu")
    x = tokens_of(6, 30, "plain")
    layer.pack()
    parts = (layer.layout, layer.order, layer.turned, layer.turned_order)
    given = (x.clone().requires_grad_(), layer.values.detach().clone().requires_grad_(), *parts,
             layer.bias.detach().clone().requires_grad_(), None, 20, "relu")  # fmt: skip
    torch.library.opcheck(torch.ops.prunus.sparse_linear.default, given)
    ready = (x, [layer.packed_0], [layer.kernel_0], [0], layer.bias.detach(), None, 20, "relu")
    torch.library.opcheck(torch.ops.prunus.packed_linear.default, ready)


def test_a_sparse_layer_exports_with_any_number_of_tokens() -> None:
    model = nn.Sequential(
        SparseLinear(matrix(20, 30, 0.8), activation="gelu"), nn.Linear(20, 3)
    ).eval()
    with torch.no_grad():
        model(torch.ones(1, 30))
        program = torch.export.export(
            model, (tokens_of(4, 30, "plain"),), dynamic_shapes=({0: torch.export.Dim("tokens")},)
        )
        for count in (2, 9, 130):
            x = tokens_of(count, 30, "plain")
            torch.testing.assert_close(program.module()(x), model(x))


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    layer = SparseLinear(matrix(20, 30, 0.8))
    from torch.fx.experimental.proxy_tensor import make_fx

    def step(x: Tensor) -> Tensor:
        found = layer(x)
        return torch.autograd.grad(found.sum(), x)[0]  # type: ignore[no-any-return]

    x = tokens_of(2, 30, "plain").reshape(1, 2, 30).requires_grad_()
    graph = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    assert graph(x).shape == (1, 2, 30)


def test_a_layers_state_is_loaded_into_another_of_the_same_pattern_size() -> None:
    one, two = matrix(20, 30, 0.5, seed=1), matrix(20, 30, 0.5, seed=1).flip(0)
    first, second = SparseLinear(one).eval(), SparseLinear(two).eval()
    second.load_state_dict(first.state_dict())
    x = tokens_of(3, 30, "plain")
    with torch.no_grad():
        torch.testing.assert_close(second(x), F.linear(x, one))
    torch.testing.assert_close(second(x), F.linear(x, one))
    state = first.state_dict()
    state["column"] = state["column"].flip(0)
    with pytest.raises(InputError, match="pattern of 20×30 is damaged"):
        second.load_state_dict(state)


# --- what is refused


def given_layer() -> tuple[Tensor, Tensor]:
    weight = matrix(20, 30, 0.5)
    return packed(tiles(Pattern.of(weight)), weight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(2, 31)}, r"the input is torch.float32 \(…, 30\)"),
        ({"x": torch.zeros(2, 30, dtype=torch.float16)}, "the input is torch.float32"),
        ({"x": torch.zeros(2, 30, device="meta")}, "on the CPU, not torch.float32"),
        ({"x": torch.tensor(1.0)}, "the input is"),
        ({"x": torch.zeros(2, 30).to_sparse()}, "the input is"),
        ({"bias": torch.zeros(21)}, r"the bias is torch.float32 \(20,\)"),
        ({"bias": torch.zeros(20).double()}, "the bias is"),
        ({"residual": torch.zeros(2, 21)}, r"the residual is of shape \(2, 20\)"),
        ({"residual": torch.zeros(2, 20).double()}, "the residual is torch.float32"),
        ({"activation": "gellu"}, "did you mean 'gelu'"),
        ({"values": torch.zeros(3)}, "values; 3 were given"),
        ({"values": torch.zeros(999).half()}, "flat float32 or float64"),
        ({"values": torch.zeros(999, dtype=torch.int8)}, "flat float32 or float64"),
        ({"numbers": torch.zeros(999, dtype=torch.int64)}, "flat int32 tensor"),
        ({"numbers": torch.zeros(3, dtype=torch.int32)}, "shorter than its head"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_pointer_is_used(
    change: dict[str, Any], says: str
) -> None:
    numbers, values = given_layer()
    given: dict[str, Any] = {"numbers": numbers, "values": values, "x": torch.zeros(2, 30)} | change
    with pytest.raises(InputError, match=says):
        product(given.pop("numbers"), given.pop("values"), given.pop("x"), **given)


@pytest.mark.parametrize("form", ["tiles", *FORMS])
def test_a_damaged_layout_is_refused_or_harmless(form: str) -> None:
    """Every number in turn is replaced; what passes the check is computed, and nothing crashes."""
    weight = matrix(20, 30, 0.8)
    make = {"tiles": lambda p: tiles(p, Cut(2, 1, 16, 8, 16)), **FORMS}[form]
    numbers, values = packed(make(Pattern.of(weight)), weight)
    x, refused = torch.ones(1, 30), 0
    for place, other in itertools.product(range(len(numbers)), (-1, 7, 2**31 - 1, 1 << 16)):
        wrong = numbers.clone()
        wrong[place] = other
        try:
            product(wrong, values, x)
        except InputError:
            refused += 1
    assert refused > len(numbers)
    for length in range(0, len(numbers), 7):
        with pytest.raises(InputError, match="damaged"):
            product(numbers[:length].clone(), values, x)


def test_the_instruction_set_can_be_forced_and_a_wrong_one_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    assert library().name == "portable"
    assert library().call.prunus_name() == b"portable"
    monkeypatch.setenv(VARIABLE, "avx3")
    with pytest.raises(InputError, match="there is no instruction set 'avx3'"):
        library()
    monkeypatch.delenv(VARIABLE)
    assert library().name == usable()[0]
    for name in SETS:
        if name not in built():
            with pytest.raises(InputError, match=r"not compiled here; these are: .*portable"):
                library(name)


def test_without_a_compiler_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "built", dict)
    compiled._usable.cache_clear()
    try:
        assert usable() == []
        with pytest.raises(InputError, match=r"not compiled: install GCC or Clang"):
            library()
    finally:
        compiled._usable.cache_clear()


def test_blocks_of_rows_are_recognized_and_computed_as_such(instructions: str) -> None:
    for height in (4, 16):
        there = torch.rand(64 // height, 50, generator=torch.Generator().manual_seed(1)) > 0.8
        weight = torch.randn(64, 50) * there.repeat_interleave(height, 0)
        assert blocks_of(weight) == height
        layer = SparseLinear(weight, blocks=height).eval()
        for tokens in (1, 3, 100):
            x = tokens_of(tokens, 50, "plain")
            with torch.no_grad():
                close(layer(x), weight, x)
    assert isinstance(layer.pattern, Pattern)
    assert Kernel(0, layer.layout, layer.values).least == 0


def _like_its_weights(layer: SparseLinear) -> None:
    x = torch.randn(3, layer.in_features)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.dense().T, rtol=1e-4, atol=1e-4)


def _learned(layer: SparseLinear, steps: int) -> SparseLinear:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(steps):
        layer.train()(torch.randn(5, layer.in_features)).pow(2).mean().backward()
        optimizer.step()
    return layer.eval()


def test_values_that_were_exchanged_or_copied_are_never_computed_as_they_were() -> None:
    layer = _learned(SparseLinear(torch.randn(9, 7) * (torch.rand(9, 7) > 0.5)), 3)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        for steps in (0, 1, 1, 1, 1):  # a copy counts its changes from 0: at 3 it is as new again
            _like_its_weights(_learned(copied, steps))
    layer.values.data = torch.randn_like(layer.values)
    _like_its_weights(layer)
    layer.values = torch.nn.Parameter(torch.randn_like(layer.values))
    _like_its_weights(layer)
    layer.values.data.mul_(2)  # which torch does not count
    _like_its_weights(layer.eval())


def test_a_state_of_other_weights_is_refused_before_anything_is_loaded() -> None:
    layer, other = SparseLinear(torch.eye(5)), SparseLinear(torch.ones(5, 5))
    with pytest.raises(InputError, match="has 25 values, the layer 5: make the layer"):
        layer.load_state_dict(other.state_dict())
    _like_its_weights(layer)


def test_a_layer_without_outputs_and_one_under_autocast_have_gradients() -> None:
    layer = SparseLinear(torch.ones(0, 5), torch.ones(0))
    layer(torch.ones(3, 5)).sum().backward()
    assert layer.bias is not None
    assert layer.bias.grad is not None
    layer = SparseLinear(torch.eye(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(torch.nn.Linear(5, 5)(torch.ones(2, 5)))
    found.sum().backward()
    assert found.dtype == torch.float32
    assert layer.values.grad is not None


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, of jvp
@pytest.mark.parametrize("training", [True, False])
def test_forward_mode_derivatives_are_refused_where_torch_would_call_them_zero(
    training: bool,
) -> None:
    layer, x = SparseLinear(torch.eye(5)).train(training), torch.randn(3, 5)
    with pytest.raises(InputError, match="no forward-mode derivatives"):
        torch.func.jvp(layer, (x,), (x,))
    sparse = Layouts.of(torch.eye(5) > 0, 3)
    with pytest.raises(InputError, match="no forward-mode derivatives"):
        torch.func.jvp(lambda w: sparse(x, w, None), (torch.eye(5),), (torch.eye(5),))
