"""Artifacts of texts, sounds and pictures: sizes in which the examples differ stay open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus._common.nested import tensors_of
from prunus.deployment.module import DeployedModule
from prunus.runtimes import missing

RUNTIMES = ("torch_export", "onnxruntime", "openvino")


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **more: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.layers = kind(8, 6, batch_first=True, num_layers=2, **more)
        self.head = nn.Linear(12 if more.get("bidirectional") else 6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.layers(self.table(ids))[0])
        return found


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(5, 7)

    def forward(self, sound: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        return self.layer(sound, state)


class Encoder(nn.Module):
    def __init__(self, most: int = 64) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(30, 8), nn.Embedding(most, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        where = torch.arange(ids.shape[1])
        found: Tensor = self.layer(
            self.table(ids) + self.places(where), src_key_padding_mask=padding
        )
        return found


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.conv(x).relu()
        return self.head(seen.mean((2, 3))), seen


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, long: Tensor, short: Tensor) -> Tensor:
        found: Tensor = self.layer(long + torch.cat([short, short], 1))
        return found


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 30, shape, generator=torch.Generator().manual_seed(sum(shape)))


def padded(batch: int, length: int) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[:, length - 1] = True
    return ids(batch, length), mask


MODELS = {
    "lstm": (lambda: Recurrent(nn.LSTM), [ids(2, 5), ids(3, 9), ids(1, 17)]),
    "gru both ways": (
        lambda: Recurrent(nn.GRU, bidirectional=True),
        [ids(2, 5), ids(3, 9), ids(4, 2)],
    ),
    "rnn": (lambda: Recurrent(nn.RNN), [ids(2, 5), ids(2, 9), ids(5, 30)]),
    "rnn, relu, no bias, both ways": (
        lambda: Recurrent(nn.RNN, nonlinearity="relu", bias=False, bidirectional=True),
        [ids(2, 5), ids(3, 9), ids(5, 30)],
    ),
    "time first, with state": (
        TimeFirst,
        [
            (torch.randn(6, 2, 5), (torch.randn(1, 2, 7), torch.randn(1, 2, 7))),
            (torch.randn(9, 2, 5), (torch.randn(1, 2, 7), torch.randn(1, 2, 7))),
            (torch.randn(3, 2, 5), (torch.randn(1, 2, 7), torch.randn(1, 2, 7))),
        ],
    ),
    "encoder, two tensors of one length": (Encoder, [padded(2, 5), padded(3, 9), padded(1, 40)]),
    "a length that is twice that of what comes behind": (
        Twice,
        [
            (torch.randn(2, 6, 4), torch.randn(2, 3, 4)),
            (torch.randn(3, 10, 4), torch.randn(3, 5, 4)),
            (torch.randn(5, 8, 4), torch.randn(5, 4, 4)),
        ],
    ),
    "pictures": (
        Pictures,
        [torch.randn(2, 3, 8, 8), torch.randn(1, 3, 12, 9), torch.randn(3, 3, 7, 16)],
    ),
}


def built(model: nn.Module, examples: Any, runtime: str, **more: Any) -> prunus.Deployment:
    pytest.importorskip("onnxscript") if runtime not in ("torch_export", "eager") else None
    pytest.importorskip(runtime) if runtime in ("onnxruntime", "openvino") else None
    return prunus.deploy(model, example=examples, runtime=runtime, seconds=0.01, **more)


def same(artifact: nn.Module, model: nn.Module, given: Any) -> None:
    args = given if isinstance(given, tuple) else (given,)
    with torch.no_grad():
        wanted = tensors_of(model(*args))
    found = tensors_of(artifact(*args))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_lengths_in_which_two_examples_differ_are_open(
    name: str, runtime: str, tmp_path: Path
) -> None:
    make, (first, second, third) = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    made = built(model, [first, second], runtime, folder=tmp_path)
    assert made.runtime == runtime
    reopened = prunus.load(tmp_path / runtime, trusted=True)
    for artifact in (made.model, reopened):
        for given in (first, second, third):
            same(artifact, model, given)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_example_keeps_its_length(runtime: str) -> None:
    model = Recurrent(nn.GRU).eval()
    made = built(model, ids(2, 5), runtime)
    with pytest.raises(prunus.InputError, match=r"it was built for int64 \(any, 5\)"):
        made.model(ids(2, 6))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_length_of_one_goes_in_where_it_was_compared(runtime: str) -> None:
    model = Recurrent(nn.LSTM).eval()
    made = built(model, [ids(2, 5), ids(2, 6)], runtime)
    same(made.model, model, ids(3, 1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_that_never_meet_are_a_batch_of_one_together(runtime: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            if x.shape[0] != y.shape[0]:
                raise ValueError("not of one batch")
            return self.one(x), self.other(y).cumsum(1)

    model = Two().eval()
    made = built(model, (torch.randn(2, 4), torch.randn(2, 6, 5)), runtime)
    assert made.model.session.dynamic
    for count in (1, 3):
        same(made.model, model, (torch.randn(count, 4), torch.randn(count, 6, 5)))


class Branches(nn.Module):
    """Long inputs and large batches take another way."""

    def __init__(self, dimension: int, limit: int) -> None:
        super().__init__()
        self.layer, self.dimension, self.limit = nn.Linear(4, 4), dimension, limit

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x)
        return made * 2 if x.shape[self.dimension] > self.limit else made


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_length_that_takes_another_way_through_the_code_is_refused(
    runtime: str, tmp_path: Path
) -> None:
    model = Branches(1, 10).eval()
    made = built(model, [torch.randn(2, 5, 4), torch.randn(2, 6, 4)], runtime, folder=tmp_path)
    for artifact in (made.model, prunus.load(tmp_path / runtime, trusted=True)):
        same(artifact, model, torch.randn(3, 10, 4))
        with pytest.raises(prunus.InputError, match="size 1 of input 0 <= 10"):
            artifact(torch.randn(2, 11, 4))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_batch_that_takes_another_way_is_answered_in_parts_or_refused(runtime: str) -> None:
    model = Branches(0, 10).eval()
    made = built(model, torch.randn(2, 4), runtime, batch_sizes=(1, 4))
    same(made.model, model, torch.randn(7, 4))
    found = made.model(torch.randn(16, 4))  # two at a time, each on the short way
    assert found.shape == (16, 4)
    assert not made.model.session.dynamic
    assert any("for a batch of 2 only" in note for note in made.model.session.notes)


def test_an_engine_that_cannot_keep_them_open_is_not_taken() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            steps = [self.layer(x[:, i]) for i in range(int(x.shape[1]))]
            found: Tensor = torch.stack(steps, 1).cumsum(1)
            return found

    model = Fixed().eval()
    examples = [torch.randn(2, 5, 4), torch.randn(2, 7, 4)]
    made = prunus.deploy(model, example=examples, runtime=["eager", "torch_export"], seconds=0.01)
    assert made.runtime == "eager"
    (row,) = [r for r in made.rows if r.runtime == "torch_export"]
    assert row.refused is not None
    assert "it was built for float32 (any, 5, 4)" in row.refused
    same(made.model, model, examples[1])


def test_examples_of_other_kinds_are_refused_before_anything_is_built() -> None:
    model = Encoder().eval()
    with pytest.raises(prunus.InputError, match="example 1 has other arguments"):
        prunus.deploy(
            Branches(0, 10), example=[torch.randn(2, 4), torch.randn(2, 3, 4)], runtime="eager"
        )
    attention = nn.MultiheadAttention(4, 2).eval()
    call = {name: torch.randn(3, 2, 4) for name in ("query", "key", "value")}
    flags = [call | {"need_weights": True}, call | {"need_weights": False}]
    with pytest.raises(prunus.InputError, match="example 1 has other arguments"):
        prunus.deploy(attention, example=flags, runtime="eager")
    with pytest.raises(prunus.InputError, match="example 1: Encoder fails"):
        prunus.deploy(model, example=[padded(2, 5), padded(2, 65)], runtime="eager")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sizes", [["s0", "s1", "s2"]]),
        ("sizes", [["s0", "__import__('os')"]]),
        ("sizes", 3),
        ("conditions", ["s0.bit_length() >= 2"]),
        ("conditions", ["9 ** 9 ** 9 > s0"]),
    ],
)
def test_open_sizes_of_a_strange_file_are_arithmetic_or_refused(
    key: str, value: Any, tmp_path: Path
) -> None:
    built(Recurrent(nn.GRU).eval(), [ids(2, 5), ids(2, 6)], "torch_export", folder=tmp_path)
    path = tmp_path / "torch_export" / "artefact.json"
    card = json.loads(path.read_text())
    assert card["sizes"] == [[*card["sizes"][0]]]
    assert len(card["sizes"][0]) == 2
    path.write_text(json.dumps({**card, key: value}))
    with pytest.raises(prunus.InputError, match=r"artefact|artifact|arithmetic"):
        prunus.load(tmp_path / "torch_export", trusted=True)


@pytest.mark.parametrize("runtime", ["onnxruntime_int8", "onnxruntime_int4"])
def test_what_rounds_takes_the_lengths_that_calibration_shows(runtime: str) -> None:
    if lacking := missing(runtime):
        pytest.skip(f"{runtime} needs {lacking}")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    lengths = [torch.randn(2, n, 64) for n in (5, 7, 9)]
    made = prunus.deploy(model, example=lengths[0], runtime=runtime, seconds=0.01,
                         calibration=lengths, max_drop=1)  # fmt: skip
    assert isinstance(made.model, DeployedModule)
    assert made.model.session.sizes.open
    assert made.model(torch.randn(3, 11, 64)).shape == (3, 11, 64)


def test_a_run_of_texts_ends_with_an_artifact_for_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Recurrent(nn.LSTM)

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(4):
            optimizer.zero_grad()
            model(ids(4, 5 + step)).square().mean().backward()
            optimizer.step()

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model(ids(3, 11)).square().mean())

    result = prunus.prune(
        model, {"target": 0.5, "rounds": 1, "deploy": "torch_export"}, train=train,
        evaluate=evaluate, example=[ids(2, 5), ids(2, 8)], folder=tmp_path, progress=False,
    )  # fmt: skip
    assert result.deployment is not None
    assert result.deployment.runtime == "torch_export"
    same(result.deployment.model, result.model.eval(), ids(2, 21))
