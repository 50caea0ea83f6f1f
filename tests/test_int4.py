"""Weights of four bits: what is rounded how far, what stays zero, and how large the file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.runtimes import BuildRequest, error, find, missing
from prunus.runtimes.eager import computing
from test_runtimes import NETWORKS

if missing("onnxruntime_int4"):
    pytest.skip(f"needs {missing('onnxruntime_int4')}", allow_module_level=True)

import onnx

BLOCK = 32


def built(model: nn.Module, example: Any, place: Path) -> Any:
    order = BuildRequest(model.eval(), example, place)
    assert find("onnxruntime_int4").refuses(order) is None
    return find("onnxruntime_int4").build(order)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_rounded_by_blocks_and_zeros_stay_zeros(
    rows: int, bias: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 24, bias=bias)
    with torch.no_grad():
        layer.weight[torch.rand(24, 96) < 0.6] = 0
        layer.weight[3, 32:64] = 0
    given = torch.eye(96)  # shows the weights one by one
    given = given if rows == 1 else given[None]
    made = built(layer, given, tmp_path)
    (answer,) = made.compute([given])
    answer = answer.reshape(96, 24) - (layer.bias.detach() if bias else 0)
    found, weight = answer.T, layer.weight.detach()
    assert float(found[weight == 0].abs().max()) < 1e-6
    blocks = weight.reshape(24, 3, BLOCK)
    step = blocks.abs().amax(-1, keepdim=True) / 8  # the largest one is −8 of them, or 8 as 7
    far = (found.reshape(24, 3, BLOCK) - blocks).abs()
    assert bool((far <= 1.01 * step + 1e-6).all())
    assert float((far <= 0.51 * step + 1e-6).float().mean()) > 0.95
    assert len(torch.unique((found.reshape(24, 3, BLOCK)[0, 0] * 1e4).round())) <= 16


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_answers_are_near(network: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, example, _ = NETWORKS[network]
    model, given = make().eval(), example()
    order = BuildRequest(model, given, tmp_path)
    made = built(model, given, tmp_path)
    right = computing(model, order.call)(order.tensors)
    assert error(made.compute(order.tensors), right, how="norm") < 0.3


class Deep(nn.Module):
    """Linear layers of two and of three dimensions, one of which reads a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 128)
        self.inner = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))
        self.out = nn.Linear(128, 128)

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        return self.out((x + self.inner(x)).mean(1))


def test_a_file_is_a_seventh_of_the_weights_and_holds_no_product_of_floats(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, words = Deep().eval(), torch.arange(60).view(4, 15)
    made = built(model, words, tmp_path)
    graph = onnx.load(made.path).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulNBits") == 3
    assert not {"MatMul", "Gemm"} & set(kinds)
    linear = sum(p.numel() for n, p in model.named_parameters() if "table" not in n)
    table = 500 * 128
    assert made.path.stat().st_size < 0.65 * linear + 1.2 * table + 8000
    right = computing(model, ((words,), {}))([words])
    assert error(made.compute([words]), right, how="norm") < 0.2


def test_convolutions_are_refused(tmp_path: Path) -> None:
    make, example, _ = NETWORKS["cnn"]
    why = find("onnxruntime_int4").refuses(BuildRequest(make(), example(), tmp_path))
    assert why is not None
    assert "linear layers, which hold" in why
