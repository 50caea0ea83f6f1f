"""The runtime that skips single zeros: eager's answers, from disk too, and never slower."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus._common.torch_internals import exported_module
from prunus.deployment.build import Builder
from prunus.deployment.deploy import deploy
from prunus.deployment.module import open_artifact
from prunus.deployment.store import keep
from prunus.errors import InputError
from prunus.kernels import LACKING, usable
from prunus.runtimes import BuildRequest, _sparse_choice, _sparse_recurrent, find, sparse
from prunus.runtimes._sparse_sites import by_place, sites

if not usable():
    pytest.skip(LACKING, allow_module_level=True)


class Block(nn.Module):
    """Attention and a feed-forward part with residuals, as encoders have them."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gate = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.dropout(self.down(torch.nn.functional.gelu(self.up(self.norm(x)))))
        return torch.nn.functional.silu(self.gate(x))


def sparse_model() -> nn.Module:
    torch.manual_seed(0)
    model = Block().eval()
    return prunus.prune(model, {"target": 0.9, "allocation": "uniform"}).model.eval()


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer runs sparse, however it measures on a busy machine."""
    for kind in (_sparse_choice, _sparse_recurrent):
        monkeypatch.setattr(kind, "BETTER", float("inf"))
    monkeypatch.setattr(_sparse_choice, "SECONDS", 1e-4)


def built(model: nn.Module, example: Any, place: Path, *, threads: int = 1) -> Any:
    return Builder(example, [], threads, (1, 4), place / "scratch", lambda text: None).build(
        "sparse", "pruned", model
    )


def program_of(found: Any) -> torch.fx.GraphModule:
    cells = found.served.session.compute.__closure__
    (forward,) = [c.cell_contents for c in cells if inspect.ismethod(c.cell_contents)]
    return forward.__self__  # type: ignore[no-any-return]


@pytest.mark.usefixtures("always")
def test_an_artifact_opened_from_disk_gives_eagers_answers_at_any_batch_size(
    tmp_path: Path,
) -> None:
    model, example = sparse_model(), torch.randn(2, 7, 48)
    found = built(model, example, tmp_path)
    assert found.row.refused is None
    keep(tmp_path / "scratch/pruned/sparse", tmp_path / "kept/sparse", found.served.card)
    for served in (found.served, open_artifact(tmp_path / "kept/sparse")):
        for batch in (1, 2, 5, 40):
            x = torch.randn(batch, 7, 48)
            with torch.inference_mode():
                torch.testing.assert_close(served(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"load\(…, trusted=True\)"):
        prunus.load(tmp_path / "kept/sparse")


@pytest.mark.usefixtures("always")
def test_what_follows_a_layer_is_part_of_its_operator(tmp_path: Path) -> None:
    found = built(sparse_model(), torch.randn(2, 7, 48), tmp_path)
    module = program_of(found)
    names = {str(n.target) for n in module.graph.nodes}
    gone = ("linear", "gelu", "silu", "dropout")
    assert not names & {f"aten.{name}.default" for name in gone}
    layers = [m.prepared for m in module.modules() if hasattr(m, "prepared")]
    assert sorted(p.activation for p in layers) == ["gelu", "none", "none", "none", "silu"]
    residual = [n for n in module.graph.nodes if n.op == "call_module" and n.args[1] is not None]
    assert len(residual) == 1  # attention turns its answers before they are added
    assert not dict(module.named_parameters()).keys() & {"up.weight", "gate.weight"}


@pytest.mark.usefixtures("always")
def test_the_decisions_and_amdahls_bound_are_said(tmp_path: Path) -> None:
    notes = " ".join(built(sparse_model(), torch.randn(2, 7, 48), tmp_path).row.notes)
    assert "1 × 192×48, 9" in notes
    assert "7 tokens: sparse" in notes
    assert "28 tokens: sparse" in notes
    assert "Amdahl's bound" in notes


def test_where_nothing_is_faster_the_runtime_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sparse_choice, "BETTER", 0.0)
    row = built(sparse_model(), torch.randn(2, 7, 48), tmp_path).row
    assert "no layer is faster than dense: " in str(row.refused)
    assert "dense, " in str(row.refused)


def test_models_without_zeros_and_machines_without_kernels_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = BuildRequest(nn.Linear(4, 4), torch.ones(1, 4), tmp_path)
    assert "no linear or recurrent layer has 30% zeros, and no convolution" in str(
        sparse.refuses(order)
    )
    monkeypatch.setattr(sparse, "usable", list)
    assert sparse.refuses(order) == LACKING


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("damage", ["gone", "text", "format", "name", "form"])
def test_a_damaged_table_is_refused(tmp_path: Path, damage: str) -> None:
    built(sparse_model(), torch.randn(2, 7, 48), tmp_path)
    table = tmp_path / "scratch/pruned/sparse/model.json"
    body = json.loads(table.read_text())
    if damage == "format":
        body["format"] = "other"
    elif damage == "name":
        body["layers"]["other"] = body["layers"].popitem()[1]
    elif damage == "form":
        body["layers"].popitem()
        choice = {"tokens": 1, "form": [3, 1, 64, 8, 64], "ms": 1, "dense_ms": 2}
        body["layers"]["linear"] = [choice]
    table.write_text("{" if damage == "text" else json.dumps(body))
    if damage == "gone":
        table.unlink()
    with pytest.raises(InputError):
        find("sparse").open_(table.with_name("model.pt2"), threads=1)


@pytest.mark.usefixtures("always")
def test_a_slower_sparse_program_is_never_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    finish = sparse.finish

    def slower(module: Any) -> Any:
        compute = finish(module)

        def waiting(inputs: Any) -> Any:
            time.sleep(0.02)
            return compute(inputs)

        return waiting

    model, example = sparse_model(), torch.randn(2, 7, 48)
    monkeypatch.setattr(sparse, "finish", slower)
    made = deploy(model, example=example, runtime="sparse", seconds=0.05, folder=tmp_path)
    assert made.runtime != "sparse"
    assert any("sparse is slower than" in text for text in made.advice)
    assert {r.runtime for r in made.rows} >= {"sparse", "eager"}


class Recurrent(nn.Module):
    """Two layers with a state that is given, or begins at zero."""

    def __init__(self, kind: type[nn.RNNBase], *, bidirectional: bool, batch_first: bool) -> None:
        super().__init__()
        self.rnn = kind(10, 21, 2, bidirectional=bidirectional, batch_first=batch_first,
                        bias=not bidirectional)  # fmt: skip
        self.out = nn.Linear(21 * (2 if bidirectional else 1), 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, last = self.rnn(x)
        return self.out(y), last[0]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_give_torchs_answers_at_any_batch_size(
    kind: type[nn.RNNBase], bidirectional: bool, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = Recurrent(kind, bidirectional=bidirectional, batch_first=True)
    model = prunus.prune(model.eval(), {"target": 0.8, "allocation": "uniform"}).model.eval()
    found = built(model, torch.randn(2, 6, 10), tmp_path)
    assert found.row.refused is None
    assert any("lstm of 2×21" in n or "gru of 2×21" in n for n in found.row.notes)
    names = {str(n.target) for n in program_of(found).graph.nodes}
    assert not names & {"aten.lstm.input", "aten.gru.input"}
    for batch in (1, 3, 9):
        x = torch.randn(batch, 6, 10)
        with torch.inference_mode():
            for one, other in zip(found.served(x), model(x), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        x[0, 2, 3] = float("nan")  # nothing is skipped where a NaN would have been multiplied
        with torch.inference_mode():
            one, other = found.served(x)[0], model(x)[0]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_a_bias_that_a_file_names_is_no_bias_that_is_missing() -> None:
    """Files of torch 2.6 name the arguments that have defaults."""
    layer, x = nn.Linear(8, 4), torch.randn(2, 8)
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    module = exported_module(torch.export.export(layer, (x,), strict=False))
    [node] = [n for n in module.graph.nodes if n.op == "call_function" and len(n.args) == 3]
    node.args, node.kwargs = node.args[:2], {"bias": node.args[2]}
    by_place(module)
    module.recompile()
    assert len(node.args) == 3
    assert not node.kwargs
    [site] = sites(module)
    assert site.bias is node.args[2]
    torch.testing.assert_close(module(x), layer(x))
