"""Laws that every runtime obeys on the networks people prune; and what single runtimes promise."""

from __future__ import annotations

import copy
import inspect
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import helpers
import prunus
from fresh import Pythons
from prunus._common import packages as distributions
from prunus._common.inputs import arguments
from prunus._common.nested import leaves_of, tensors_of
from prunus._common.random_inputs import random_inputs
from prunus.compaction.verifying.verify import difference
from prunus.deployment.build import IN_PARTS, Builder, Built, size
from prunus.deployment.calibration import inputs_of
from prunus.deployment.deploy import deploy
from prunus.deployment.module import DeployedModule, open_artifact
from prunus.deployment.store import keep
from prunus.errors import InputError
from prunus.methods import catalog as folder
from prunus.runtimes import BuildRequest, _quantize, error, find, missing, torchao_int8
from prunus.runtimes._arguments import calibration_of
from prunus.runtimes._census import Census
from prunus.runtimes._silent import silent
from prunus.runtimes._sizes import Sizes
from prunus.runtimes.eager import computing
from prunus.runtimes.openvino import core

EVERY = folder.names("runtimes")
BATCHES = (1, 2, 5)


def lawful(name: str) -> bool:
    """Runs on a processor and opens without the user's code; builds within a test's time."""
    facts = folder.constant("runtimes", name, "FACTS")
    return name != "eager" and not facts.get("slow") and "cpu" in facts["devices"]


RUNTIMES = [name for name in EVERY if lawful(name)]
if not missing("torchao_int8") and torchao_int8.misfit():
    RUNTIMES.remove("torchao_int8")  # which refuses this torchao, with its reason
RUNTIMES.remove("sparse")  # which takes single weights that are zero: test_sparse_runtime.py


def needs(*names: str) -> None:
    """Skip a test whose runtimes are not installed, saying how to install them."""
    for name in names:
        if missing(name):
            pytest.skip(f"{name}: {distributions.pip_line(missing(name))}")
        if name == "torchao_int8":
            helpers.torchao()


# --- networks


class Images(nn.Module):
    """Convolutions with batch norms, one of them grouped, around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm2 = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 12, 3, stride=2)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + torch.relu(self.norm2(self.grouped(x)))
        return self.out(torch.relu(self.last(x)).mean((2, 3)))


class Recurrent(nn.Module):
    """A bidirectional recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(6, 8, bidirectional=True, batch_first=True)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0].mean(1))


class Encoder(nn.Module):
    """One layer of torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x))


def decoder() -> nn.Module:
    with silent():  # of what transformers imports
        config = helpers.transformers().LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=40, use_cache=False, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        made: nn.Module = helpers.transformers().LlamaForCausalLM(config)
    return made


def ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape) % 40


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "cnn": (Images, lambda: torch.randn(2, 3, 8, 8), "channel"),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda: torch.randn(2, 5, 6), "channel"),
    "gru": (lambda: Recurrent(nn.GRU), lambda: torch.randn(2, 5, 6), "channel"),
    "encoder": (Encoder, lambda: torch.randn(2, 6, 16), "head"),
    "decoder": (
        decoder,
        lambda: {"input_ids": ids(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.long)},
        "channel",
    ),
}
REFUSED = {  # what int8 cannot gain on, or an engine not express, and says so
    ("lstm", "openvino_int8"): "LSTMs would stay as they are",
    ("gru", "openvino_int8"): "GRUs would stay as they are",
    ("gru", "onnxruntime_int8"): "GRUs would stay as they are",
    ("cnn", "onnxruntime_int4"): "it quantizes linear layers",
    ("lstm", "onnxruntime_int4"): "LSTMs would stay as they are",
    ("gru", "onnxruntime_int4"): "GRUs would stay as they are",
    ("cnn", "torchao_int8"): "it quantizes linear layers",
    ("lstm", "torchao_int8"): "it quantizes linear layers",
    ("gru", "torchao_int8"): "it quantizes linear layers",
    ("lstm", "executorch_int8"): "LSTMs would stay as they are",
    ("gru", "executorch_int8"): "GRUs would stay as they are",
    ("decoder", "mnn"): "MNN does not convert this model: it has no IsNaN",
}  # fmt: skip


LEFT_OUT = {("decoder", "torchao_int8")}  # it exports a model of its own: the encoder's is enough


def pruned(network: str, *, small: bool) -> tuple[nn.Module, Any]:
    """With half of its units masked, or gone; batch norms as training leaves them."""
    make, example, structure = NETWORKS[network]
    torch.manual_seed(1)
    model, given = make().eval(), example()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    recipe: dict[str, Any] = {"structure": structure, "target": 0.4}
    recipe |= {"compact": "end"} if small else {}
    return prunus.prune(model, recipe, example=given).model.eval(), given


def calibration(example: Any) -> list[Any]:
    given = [random_inputs(example, batch=4, seed=s) for s in range(3)]
    return [kwargs or args for args, kwargs in given]


def builder(example: Any, inputs: list[Any], place: Path) -> Builder:
    return Builder(example, inputs, 1, (1, 4), place / "scratch", lambda text: None)


def reopened(found: Built, place: Path, kind: str) -> DeployedModule:
    """Kept in a folder of its own, what it was built from gone, and opened from there."""
    assert found.row.refused is None, found.row
    assert found.served is not None
    name = found.row.runtime
    keep(place / "scratch" / kind / name, place / "kept" / name, found.served.card)
    shutil.rmtree(place / "scratch" / kind / name)
    return open_artifact(place / "kept" / name)


# --- the law


@pytest.mark.parametrize(
    ("network", "kind"), [("cnn", "masked"), *((network, "compact") for network in NETWORKS)]
)  # to an engine a masked model is a dense one
def test_an_artifact_opened_from_disk_gives_eagers_answers_at_any_batch_size(
    network: str, kind: str, tmp_path: Path
) -> None:
    model, example = pruned(network, small=kind == "compact")
    built = builder(example, calibration(example), tmp_path)
    right = computing(model, arguments(example))
    done = []
    for name in RUNTIMES:
        if missing(name) or (network, name) in LEFT_OUT:
            continue
        found = built.build(name, kind, model)
        if (network, name) in REFUSED:
            assert REFUSED[network, name] in str(found.row.refused)
            continue
        served, runtime = reopened(found, tmp_path, kind), find(name)
        assert served.session.dynamic, found.row.notes
        for batch in BATCHES:
            inputs = tensors_of(random_inputs(example, batch=batch, seed=batch))
            far = error(served.compute(inputs), right(inputs),
                        how="max" if runtime.FACTS.exact else "norm")  # fmt: skip
            assert far <= runtime.FACTS.tolerance, (name, batch)
            assert runtime.FACTS.exact or far > 0, f"{name} does not quantize"
        done.append(name)
    assert not bool(torch.full((1,), 1e-39).eq(0)), "an engine left this thread without denormals"
    if not done:
        pytest.skip(f"none of {', '.join(RUNTIMES)} is installed")


# --- int8


def int8_of_onnx(path: Path) -> list[Tensor]:
    import onnx

    found = [onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer]
    return [torch.from_numpy(a.copy()) for a in found if a.dtype == "int8" and a.ndim > 1]


def int8_of_openvino(path: Path) -> list[Tensor]:
    import openvino

    constants = [op for op in core().read_model(path).get_ops()
                 if op.get_type_name() == "Constant"]  # fmt: skip
    arrays = [op.data for op in constants if op.get_element_type() == openvino.Type.i8]
    return [torch.from_numpy(a.copy()) for a in arrays if a.ndim > 1 and a.size > a.shape[0]]


WEIGHTS: dict[str, Callable[[Path], list[Tensor]]] = {
    "onnxruntime_int8": lambda place: int8_of_onnx(place / "model.onnx"),
    "openvino_int8": lambda place: int8_of_openvino(place / "model.onnx"),
}


@dataclass(frozen=True)
class Sparse:
    """A model with zeros, and its artifacts by runtime."""

    model: nn.Module
    folder: Path
    built: dict[str, Built]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Sparse:
    """Nine of ten weights of each layer are zero, one by one; of a channel all are.

    Most of the others are positive: zero is not in the middle of their range.
    """
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 36, 300))  # fmt: skip
    model = prunus.prune(model.eval(), {"target": 0.9, "allocation": "uniform"}).model
    with torch.no_grad():
        model[0].weight[3] = 0  # type: ignore[index, union-attr, operator]
        for layer in (model[0], model[4]):  # type: ignore[index]
            layer.weight += layer.weight.abs().max() * (layer.weight != 0) / 2  # type: ignore[union-attr, operator]
    example = torch.randn(4, 3, 8, 8)
    place = tmp_path_factory.mktemp("sparse")
    made = builder(example, [example], place)
    names = [n for n in ("onnxruntime", "openvino", *WEIGHTS) if not missing(n)]
    built = {n: made.build(n, "sparse", model) for n in names}
    return Sparse(model, place / "scratch/sparse", built)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_were_pruned_are_zero_in_the_int8_file(name: str, sparse: Sparse) -> None:
    needs(name)
    assert sparse.built[name].row.refused is None
    found = WEIGHTS[name](sparse.folder / name)
    wanted = [p for p in sparse.model.parameters() if p.dim() > 1]
    assert len(found) == len(wanted)
    for weight in wanted:
        (rounded,) = (f for f in found if f.numel() == weight.numel())
        if rounded.shape != weight.shape:
            rounded = rounded.T
        alive = int(weight.count_nonzero())
        assert alive < 0.11 * weight.numel()
        assert not bool(rounded[weight == 0].any())
        assert int(rounded.count_nonzero()) > 0.8 * alive
        assert int(rounded.abs().max()) <= 64  # seven bits


def test_an_int8_file_is_a_quarter_of_the_float_one(sparse: Sparse) -> None:
    needs(*WEIGHTS)
    dense = sum(4 * p.numel() for p in sparse.model.parameters())
    sizes = {name: found.row.bytes or 0 for name, found in sparse.built.items()}
    for name in ("onnxruntime", "openvino"):
        assert dense < sizes[name] < 1.1 * dense
        assert 0.25 * dense < sizes[f"{name}_int8"] < 0.4 * dense
        assert sizes[name] == sum(p.stat().st_size for p in (sparse.folder / name).iterdir())
    assert {p.name for p in (sparse.folder / "openvino").iterdir()} == {"model.xml", "model.bin"}


def test_int8_without_calibration_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    needs("onnxruntime_int8", "openvino_int8")
    convolutions = BuildRequest(Images(), torch.randn(2, 3, 8, 8), tmp_path)
    products = BuildRequest(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), tmp_path)
    for name in ("onnxruntime_int8", "openvino_int8"):
        assert "pass calibration" in str(find(name).refuses(convolutions))
    assert "pass calibration" in str(find("openvino_int8").refuses(products))
    assert find("onnxruntime_int8").refuses(products) is None


def test_a_graph_of_convolutions_is_asked_for_calibration_when_it_is_built(tmp_path: Path) -> None:
    needs("onnxruntime_int8")
    order = BuildRequest(nn.ReLU(), torch.randn(2, 3), tmp_path)
    assert find("onnxruntime_int8").refuses(order) is None
    census = Census(Counter(Conv=1), Counter(Conv=9))
    given = _quantize.Ready(tmp_path / "ready.onnx", ("x",), True, Sizes(), census)
    with pytest.raises(InputError, match="pass calibration, inputs like the example"):
        _quantize.static(order, given, tmp_path / "model.onnx")


def test_the_size_of_an_artifact_counts_the_files_of_its_name(tmp_path: Path) -> None:
    for name, count in (("model.xml", 3), ("model.bin", 5), ("other.bin", 7)):
        (tmp_path / name).write_bytes(bytes(count))
    assert size(tmp_path / "model.xml") == 8
    assert size(tmp_path) == 15
    assert size(None) is None


# --- what is refused


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_int8", "openvino", "openvino_int8"])
def test_half_precision_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    needs(name)
    for kind in (torch.float16, torch.bfloat16):
        model = nn.Sequential(nn.Linear(4, 4)).to(kind)
        order = BuildRequest(
            model, torch.randn(2, 4).to(kind), tmp_path, calibration=[torch.ones(1, 4)]
        )
        refusal = str(find(name).refuses(order))
        assert f"the weights are {kind}: call model.float() first" in refusal
    odd = BuildRequest(nn.Linear(4, 4), torch.randn(2, 4).bfloat16(), tmp_path)
    assert "input 0 is: pass float32" in str(find(name).refuses(odd))
    assert list(tmp_path.iterdir()) == []


def test_wrong_answers_are_found_and_the_artifact_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prunus.runtimes import torch_export

    right = torch_export.computing

    def faulty(module: Any) -> Any:
        compute = right(module)
        return lambda given: [t + 1e-3 * (len(t) == 3) for t in compute(given)]

    monkeypatch.setattr(torch_export, "computing", faulty)
    model, example = nn.Linear(4, 2), torch.randn(2, 4)
    with pytest.raises(InputError, match="torch_export: outputs differ from eager's by"):
        deploy(model, example=example, runtime="torch_export", seconds=0.01)


@pytest.mark.parametrize("name", EVERY)
def test_a_runtime_that_is_missing_comes_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(distributions, "_installed", lambda distribution: False)
    wanted = " ".join(folder.constant("runtimes", name, "FACTS")["needs"])
    with pytest.raises(
        InputError, match=f"^runtime {name} is not installed: pip install {wanted}$"
    ):
        find(name)


def test_one_extra_installs_what_all_runtimes_need() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())[
        "project"
    ]
    extras = project["optional-dependencies"]

    def installs(extra: str) -> set[str]:
        """The packages of an extra, and of those that it names: prunus[all,hf]."""
        found: set[str] = set()
        for line in extras[extra]:
            own = re.fullmatch(r"prunus\[(.+)\]", line)
            others = map(installs, own[1].split(",")) if own else [{re.split("[<>=]", line)[0]}]
            found = found.union(*others)
        return found

    every = [folder.constant("runtimes", name, "FACTS")["needs"] for name in EVERY]
    wanted = {need for needs in every for need in needs}
    edge = installs("edge")  # engines of phones: not of everyone who installs `all`
    assert not edge & installs("runtimes")
    assert installs("runtimes") | edge == wanted - {"torch"}
    assert installs("runtimes") < installs("dev")


AFTERWARDS = """
import gc, signal, subprocess, sys
import torch
from pathlib import Path
from prunus.runtimes import BuildRequest, find

signal.signal(signal.SIGCHLD, lambda *_: None)  # as a loader with processes of its own does
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
made = []
for place in map(Path, ("first", "second", "third")):
    place.mkdir()
    made.append(find(sys.argv[1]).build(BuildRequest(model, torch.ones(2, 4), place, threads=1)))
while made:
    made.pop(0).compute([torch.ones(2, 4)])
    gc.collect()
others = [bytearray(20_000) for _ in range(2_000)]  # where memory was given back
for _ in range(5):
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
"""


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_signals_are_survived_once_artifacts_are_gone(name: str, python: Pythons) -> None:
    needs(name)
    done = python(AFTERWARDS, name)
    assert done.returncode == 0, done.stderr


def test_no_runtime_is_imported_before_it_is_used(python: Pythons) -> None:
    names = [name for name in EVERY if not missing(name)]
    code = (
        "import sys, prunus, importlib\n"
        "from prunus import deploy\n"
        f"for name in {names!r}: importlib.import_module('prunus.runtimes.' + name)\n"
        "found = {'onnx', 'onnxruntime', 'onnxscript', 'openvino', 'torchao'}\n"
        "found |= {'MNN', 'executorch'}\n"
        "sys.exit(', '.join(sorted(found & set(sys.modules))) or 0)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    needs("onnxruntime")

    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    for _ in range(2):  # also where the failure is only remembered
        order = BuildRequest(Bessel(), torch.ones(2, 2), tmp_path)
        with pytest.raises(InputError, match=r"ONNX cannot express it: it has no prims\.bessel_j0"):
            find("onnxruntime").build(order)


# --- calls


class Odd(nn.Module):
    """Takes and gives what exporters stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(
        self, first: Tensor, unused: Tensor, scale: Tensor, *, flag: bool = False,
        ids: Tensor | None = None, extra: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        y = self.inner(first) * scale + (1 if flag else 0)
        return {"y": y, "same": y, "input": first, "ids": ids + 1, "z": extra[0] + y,
                "constant": torch.ones(3) * scale}  # fmt: skip


def odd_call(batch: int) -> dict[str, Any]:
    return {
        "first": torch.randn(batch, 4), "unused": torch.randn(batch, 3),
        "scale": torch.tensor(2.0), "flag": True, "ids": ids(batch), "extra": [
            torch.randn(batch, 4), None,
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DeployedModule]:
    """One model, opened from disk in every exact runtime that is installed."""
    torch.manual_seed(3)
    place = tmp_path_factory.mktemp("odd")
    built = builder(odd_call(2), [], place)
    names = [n for n in RUNTIMES if not missing(n) and find(n).FACTS.exact]
    model = Odd().eval()
    served = {n: reopened(built.build(n, "odd", model), place, "odd") for n in names}
    return {"eager": built.build("eager", "odd", model).served, **served}  # type: ignore[dict-item]


@dataclass
class Answer:
    """Registered nowhere: torch's pytrees take it for a leaf."""

    logits: Any
    state: Any = None


class Answers(nn.Module):
    """One answer, put as it is told."""

    def __init__(self, put: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.put = nn.Linear(4, 3), put

    def forward(self, x: Tensor) -> Any:
        return self.put(self.inner(x))


def everything(y: Tensor) -> Any:
    """An answer in every shape that people give one."""
    return {
        "dataclass": Answer(y, {"b": y + 1}), "tuples": (y, (None, [y + 2, (y + 3,)])),
        "object": SimpleNamespace(y=y + 4, more=[y + 5]), "none": None,
    }  # fmt: skip


@pytest.mark.parametrize("put", [everything, Answer], ids=["everything", "a dataclass"])
@pytest.mark.parametrize("name", ["eager", *RUNTIMES])
def test_answers_come_back_as_the_model_puts_them(
    name: str, put: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    needs(name)
    if put is Answer and name not in ("eager", "torch_export"):
        pytest.skip("one build is enough: all share what flattens answers")
    x = torch.randn(2, 4)
    model = Answers(put).eval()
    if (why := find(name).refuses(BuildRequest(model, x, tmp_path, calibration=[x]))) is not None:
        pytest.skip(f"{name}: {why}")
    found = builder(x, [x], tmp_path).build(name, "put", model)
    assert found.served is not None, found.row.refused
    answers, right = found.served(x), model(x)
    assert [path for path, _ in leaves_of(answers)] == [path for path, _ in leaves_of(right)]
    assert type(answers) is type(right)
    how: Any = "max" if find(name).FACTS.exact else "norm"
    assert error(tensors_of(answers), tensors_of(right), how=how) <= find(name).FACTS.tolerance


@pytest.mark.parametrize("name", ["eager", *RUNTIMES])
@pytest.mark.parametrize("put", [lambda y: None, lambda y: [], lambda y: y.sum().item()])
def test_a_model_without_answers_is_refused_and_not_taken_as_equal(
    name: str, put: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    needs(name)
    x = torch.randn(2, 4)
    found = builder(x, [x], tmp_path).build(name, "none", Answers(put).eval())
    assert found.served is None
    assert found.row.refused


def test_nothing_is_not_equal_to_nothing() -> None:
    assert error([], [], how="max") == float("inf")
    assert difference([], [])[1] is not None


def test_scalars_flags_lists_and_unused_inputs_reach_their_places(
    odd: dict[str, DeployedModule],
) -> None:
    for batch in BATCHES:
        call = odd_call(batch)
        right = list(odd["eager"](**call).values())
        for name, served in odd.items():
            assert error(tensors_of(served(**call)), right, how="max") < 1e-5, name


def test_keywords_count_by_name_and_not_by_their_order(odd: dict[str, DeployedModule]) -> None:
    call = odd_call(2)
    right = list(odd["eager"](**call).values())
    for served in odd.values():
        turned = dict(reversed(call.items()))
        assert error(tensors_of(served(**turned)), right, how="max") < 1e-5
        args = [turned.pop(name) for name in ("first", "unused", "scale")]
        assert error(tensors_of(served(*args, **turned)), right, how="max") < 1e-5


@pytest.mark.parametrize(("change", "words"), [
    ({"first": torch.ones(2, 4).double()}, r"input 0 is torch.float64 \(2, 4\); it was built for"),
    ({"first": torch.ones(2, 5)}, r"input 0 is torch.float32 \(2, 5\); .* for float32 \(any, 4\)"),
    ({"scale": torch.ones(2)}, r"input 2 is torch.float32 \(2,\); it was built for float32 \(\)"),
    ({"first": torch.ones(0, 4)}, r"input 0 is torch.float32 \(0, 4\)"),
    ({"extra": [torch.randn(3, 4), None]}, r"input 4 is .* \(3, 4\); .* one batch size for all"),
    ({"ids": None}, "'ids' is missing; it takes first, unused, scale, ids, extra"),
    ({"labels": torch.ones(2)}, "labels=<Tensor> is not possible: .* built without it"),
    ({"flag": False}, "flag=False is not possible: the artifact was built with True"),
])  # fmt: skip
def test_inputs_that_an_artifact_was_not_built_for_are_refused(
    odd: dict[str, DeployedModule], change: dict[str, Any], words: str
) -> None:
    for name in set(odd) - {"eager"}:
        with pytest.raises(InputError, match=f"{name}: {words}"):
            odd[name](**{**odd_call(2), **change})


def test_what_an_engine_says_of_inputs_is_an_error_of_ours(odd: dict[str, DeployedModule]) -> None:
    served = copy.copy(odd["eager"])
    with pytest.raises(InputError, match=r"eager fails on inputs of shapes \[\(2, 9\).*mat1"):
        served(**odd_call(2) | {"first": torch.randn(2, 9)})


class Branching(nn.Module):
    """Export fixes its batch size, which its own code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = [row + 1 for row in self.inner(x)] if len(x) < 100 else []
        return torch.stack(rows), x.new_tensor(7.0)


def test_an_artifact_of_one_batch_size_answers_others_in_parts(tmp_path: Path) -> None:
    model, example = Branching().eval(), torch.randn(2, 4)
    built = builder(example, [torch.randn(32, 4)], tmp_path)
    given = {batch: torch.randn(batch, 4) for batch in BATCHES}
    for name in [n for n in RUNTIMES if not missing(n)]:
        found = built.build(name, "parts", model)
        served = reopened(found, tmp_path, "parts")
        assert not served.card.dynamic
        assert "for a batch of 2 only: the model fixes it" in found.row.notes
        for batch in BATCHES:
            x = given[batch]
            far = error(tensors_of(served(x)), tensors_of(model(x)), how="norm")
            assert far <= max(find(name).FACTS.tolerance, 1e-5), (name, batch)


def test_answers_that_cannot_be_put_together_from_parts_are_found(tmp_path: Path) -> None:
    class Steps(nn.Module):
        """Time first, step by step: what comes hangs on what was."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen = [torch.zeros_like(x[0])]
            for step in x:
                seen.append(torch.tanh(self.layer(step) + seen[-1]))
            return torch.stack(seen[1:])

    time_first = Steps().eval()
    row = builder(torch.randn(5, 2, 4), [], tmp_path).build("torch_export", "time", time_first).row
    assert row.refused == IN_PARTS


def test_an_example_of_one_input_leaves_the_batch_size_free(tmp_path: Path) -> None:
    model, example = nn.Sequential(nn.Linear(4, 2)), torch.randn(1, 4)
    found = builder(example, [], tmp_path).build("torch_export", "one", model)
    assert found.served is not None
    assert found.served.session.dynamic
    assert found.served(torch.randn(3, 4)).shape == (3, 2)


def test_what_is_exported_is_shared_by_runtimes_and_not_by_models(tmp_path: Path) -> None:
    from prunus.runtimes._exported import exported

    first = BuildRequest(nn.Linear(4, 2), torch.randn(2, 4), tmp_path)
    second = BuildRequest(nn.Linear(4, 2), torch.randn(2, 4), tmp_path, made=first.made)
    assert exported(first) is exported(copy.copy(first))
    assert exported(first) is not exported(second)


# --- calibration


def test_calibration_is_what_the_loss_calls_the_model_with(tmp_path: Path) -> None:
    class Tagger(nn.Module):
        def forward(self, ids: Tensor, mask: Any = None, labels: Any = None) -> Tensor:
            return (ids * mask).float()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["ids"], mask=batch["mask"], labels=batch["y"]).mean()

    model = Tagger().train()
    batches = [{"ids": ids(b, 3), "mask": torch.ones(b, 3), "y": ids(b)} for b in (2, 4, 8)]
    found = inputs_of(model, loss, iter(batches), limit=2)
    assert model.training
    assert [list(f) for f in found] == [["ids", "mask", "labels"]] * 2
    assert [len(f["ids"]) for f in found] == [2, 4]
    example = {"mask": torch.ones(1, 3), "ids": ids(1, 3)}  # without labels, in another order
    given = calibration_of(BuildRequest(model, example, tmp_path, calibration=found), Sizes())
    assert torch.equal(given[1][0], batches[1]["mask"])
    assert torch.equal(given[1][1], batches[1]["ids"])


def test_calibration_of_other_sizes_is_left_out_or_refused(tmp_path: Path) -> None:
    model, example = nn.Linear(3, 1), torch.ones(1, 3)

    def given(*inputs: Any) -> list[list[Tensor]]:
        return calibration_of(BuildRequest(model, example, tmp_path, calibration=inputs), Sizes())

    assert [len(ts[0]) for ts in given(torch.ones(2, 3), torch.ones(2, 9))] == [2]
    with pytest.raises(InputError, match=r"its inputs are \(2, 9\), the example's \(1, 3\)"):
        given(torch.ones(2, 9))
    with pytest.raises(InputError, match="input 0 lacks 'input', which the example has"):
        given({"images": torch.ones(2, 3)})


def test_a_loss_that_never_calls_the_model_gives_no_calibration() -> None:
    with pytest.raises(InputError, match="does not call the model"):
        inputs_of(nn.Linear(1, 1), lambda model, batch: batch, [torch.ones(1)])


def test_a_packed_sequence_is_refused_in_words_that_name_it() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return nn.utils.rnn.pad_packed_sequence(self.r(packed)[0], batch_first=True)[0]

    with pytest.raises(InputError, match="packed sequences, which export does not follow"):
        prunus.deploy(
            Packed(), example=(torch.randn(2, 5, 4), torch.tensor([5, 3])), runtime="torch_export"
        )


def test_a_mix_of_unnamed_and_named_arguments_is_refused() -> None:
    class Star(nn.Module):
        def forward(self, *given: Tensor, scale: float = 1.0) -> Tensor:
            return given[0] * scale

    assert inputs_of(Star(), lambda m, b: m(*b), [(torch.ones(1), torch.ones(2))])
    with pytest.raises(InputError, match=r"both \*args and keywords \(scale\), which"):
        inputs_of(Star(), lambda m, b: m(b, scale=2.0), [torch.ones(1)])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.Linear])
def test_openvino_answers_the_same_once_it_knows_the_sizes(kind: type, tmp_path: Path) -> None:
    needs("openvino")
    if kind is nn.LSTM:
        helpers.needs("export of recurrent modules")
    openvino = find("openvino")
    torch.manual_seed(0)
    model = nn.LSTM(4, 6, batch_first=True) if kind is nn.LSTM else nn.Linear(4, 6)
    session = openvino.build(BuildRequest(model.eval(), torch.randn(2, 5, 4), tmp_path))
    right = computing(model, ((torch.randn(2, 5, 4),), {}))
    for batch in (1, 1, 1, 1, 3, 3, 3, 1, 7, 7, 7, 2):
        given = [torch.randn(batch, 5, 4)]
        assert error(session.compute(given), right(given), how="max") < 1e-5
    requests = inspect.getclosurevars(session.compute).nonlocals["requests"]
    assert [shapes[0][0] for shapes in requests.fixed] == [3, 1]  # the last one used, last


def test_an_artifact_called_from_several_threads_answers_each_its_own(tmp_path: Path) -> None:
    needs("openvino", "onnxruntime")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    right = computing(model, ((torch.randn(2, 4),), {}))
    inputs = [[torch.full((2, 4), float(i))] for i in range(4)]
    for name in ("openvino", "onnxruntime"):
        place = tmp_path / name
        place.mkdir()
        session = find(name).build(BuildRequest(model, torch.randn(2, 4), place))

        def off(given: list[Tensor], session: Any = session) -> float:
            answers = [session.compute(given) for _ in range(100)]
            return max(error(a, right(given), how="max") for a in answers)

        with ThreadPoolExecutor(len(inputs)) as pool:
            assert max(pool.map(off, inputs)) < 1e-5, name


class Residual(nn.Module):
    """A convolution and what goes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(self.pool((x + self.second(x)).relu()).flatten(1))


def test_a_channels_last_network_is_pooled_without_looking_numbers_up(tmp_path: Path) -> None:
    needs("openvino_int8")
    import onnx

    torch.manual_seed(0)
    model: Any = Residual().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(16, 3, 12, 12)
    session = find("openvino_int8").build(
        BuildRequest(model, images, tmp_path, calibration=[images])
    )
    assert session.path is not None
    assert "Gather" not in {n.op_type for n in onnx.load(session.path).graph.node}
    assert error(session.compute([images]), [model(images)], how="norm") < 0.05


def test_linear_layers_without_biases_stay_right_in_int8_once_sizes_are_known(
    tmp_path: Path,
) -> None:
    needs("openvino_int8")
    torch.manual_seed(0)
    layers = nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 3, bias=False)
    model = nn.Sequential(*layers).eval()
    calibration = [torch.randn(64, 32)]
    order = BuildRequest(model, torch.randn(1, 32), tmp_path, calibration=calibration)
    session = find("openvino_int8").build(order)
    for rows in (1, 8):
        for _ in range(4):
            inputs = torch.randn(rows, 32)
            assert error(session.compute([inputs]), [model(inputs)], how="norm") < 0.1


@dataclass(frozen=True)
class InOpenvino:
    """A layer there, and what keeps its programs."""

    model: nn.Module
    compute: Callable[[list[Tensor]], list[Tensor]]
    requests: Any

    def is_right(self, rows: int) -> bool:
        """About fresh inputs."""
        given = torch.randn(rows, 4)
        return error(self.compute([given]), [self.model(given)], how="max") < 1e-5


@pytest.fixture
def layer(tmp_path: Path) -> InOpenvino:
    needs("openvino")
    model = nn.Linear(4, 6).eval()
    session = find("openvino").build(BuildRequest(model, torch.randn(2, 4), tmp_path))
    requests = inspect.getclosurevars(session.compute).nonlocals["requests"]
    return InOpenvino(model, session.compute, requests)


def test_a_program_for_known_sizes_that_answers_otherwise_is_not_taken(
    layer: InOpenvino, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = layer.requests
    asked = requests._asked

    def wrong(request: Any, arrays: Any) -> list[Tensor]:
        return [a if request is requests.any else a + 1 for a in asked(request, arrays)]

    monkeypatch.setattr(requests, "_asked", wrong)
    assert all(layer.is_right(2) for _ in range(find("openvino").OFTEN + 1))
    assert not requests.fixed
    assert requests.refused == {((2, 4),)}


def test_a_program_that_fails_once_made_leaves_the_answers_to_the_first(
    layer: InOpenvino, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def set_input_tensor(self, *given: Any) -> None:
            raise RuntimeError("no kernel")

    monkeypatch.setattr(layer.requests, "_compiled", lambda model: Failing())
    assert all(layer.is_right(2) for _ in range(find("openvino").OFTEN + 1))
    assert layer.requests.refused


def test_sizes_that_come_in_a_row_take_the_place_of_those_not_used(layer: InOpenvino) -> None:
    rows = (5, 5, 5, 7, 7, 7, *[9] * find("openvino").LONG, 5)
    assert all(map(layer.is_right, rows))
    assert [shapes[0][0] for shapes in layer.requests.fixed] == [7, 9]
    with pytest.raises(ValueError, match="shorter"):
        layer.compute([])


def test_answers_that_are_no_numbers_say_nothing_of_a_program(layer: InOpenvino) -> None:
    for _ in range(find("openvino").OFTEN):
        layer.compute([torch.full((5, 4), torch.nan)])
    assert not layer.requests.fixed
    assert layer.is_right(5)
    assert [shapes[0][0] for shapes in layer.requests.fixed] == [5]


def test_what_openvino_cannot_convert_is_named(tmp_path: Path) -> None:
    needs("openvino")
    model = nn.EmbeddingBag(100, 8, mode="sum").eval()
    with pytest.raises(InputError, match=r"OpenVINO cannot convert \w+"):
        find("openvino").build(BuildRequest(model, torch.randint(0, 100, (1, 9)), tmp_path))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_lazy_negations_are_inputs_like_others(name: str, tmp_path: Path) -> None:
    needs(name)
    model, inputs = nn.Linear(4, 3).eval(), torch.randn(2, 4)
    session = find(name).build(BuildRequest(model, inputs, tmp_path))
    assert error(session.compute([torch._neg_view(inputs)]), [model(-inputs)], how="max") < 1e-5


def test_three_dimensions_are_pooled_to_one_number_or_by_whole_windows(tmp_path: Path) -> None:
    needs("onnxruntime")
    scan = torch.randn(2, 3, 6, 6, 6)
    for sizes in (1, (2, 1, 3)):
        model = nn.AdaptiveAvgPool3d(sizes).eval()
        session = find("onnxruntime").build(BuildRequest(model, scan, tmp_path))
        assert error(session.compute([scan]), [model(scan)], how="max") < 1e-5
    with pytest.raises(InputError, match="adaptive_avg_pool3d"):
        find("onnxruntime").build(BuildRequest(nn.AdaptiveAvgPool3d(4).eval(), scan, tmp_path))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch_export"])
def test_an_artifact_does_not_tell_where_its_makers_files_lie(name: str, tmp_path: Path) -> None:
    needs(name)
    model = Residual().eval()
    path = find(name).build(BuildRequest(model, torch.randn(2, 3, 12, 12), tmp_path)).path
    assert path is not None
    files = [path]
    if zipfile.is_zipfile(path):
        zipfile.ZipFile(path).extractall(tmp_path / "inside")
        files = [p for p in (tmp_path / "inside").rglob("*") if p.is_file()]
    assert files
    for file in files:
        assert Path(__file__).name.encode() not in file.read_bytes(), file
