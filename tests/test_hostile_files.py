"""A file from anyone is opened or refused: nothing runs, and no memory is taken for mere claims."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from fresh import Pythons
from prunus._common.files import refuse_links
from prunus.compaction.files.artifact import packed
from prunus.compaction.files.checked_read import LONGEST_HEADER
from prunus.compaction.files.unpack import unpack
from prunus.compaction.rewriting.compact_graph import CompactGraph


class Net(nn.Module):
    """Tied layers, a norm's buffers, a bool buffer, and things that a file must not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(40, 40), nn.Linear(40, 40)
        self.two.weight = self.one.weight
        self.norm, self.out = nn.LayerNorm(40), nn.Linear(40, 7)
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.library, self.kind, self.word, self.switch = math, nn.LayerNorm, "eager", False

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.two(self.one(x).relu())).relu())


class Graph(nn.Module):
    """Becomes a graph as a whole: its own code holds a size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(40, 40), nn.Linear(40, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu().view(-1, 40))


@functools.cache
def valid(kind: str = "packed") -> bytes:
    """A good file: ``packed``, ``int8`` or ``graph``."""
    torch.manual_seed(0)
    model = Graph() if kind == "graph" else Net()
    if kind == "graph":
        recipe = {"structure": "channel", "target": 0.3, "compact": "end"}
        model = prunus.prune(model, recipe, example=torch.rand(2, 40)).model
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.masked_fill_(torch.rand(parameter.shape) < 0.8, 0)
    return packed(model, sparse=True, values="int8" if kind == "int8" else None)


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, manifest and tensors of a file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["prunus"])
    return header, manifest, data[8 + length :]


def joined(header: Any, manifest: Any, body: bytes) -> bytes:
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    return raw(json.dumps({**header, "__metadata__": {"prunus": text}}).encode(), body)


def raw(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def changed(change: Callable[[Any, Any], object], kind: str = "packed") -> bytes:
    """A good file after ``change(header, manifest)``."""
    header, manifest, body = parts(valid(kind))
    change(header, manifest)
    return joined(header, manifest, body)


def with_text(old: str, new: str) -> bytes:
    """A good file with other words in the manifest's text."""
    header, manifest, body = parts(valid())
    text = json.dumps(manifest)
    assert old in text
    return joined(header, text.replace(old, new, 1), body)


def entry(**values: Any) -> Callable[[Any, Any], object]:
    return lambda header, manifest: header["out.bias"].update(values)


def claim(name: str = "one.weight", **values: Any) -> Callable[[Any, Any], object]:
    return lambda header, manifest: manifest["sparse"][name].update(values)


def manifest_with(**values: Any) -> Callable[[Any, Any], object]:
    return lambda header, manifest: manifest.update(values)


def zeros(header: Any, manifest: Any) -> None:
    """An honest entry in the header for what the manifest says of a tensor."""
    header["out.bias"]["shape"] = [10**12, 0]
    header["out.bias"]["data_offsets"] = [0, 0]


def swapped(header: Any, manifest: Any) -> None:
    """The offsets of two tensors of the same length overlap."""
    header["one.bias"]["data_offsets"] = header["two.bias"]["data_offsets"]


def chain(header: Any, manifest: Any) -> None:
    """A mask that is itself packed would grow eightfold at every link."""
    header["one.weight#mask#mask"] = header.pop("one.weight#mask")
    manifest["sparse"]["one.weight#mask"] = {"dtype": "uint8", "shape": [1600]}


def twice(header: Any, manifest: Any) -> None:
    manifest["sparse"]["out.bias"] = {"dtype": "float32", "shape": [7]}


def renamed(old: str, new: str) -> Callable[[Any, Any], object]:
    return lambda header, manifest: header.update({new: header.pop(old)})


ENTRY = b'"out":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    # the header: most of it is refused by the safetensors library
    "nothing": (lambda: b"", "header"),
    "seven bytes": (lambda: b"\0" * 7, "header"),
    "a length beyond the file": (lambda: raw(b"{}", length=10**6), "header"),
    "a giant length": (lambda: raw(b"{}", length=2**63), "claims 9223372036854775808 bytes"),
    "giant metadata": (
        lambda: changed(lambda h, m: m.update({"class": "x" * LONGEST_HEADER})), "are allowed"),
    "no JSON": (lambda: raw(b"{]"), "cannot be read"),
    "no object": (lambda: raw(b"[1]"), "cannot be read"),
    "no UTF-8": (lambda: raw(b'{"\xff\xfe":1}'), "cannot be read"),
    "deep lists": (lambda: raw(b'{"a":' + b"[" * 100_000), "cannot be read"),
    "10^12 elements in 4 bytes": (
        lambda: raw(b"{" + ENTRY.replace(b"[1]", b"[1000000000000]") + b"}", b"\0" * 4),
        "invalid shape"),
    "10^12 elements in a good file": (lambda: changed(entry(shape=[10**12])), "invalid shape"),
    "more elements than a word counts": (
        lambda: changed(entry(shape=[2**62, 2**62])), "overflow"),
    "no element in 10^12 rows": (lambda: changed(zeros), "cannot be read|does not fit"),
    "rows that no machine counts": (
        lambda: raw(b"{" + b'"a":{"dtype":"F32","shape":[9223372036854775808,0],'
                    b'"data_offsets":[0,0]},"__metadata__":{"prunus":"{}"}}'), "impossible shape"),
    "a thousand dimensions": (lambda: changed(entry(shape=[7] + [1] * 1000)), "impossible shape"),
    "negative sizes": (lambda: changed(entry(shape=[-7, -1])), "cannot be read"),
    "sizes that are no integers": (lambda: changed(entry(shape=[7.0])), "cannot be read"),
    "another type of the same size": (lambda: changed(entry(dtype="I32")), "torch.int32"),
    "a type of another size": (lambda: changed(entry(dtype="F16")), "invalid shape"),
    "an unknown type": (lambda: changed(entry(dtype="OBJECT")), "cannot be read"),
    "a type that torch has not": (
        lambda: changed(entry(dtype="F6_E2M3", shape=[7 * 32 // 6])), "cannot be read"),
    "bytes that are no bool": (
        lambda: changed(lambda h, m: (h["flags"].update(dtype="BOOL"), h["two.bias"].update(
            dtype="BOOL", shape=[160]))), "declared bool but"),
    "overlapping tensors": (lambda: changed(swapped), "invalid offset|cannot be read"),
    "an offset beyond the file": (
        lambda: changed(entry(data_offsets=[10**9, 10**9 + 28])), "cannot be read"),
    "bytes behind the last tensor": (lambda: valid() + b"more", "cannot be read"),
    "a file that ends early": (lambda: valid()[:-1], "cannot be read"),
    "a tensor named twice": (
        lambda: raw(b"{" + ENTRY + b"," + ENTRY + b',"__metadata__":{"prunus":"{}"}}', b"\0" * 4),
        "'out' appears twice"),
    "a key of the metadata twice": (
        lambda: raw(b'{"__metadata__":{"prunus":"{}","prunus":"[]"}}'), "appears twice"),
    # the manifest
    "no manifest": (lambda: raw(b"{" + ENTRY + b"}", b"\0" * 4), "did not write it"),
    "a manifest that is no JSON": (lambda: with_text('"tied"', "tied"), "cannot be read"),
    "a manifest that is a list": (lambda: joined({}, [], b""), "damaged manifest"),
    "a deep manifest": (lambda: joined({}, "[" * 10**6, b""), "cannot be read"),
    "a manifest deep inside": (
        lambda: with_text('"dropped": []', '"dropped": ' + "[" * 50_000 + "]" * 50_000),
        "cannot be read"),
    "a key of the manifest twice": (
        lambda: with_text('"dropped": []', '"dropped": [], "dropped": []'), "appears twice"),
    "a packed tensor twice": (
        lambda: with_text('"sparse": {', '"sparse": {"out.weight": {}, '), "appears twice"),
    "an unknown key": (lambda: changed(manifest_with(run="rm -r")), "damaged manifest"),
    "a missing key": (lambda: changed(lambda h, m: m.pop("tied")), "damaged manifest"),
    "a key of another kind": (lambda: changed(manifest_with(tied=[1])), "tied is"),
    "a format of tomorrow": (lambda: changed(manifest_with(format="prunus 9")), "has the format"),
    "a format that is no text": (lambda: changed(manifest_with(format=[2])), "format is"),
    "packed, and said to be dense": (
        lambda: changed(manifest_with(format="prunus compact 1")), "damaged manifest"),
    "a number of ten thousand digits": (
        lambda: with_text('"dropped": []', '"dropped": [' + "9" * 10_000 + "]"), "cannot be read"),
    "a module that leaves code": (
        lambda: with_text('"dropped": []', '"dropped": [["first", "exec"]]'), "leaves 'exec' of"),
    "a module that leaves a list": (
        lambda: with_text('"dropped": []', '"dropped": [["first", ["relu"]]]'), "of a module"),
    # packed tensors
    "a packed 10^12": (lambda: changed(claim(shape=[10**6, 10**6])), "not torch.uint8"),
    "a packed 10^30": (lambda: changed(claim(shape=[10**15, 10**15])), "has the shape"),
    "a packed tensor of negative size": (lambda: changed(claim(shape=[-40, -40])), "the shape"),
    "a packed tensor of no size": (lambda: changed(claim(shape=[0, 40])), "has the shape"),
    "a packed shape of true": (lambda: changed(claim(shape=[True, 1600])), "has the shape"),
    "a packed shape of text": (lambda: changed(claim(shape="40")), "has the shape"),
    "a packed shape without end": (lambda: changed(claim(shape=[1] * 10**5)), "has the shape"),
    "other packed elements": (lambda: changed(claim(shape=[40, 39])), "not torch.uint8"),
    "one element fewer than bits": (lambda: changed(claim(shape=[1, 1599])), "does not fit"),
    "a packed shape that is another": (
        lambda: changed(claim(shape=[80, 20])), "does not fit this Net: 'one.weight'"),
    "a packed type that is another": (lambda: changed(claim(dtype="int32")), "torch.int32, its"),
    "a packed type that is wider": (lambda: changed(claim(dtype="int64")), "torch.int64, its"),
    "a packed type that is unknown": (lambda: changed(claim(dtype="object")), "is of type"),
    "a packed type that is no text": (lambda: changed(claim(dtype=["x"])), "is of type"),
    "a packed tensor that is a list": (
        lambda: changed(lambda h, m: m["sparse"].update({"one.weight": [1]})), "is described by"),
    "a packed tensor with more to say": (lambda: changed(claim(run="x")), "is described by"),
    "fewer values than ones": (
        lambda: changed(lambda h, m: (
            h["one.weight#values"].update(shape=[h["one.weight#values"]["shape"][0] - 1],
                data_offsets=[h["one.weight#values"]["data_offsets"][0],
                              h["one.weight#values"]["data_offsets"][1] - 4]))), "invalid|read"),
    "values of two dimensions": (
        lambda: changed(lambda h, m: h["one.weight#values"]["shape"].append(1)), "ones in"),
    "a mask that is no bytes": (
        lambda: changed(lambda h, m: h["one.weight#mask"].update(dtype="I8")), "mask torch.int8"),
    "no mask": (lambda: changed(renamed("one.weight#mask", "x")), "has no mask"),
    "no values": (lambda: changed(renamed("one.weight#values", "x")), "has no values"),
    "a packed tensor that is there": (lambda: changed(twice), "is stored twice"),
    "a packed mask of a packed tensor": (lambda: changed(chain), "no mask|no values"),
    "rounded values without a scale": (
        lambda: changed(renamed("one.weight#scale", "x"), "int8"), "with no scale"),
    "a scale of another shape": (
        lambda: changed(lambda h, m: h["one.weight#scale"].update(shape=[40]), "int8"),
        "has a scale"),
    "a scale beside exact values": (
        lambda: changed(renamed("out.bias", "one.weight#scale")), "with a scale"),
    # names
    "a module outside": (lambda: changed(manifest_with(dropped=["../../x"])), "no module"),
    "a module of Python": (lambda: changed(manifest_with(dropped=["__class__"])), "no module"),
    "the model itself": (lambda: changed(manifest_with(dropped=[""])), "no module"),
    "a module that is a list": (lambda: changed(manifest_with(dropped=[["one"]])), "no module"),
    "a module twice": (lambda: changed(manifest_with(dropped=["one", "one"])), "twice"),
    "a graph without a name": (lambda: changed(manifest_with(graphs={"": None})), "no module"),
    "an empty graph": (lambda: changed(manifest_with(graphs={"one": {}})), "damaged graph"),
    "a graph outside": (lambda: changed(manifest_with(graphs={"../x": {}})), "no module"),
}  # fmt: skip

FORBIDDEN: list[tuple[Any, Any, Any]] = [
    ("one", "__class__", 3),
    ("one", "__dict__.in_features", 3),
    ("one", "forward", 3),
    ("one", "training", False),
    ("one", "in_features", "40"),
    ("one", "in_features", None),
    ("one", "in_features", [40]),
    ("one", "in_features", {"a": 1}),
    ("one", "in_features.x", 3),
    ("one", ["in_features"], 3),
    ("norm", "normalized_shape", [40, 40]),
    ("norm", "normalized_shape", [[40]]),
    ("norm", "normalized_shape", ["x"]),
    (["one"], "in_features", 3),
    ("../../one", "in_features", 3),
    ("__class__", "in_features", 3),
    ("\ud800", "in_features", 3),
    ("x" * 10**6, "in_features", 3),
    ("", "library.pi", 3.0),
    ("", "kind.__name__", "x"),
    ("", "kind._version", 7),
    ("", "word", "somebody/elses-code"),
    ("", "switch", True),
]


def opened(data: bytes, model: nn.Module | None) -> nn.Module:
    """What becomes of a file with these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        path.write_bytes(data)
        return prunus.load(path, model)


def state(model: nn.Module) -> dict[str, Any]:
    """All of a model that a file could change."""
    tensors = {k: v.clone() for k, v in model.state_dict(keep_vars=True).items()}
    words = {(n, k): v for n, m in model.named_modules() for k, v in vars(m).items() if k[0] != "_"}
    return {"tensors": tensors, "modules": dict(model.named_modules()), "words": words}


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = state(model)
    assert after["modules"] == before["modules"]
    assert after["words"] == before["words"]
    assert all(torch.equal(t, before["tensors"][k]) for k, t in after["tensors"].items())


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_and_the_model_is_as_it_was(name: str) -> None:
    make, message = HOSTILE[name]
    model = Net()
    before = state(model)
    with pytest.raises(prunus.InputError, match=message) as error:
        opened(make(), model)
    assert len(str(error.value)) < 1000
    str(error.value).encode()  # can be printed
    assert_unchanged(model, before)


@pytest.mark.parametrize(("module", "name", "after"), FORBIDDEN)
def test_no_attribute_but_a_number_becomes_another_number(
    module: Any, name: Any, after: Any
) -> None:
    model = Net()
    before = state(model)
    data = changed(manifest_with(attributes=[[module, name, after]]))
    with pytest.raises(prunus.InputError, match=r"no attribute|no module") as error:
        opened(data, model)
    assert len(str(error.value)) < 1000
    assert_unchanged(model, before)
    assert math.pi > 3.1
    assert nn.LayerNorm._version == 1


def test_the_good_files_open() -> None:
    """Without this, everything could be refused."""
    for kind in ("packed", "int8"):
        model = opened(valid(kind), Net())
        assert model.one.weight is model.two.weight
        assert model.flags.tolist() == [True, False, True]
    assert opened(valid("graph"), None)(torch.ones(3, 40)).shape == (3, 8)
    data = changed(manifest_with(attributes=[["one", "in_features", 40]]))
    assert opened(data, Net()).one.in_features == 40
    header, manifest, body = parts(valid())
    assert opened(joined(header, manifest, body), Net()).training is False


def test_modules_within_modules_that_are_replaced_are_refused() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(40, 40)), nn.Linear(40, 40))
    header, manifest, body = parts(packed(model))
    manifest["dropped"] = ["0", "0.0"]
    with pytest.raises(prunus.InputError, match=r"'0\.0' twice"):
        opened(joined(header, manifest, body), copy.deepcopy(model))


def test_a_parameter_larger_than_the_models_is_refused() -> None:
    data = packed(nn.Linear(50, 40))
    with pytest.raises(prunus.InputError, match=r"\(40, 50\); the model's is .* \(40, 40\)"):
        opened(data, nn.Linear(40, 40))


def test_a_mask_cannot_be_unpacked_from_another() -> None:
    """Ten links of a chain would make a terabyte of a kilobyte."""
    mask, none = torch.zeros(8, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8)
    stored = {"w#mask#mask": mask, "w#mask#values": none, "w#values": torch.zeros(0)}
    entries = {"w#mask": {"dtype": "uint8", "shape": [64]},
               "w": {"dtype": "float32", "shape": [512]}}  # fmt: skip
    with pytest.raises(prunus.InputError, match="has no mask"):
        unpack(stored, entries)


def test_a_one_that_belongs_to_no_element_is_refused() -> None:
    stored = {"w#mask": torch.tensor([0b1001], dtype=torch.uint8), "w#values": torch.ones(2)}
    assert unpack(stored, {"w": {"dtype": "float32", "shape": [4]}})
    with pytest.raises(prunus.InputError, match="bits beyond its 3 elements"):
        unpack(stored, {"w": {"dtype": "float32", "shape": [3]}})


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(prunus.InputError, match="it is not a file"):
        prunus.load(tmp_path / "pipe", Net())


LITTLE_MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import test_hostile_files as files
import prunus
size = [int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")][0]
files.opened(files.valid(), files.Net())
blobs = {name: make() for name, (make, _) in files.HOSTILE.items() if name != "giant metadata"}
size = [int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")][0]
resource.setrlimit(resource.RLIMIT_AS, ((size + 200_000) * 1024,) * 2)
try:
    bytearray(400 * 2**20)
    sys.exit("the limit holds nothing")
except MemoryError:
    pass
for name, blob in blobs.items():
    try:
        files.opened(blob, files.Net())
    except prunus.InputError:
        continue
    sys.exit(f"opened: {name}")
assert len(blobs) > 60
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's here")
def test_all_are_refused_within_200_megabytes(python: Pythons) -> None:
    done = python(LITTLE_MEMORY, str(Path(__file__).parent))
    assert (done.returncode, done.stderr) == (0, "")


# --- whatever the bytes


def structure(model: nn.Module) -> list[Any]:
    """What must be the same for every file that is opened: classes, names, types, ranks, ties."""
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    return [
        [(n, type(m)) for n, m in model.named_modules()],
        [(n, t.dtype, t.dim(), first.setdefault(id(t), n)) for n, t in tensors.items()],
    ]


def refused_or_equal(data: bytes, make: Callable[[], nn.Module | None]) -> None:
    model = make()
    before = None if model is None else (structure(model), state(model))
    try:
        result = opened(data, model)
    except prunus.InputError:
        if model is not None and before is not None:
            assert_unchanged(model, before[1])
        return
    if before is None:
        assert isinstance(result, CompactGraph)  # a program of its own; it has not run
        return
    assert structure(result) == before[0]
    tensors = result.state_dict()
    assert all(
        n <= m
        for name, old in dict(make().named_parameters()).items()  # type: ignore[union-attr]
        for n, m in zip(tensors[name].shape, old.shape, strict=True)
    )


MODELS: dict[str, Callable[[], nn.Module | None]] = {
    "packed": Net,
    "int8": Net,
    "graph": lambda: None,
}
thorough = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def other_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """A file with some bytes changed, cut out, put in or moved, more of them in the header."""
    found = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(draw(st.integers(1, 4))):
        end = len(found) if draw(st.booleans()) else min(header, len(found))
        place = draw(st.integers(0, max(end - 1, 0)))
        length = draw(st.sampled_from([1, 1, 1, 2, 8, 100]))
        new = draw(st.one_of(st.binary(max_size=12), st.sampled_from([b'"', b"}", b"9", b"-"])))
        same = draw(st.booleans())
        found[place : place + (len(new) if same else length)] = new
    return bytes(found)


@pytest.mark.parametrize("kind", MODELS)
@thorough
@given(draw=st.data())
def test_whatever_bytes_change_it_is_refused_or_has_the_same_structure(
    kind: str, draw: st.DataObject
) -> None:
    refused_or_equal(draw.draw(other_bytes(valid(kind))), MODELS[kind])


def paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a tree of JSON, but for its root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from paths(value, (*path, key))


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from([-1, 0, 2**31, 2**63, 10**12, 10**30, "../../x", "__class__", "one", "x",
                     "float16", "int8", "aten.add.Tensor", "operator.getitem", "placeholder",
                     [], {}, [[]], {"node": "x"}, {"tuple": []}, {"device": "cuda"}]),
    st.recursive(st.integers(), lambda t: st.lists(t, max_size=3), max_leaves=5),
)  # fmt: skip


@pytest.mark.parametrize("part", ["header", "manifest"])
@pytest.mark.parametrize("kind", MODELS)
@thorough
@given(draw=st.data())
def test_whatever_the_header_and_the_manifest_say_it_is_refused_or_has_the_same_structure(
    kind: str, part: str, draw: st.DataObject
) -> None:
    header, manifest, body = parts(valid(kind))
    tree = header if part == "header" else manifest
    header.pop("__metadata__")
    for _ in range(draw.draw(st.integers(1, 3))):
        *path, last = draw.draw(st.sampled_from(list(paths(tree)) or [()])) or [None]
        owner = tree
        for key in path:
            owner = owner[key]
        if last is None:
            break
        how = draw.draw(st.sampled_from(["replace", "remove", "repeat", "rename"]))
        if how == "replace":
            owner[last] = copy.deepcopy(
                draw.draw(ODD)
            )  # the samples are shared: later edits go into it
        elif how == "remove":
            del owner[last]
        elif isinstance(owner, list):
            owner.insert(last, copy.deepcopy(owner[last]))
        else:
            new = draw.draw(st.sampled_from(["x", "", "__class__", "../x", *map(str, owner)]))
            owner[new] = copy.deepcopy(owner[last])
    refused_or_equal(joined(header, manifest, body), MODELS[kind])


def test_a_file_that_goes_while_its_folder_is_looked_at_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "walk", lambda folder: [(str(folder), ["a"], ["b"])])
    refuse_links(tmp_path)
