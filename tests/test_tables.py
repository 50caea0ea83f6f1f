"""Embedding tables of an artifact in int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus.runtimes import BuildRequest, error, find, missing
from prunus.runtimes._tables import LEAST, round_tables
from prunus.runtimes.eager import computing

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx", reason="pip install onnx")

ROWS, WIDTH = 500, 32


class Words(nn.Module):
    """Embedded words, a linear layer; ``tied`` reads the table a second time, as a matrix."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.tied = tied
        with torch.no_grad():
            self.table.weight[3] = 0
            self.table.weight[:, 5] = 0

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        found = self.layer(self.table(words))
        return found @ self.table.weight.t() if self.tied else found


def graph(*, rows: int = ROWS, axis: int = 0, second: str | None = None) -> Any:
    """Gather from a table; a ``second`` operator reads the table, too."""
    table = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype("float32")
    table[::7] *= 1000  # one scale for all would round the others to nothing
    table[3], table[:, 5] = 0, 0
    nodes = [onnx.helper.make_node("Gather", ["table", "words"], ["found"], axis=axis)]
    outputs = [onnx.helper.make_tensor_value_info("found", 1, None)]
    if second:
        nodes.append(onnx.helper.make_node(second, ["table"], ["other"]))
        outputs.append(onnx.helper.make_tensor_value_info("other", 1, None))
    inside = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("words", 7, ["n"])], outputs,
        [onnx.numpy_helper.from_array(table, "table")],
    )  # fmt: skip
    return onnx.helper.make_model(inside, opset_imports=[onnx.helper.make_opsetid("", 18)])


def arrays(path: Path) -> Iterator[tuple[str, Any]]:
    for found in onnx.load(path).graph.initializer:
        yield found.name, onnx.numpy_helper.to_array(found)


def test_rows_have_scales_of_their_own_and_zeros_stay_zeros(tmp_path: Path) -> None:
    made = graph()
    table = onnx.numpy_helper.to_array(made.graph.initializer[0])
    onnx.save(made, tmp_path / "model.onnx")
    assert round_tables(tmp_path / "model.onnx") == 1
    found = dict(arrays(tmp_path / "model.onnx"))
    whole, scales = found["table/rows"], found["table/scales"]
    assert (whole.dtype, whole.shape, scales.shape) == (np.int8, table.shape, (ROWS, 1))
    assert not whole[3].any()
    assert not whole[:, 5].any()
    others = np.delete(np.arange(ROWS), 3)
    assert (np.abs(whole[others]).max(axis=1) == 127).all()
    assert (np.abs(whole * scales - table) <= scales / 2 * 1.0001).all()


@pytest.mark.parametrize("kept", [
    {"rows": LEAST // WIDTH}, {"axis": 1}, {"second": "Identity"}, {"second": "Transpose"},
])  # fmt: skip
def test_what_is_small_or_read_otherwise_stays(tmp_path: Path, kept: dict[str, Any]) -> None:
    onnx.save(graph(**kept), tmp_path / "model.onnx")
    before = (tmp_path / "model.onnx").read_bytes()
    assert round_tables(tmp_path / "model.onnx") == 0
    assert (tmp_path / "model.onnx").read_bytes() == before


def test_weights_in_a_file_of_their_own_stay_in_one(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(graph(), path, save_as_external_data=True, location="other.data", size_threshold=0)
    assert round_tables(path, external=True) == 1
    assert (tmp_path / "model.onnx.data").stat().st_size < 2 * ROWS * WIDTH
    assert {name for name, _ in arrays(path)} == {"table/rows", "table/scales"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("runtime", ["onnxruntime_int8", "openvino_int8"])
def test_an_artifacts_table_is_a_quarter_as_large(tmp_path: Path, runtime: str, tied: bool) -> None:
    if missing(runtime):
        pytest.skip(f"{runtime} needs {', '.join(missing(runtime))}")
    torch.manual_seed(0)
    model, words = Words(tied=tied).eval(), torch.arange(60).view(4, 15)
    order = BuildRequest(model, words, tmp_path, threads=1, calibration=[words], batch=(4,))
    made = find(runtime).build(order)
    right = computing(order.model, order.call)(order.tensors)
    assert error(made.compute(order.tensors), right, how="norm") < 0.03
    tables = [a for n, a in arrays(made.path) if a.ndim == 2 and ROWS in a.shape]
    assert all(a.dtype in (np.int8, np.uint8) for a in tables if a.shape == (ROWS, WIDTH))
    assert made.path.stat().st_size < (2 if tied else 1) * 1.6 * ROWS * WIDTH
