"""The operators of the sparse kernels under torch.compile and torch.export, both ways."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.kernels import LACKING, SparseConv2d, SparseLinear, usable

if not usable():
    pytest.skip(LACKING, allow_module_level=True)

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor compiles with g++, which is not installed"
)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What was compiled for a test, and the limit on how often, is that test's own."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def matrix(rows: int, cols: int) -> Tensor:
    make = torch.Generator().manual_seed(rows)
    return torch.randn(rows, cols, generator=make) * (torch.rand(rows, cols, generator=make) > 0.8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        SparseLinear(matrix(20, 30), torch.randn(20), activation="gelu"),
        SparseLinear(matrix(7, 20)),
        nn.Linear(7, 3),
    )


def gradients(model: Any, given: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the square of the answers, by the input and by all parameters."""
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(model(x).square().sum(), [x, *given.parameters()]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_training_step_compiles_in_one_graph_and_has_the_same_gradients(dynamic: bool) -> None:
    model = network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for tokens in (6, 9) if dynamic else (6,):
        x = torch.randn(tokens, 30)
        for found, right in zip(
            gradients(compiled, model, x), gradients(model, model, x), strict=True
        ):
            torch.testing.assert_close(found, right)


@pytest.mark.zoo  # half a minute of a compiler: make test-zoo
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_inductor_computes_what_stands_around_the_operator() -> None:
    model = network()
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(6, 30)
    for found, right in zip(gradients(compiled, model, x), gradients(model, model, x), strict=True):
        torch.testing.assert_close(found, right)


def test_an_exported_layer_still_trains() -> None:
    model = network()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(4, 30),), dynamic_shapes=({0: batch},))
    names = {str(node.target) for node in program.graph.nodes}
    assert "prunus.sparse_linear.default" in names
    trained = program.module()
    x = torch.randn(9, 30)
    for found, right in zip(
        gradients(trained, trained, x), gradients(model, model, x), strict=True
    ):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("packs", [False, True])
def test_inference_that_is_compiled_before_any_call_has_the_weights(packs: bool) -> None:
    """In eval mode they lie packed; a layer that was never in eval mode computes by its values."""
    layer = SparseLinear(matrix(20, 30), activation="silu")
    layer.train(not packs)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 30)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), F.silu(F.linear(x, layer.dense())))


def test_what_was_trained_is_compiled_after_eval() -> None:
    layer = SparseLinear(matrix(20, 30)).eval()
    with torch.no_grad():
        layer.train().values.mul_(2)
    layer.eval()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 30)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), F.linear(x, layer.dense()))


def test_a_sparse_convolution_compiles_for_inference() -> None:
    weight = matrix(5, 36).view(5, 4, 3, 3)
    layer = SparseConv2d(weight, padding=(1, 1), activation="relu")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (2, 3):
            x = torch.randn(batch, 4, 7, 6)
            torch.testing.assert_close(compiled(x), F.relu(F.conv2d(x, weight, None, 1, 1)))
