"""A graph written as plain values and read again is the same graph; a hostile one is refused."""

from __future__ import annotations

import collections
import copy
import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from fresh import Pythons
from helpers import needs, transformers
from prunus.compaction.files import graph_json as graph_file
from prunus.compaction.files.graph_json import from_plain, to_plain
from prunus.errors import InputError
from prunus.graph.recorder import record

aten = torch.ops.aten
Document = dict[str, Any]


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).to(torch.float64).mean((2, 3)).float())


class Tied(nn.Module):
    """Tied weights, buffers of both kinds, a plain tensor, a constant, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.second
        self.unused = nn.Linear(2, 2)
        self.first.bias.requires_grad_(False)
        self.register_buffer("shift", torch.randn(4))
        self.register_buffer("passing", torch.arange(4), persistent=False)
        self.plain = torch.randn(4, 4).t()

    def forward(self, x: Tensor, *, mask: Tensor | None = None, n: int = 2) -> Any:
        y = self.second(self.first(x)) + self.again(x) * self.shift + self.passing * n
        y = y @ self.plain + torch.tensor([0.5, 1.0, -1.0, 2.0])
        if mask is not None:
            y = y.masked_fill((mask == 0) & (mask < 1), float("-inf"))
        return {"y": y, 3: [(y.max(-1), None), y[:, 1:3], n]}


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 1:3] = x[:, :2] * 3
        self.count.add_(1)
        return y + self.count


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def bert() -> nn.Module:
    config = transformers().BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    return transformers().BertForMaskedLM(config)  # the decoder is tied to the embeddings


# A model, positional and keyword arguments.
CASES: dict[str, Callable[[], Any]] = {
    "cnn": lambda: (Cnn(), (torch.randn(2, 3, 8, 8),), {}),
    "lstm": lambda: (nn.LSTM(5, 6, 2, bidirectional=True), (torch.randn(4, 3, 5),), {}),
    "transformer": lambda: (encoder(), (torch.randn(2, 7, 16),), {}),
    "bert": lambda: (
        bert(),
        (),
        {
            "input_ids": torch.randint(0, 50, (2, 9)),
            "attention_mask": (torch.arange(9) < torch.tensor([[9], [5]])).long(),
        },
    ),
    "tied": lambda: (Tied(), (torch.randn(2, 4),), {"mask": torch.eye(2, 4)}),
    "tied, no keywords": lambda: (Tied(), (torch.randn(2, 4),), {}),
    "in place": lambda: (InPlace(), (torch.randn(3, 4),), {}),
}


def exported(model: nn.Module, args: Any, kwargs: Any, **more: Any) -> fx.GraphModule:
    if any(isinstance(m, nn.RNNBase) for m in model.modules()):
        needs("export of recurrent modules")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model.eval(), args, kwargs, strict=False, **more)
        module = program.module()
    assert isinstance(module, fx.GraphModule)
    return module


def recorded(model: nn.Module, args: Any, kwargs: Any) -> fx.GraphModule:
    with torch.no_grad():
        return record(model.eval(), args, kwargs)


def through_text(module: fx.GraphModule) -> fx.GraphModule:
    document, tensors = to_plain(module)
    return from_plain(json.loads(json.dumps(document, allow_nan=False)), tensors)


def assert_equal(one: Any, other: Any) -> None:
    (ones, structure), (others, same) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    assert structure == same
    for a, b in zip(ones, others, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def operators(module: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in module.graph.nodes if n.op == "call_function"]


# --- what is written and read again


@pytest.mark.parametrize("traced", [exported, recorded])
@pytest.mark.parametrize("name", CASES)
def test_a_graph_read_again_gives_the_same_bits(name: str, traced: Any) -> None:
    model, args, kwargs = CASES[name]()
    module = traced(model, args, kwargs)
    again = through_text(module)
    assert not again.training
    with torch.no_grad():
        for _ in range(2):
            before = copy.deepcopy(dict(module.state_dict()))
            one = pytree.tree_map_only(Tensor, torch.clone, module(*args, **kwargs))
            module.load_state_dict(before)
            other = again(*args, **kwargs)
            assert_equal(one, other)
            args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.flip(0), (args, kwargs))
            again.load_state_dict(before)


@pytest.mark.parametrize("traced", [exported, recorded])
@pytest.mark.parametrize("name", CASES)
def test_the_document_is_plain_and_the_same_at_every_writing(name: str, traced: Any) -> None:
    module = traced(*CASES[name]())
    document, tensors = to_plain(module)
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text) == document
    again, same = to_plain(module)
    assert json.dumps(again) == text
    once_more, others = to_plain(from_plain(document, tensors))
    assert once_more == document
    assert list(others) == list(tensors) == list(same)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name])


@pytest.mark.parametrize("name", CASES)
def test_names_ties_and_flags_are_those_of_the_model(name: str) -> None:
    model, args, kwargs = CASES[name]()
    again = through_text(recorded(model, args, kwargs))
    state = {n: t for n, t in again.state_dict().items() if not n.startswith("_constant")}
    assert list(state) == list(model.state_dict())
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]
    for key, parameter in model.named_parameters(remove_duplicate=False):
        found = again.get_parameter(key)
        assert torch.equal(found, parameter)
        assert found.requires_grad == parameter.requires_grad
    ties = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    same = {(a, b) for a in ties for b in ties if model.get_parameter(a) is model.get_parameter(b)}
    assert same == {
        (a, b) for a in ties for b in ties if again.get_parameter(a) is again.get_parameter(b)
    }


def test_a_tied_tensor_is_written_once() -> None:
    document, tensors = to_plain(recorded(Tied(), (torch.randn(2, 4),), {}))
    assert "second.weight" not in tensors
    assert document["tensors"]["second.weight"] == {"same_as": "first.weight"}
    assert document["tensors"]["again.weight"] == {"same_as": "first.weight"}
    assert document["tensors"]["passing"]["persistent"] is False
    assert document["tensors"]["first.bias"]["requires_grad"] is False


def test_tensors_share_memory_and_are_detached() -> None:
    model = nn.Linear(2, 3)
    module = recorded(model, (torch.ones(1, 2),), {})
    document, tensors = to_plain(module)
    assert tensors["weight"].data_ptr() == model.weight.data_ptr()
    assert not tensors["weight"].requires_grad
    assert from_plain(document, tensors).get_parameter("weight").data_ptr() == (
        model.weight.data_ptr()
    )


def test_a_graph_read_again_can_be_trained() -> None:
    model, args, kwargs = CASES["cnn"]()
    again = through_text(recorded(model, args, kwargs))
    again(*args).sum().backward()
    gradients = [p.grad.clone() for p in again.parameters() if p.grad is not None]
    again.zero_grad()
    model(*args).sum().backward()
    assert_equal(gradients, [p.grad for p in model.parameters()])


def test_assertions_and_guards_are_left_out() -> None:
    needs("guards in exported programs")
    module = exported(*CASES["cnn"]())
    assert any("_assert" in name for name in operators(module))
    assert any(n.op == "call_module" for n in module.graph.nodes)
    document, _ = to_plain(module)
    assert not any("assert" in n["target"] or "guard" in n["target"] for n in document["nodes"])


def test_open_sizes_stay_open() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = x.shape[0] * 2
            return x.reshape(rows, x.shape[1] // 2) + x.shape[0]

    shapes = {"x": {0: torch.export.Dim.AUTO}}
    again = through_text(exported(Flat(), (torch.ones(3, 4),), {}, dynamic_shapes=shapes))
    assert {"operator.mul", "aten.sym_size.int"} <= {
        n["target"] for n in to_plain(again)[0]["nodes"]
    }
    x = torch.randn(5, 4)
    assert torch.equal(again(x), Flat()(x))


def test_every_kind_of_value_comes_back() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    values = [
        None, True, 1, -(2**70), 0.1, -0.0, math.inf, -math.inf, 2 - 3j, "a 'quoted' \"text\"\n",
        [1, [x]], (1, (x, None)), slice(None, x, 2), {"a": (x,), 3: [1]},
        torch.float16, torch.bool, torch.strided, torch.sparse_coo, torch.channels_last,
        torch.device("cpu"), torch.device("cuda", 1), torch.Size([2, 3]),
    ]  # fmt: skip
    graph.output((values, math.nan))
    module = fx.GraphModule(nn.Module(), graph)
    again = through_text(module)
    node = again.graph.output_node()
    found, nan = node.args[0]  # type: ignore[misc, union-attr]
    assert math.isnan(nan)  # type: ignore[arg-type]
    expected = fx.node.map_arg(values, lambda n: "the node")
    assert repr(fx.node.map_arg(found, lambda n: "the node")) == repr(expected)
    assert repr(again(7)[0]) == repr(module(7)[0])


@dataclass
class Pair:
    left: Tensor
    right: Tensor | None = None


class Named(NamedTuple):
    a: Tensor
    b: list[Tensor]


torch.export.register_dataclass(Pair)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda t: t, lambda t: t),
        (lambda t: (t,), lambda t: (t,)),
        (lambda t: [t, (t, None)], lambda t: [t, (t, None)]),
        (lambda t: {"a": t, 1: [t], "n": {}}, lambda t: {"a": t, 1: [t], "n": {}}),
        (lambda t: collections.OrderedDict(a=t), lambda t: {"a": t}),
        (lambda t: collections.defaultdict(list, a=t), lambda t: {"a": t}),
        (lambda t: collections.deque([t, t]), lambda t: [t, t]),
        (lambda t: Pair(t), lambda t: {"left": t}),
        (lambda t: t.reshape(1, 1).max(0), lambda t: t.reshape(1, 1).max(0)),
    ],
)
def test_the_structure_of_the_output_survives(make: Any, expected: Any) -> None:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return make(x + 1)

    found = through_text(recorded(Returns(), (torch.zeros(1),), {}))(torch.zeros(1))
    assert_equal(found, expected(torch.ones(1)))


def test_a_named_tuple_keeps_its_fields() -> None:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Named(x, [x, x + 1])

    found = through_text(recorded(Returns(), (torch.zeros(1),), {}))(torch.zeros(1))
    assert found._fields == ("a", "b")
    assert found.b[1] == 1


def test_inputs_are_given_as_to_the_model() -> None:
    class Takes(nn.Module):
        def forward(self, pair: Any, *rest: Tensor, scale: Any = None, **more: Tensor) -> Tensor:
            return pair["a"] * scale[0] + sum(rest) + more["bias"]

    one, two = torch.tensor(1.0), torch.tensor(2.0)
    args, kwargs = ({"a": one}, one * 1, two), {"scale": [two * 1], "bias": one * 1}
    again = through_text(recorded(Takes(), args, kwargs))
    assert again(*args, **kwargs) == 6
    assert again({"a": two}, one, two, bias=two, scale=[two]) == 9


def test_a_model_output_is_one_where_its_class_is_in_memory_and_a_dict_elsewhere(
    python: Pythons,
) -> None:
    model, args, kwargs = CASES["bert"]()
    document, tensors = to_plain(recorded(model, args, kwargs))
    expected = model(**kwargs)
    found = from_plain(document, tensors)(**kwargs)
    assert type(found) is type(expected)
    assert torch.equal(found.logits, expected.logits)
    torch.save({**tensors, **{f"in {k}": v for k, v in kwargs.items()}}, "tensors.pt")
    with open("document.json", "w") as file:
        json.dump(document, file)
    code = (
        "import json, sys, torch; from prunus.compaction.files.graph_json import from_plain; "
        "tensors = torch.load('tensors.pt'); "
        "inputs = {k[3:]: tensors.pop(k) for k in list(tensors) if k[:3] == 'in '}; "
        "module = from_plain(json.load(open('document.json')), tensors); "
        "assert 'transformers' not in sys.modules; "
        "out = module(**inputs); assert type(out) is dict, type(out); "
        "torch.save(out['logits'], 'logits.pt')"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load("logits.pt"), expected.logits)


# --- what is refused at writing


def test_an_operator_of_another_library_is_refused_at_writing_by_its_node() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.relu, (graph.placeholder("x"),)))
    with pytest.raises(InputError, match=r"node 'relu'.*ATen's operators"):
        to_plain(fx.GraphModule(nn.Module(), graph))


def test_submodules_are_refused_at_writing() -> None:
    with pytest.raises(InputError, match=r"node '_0'.*call_module.*inline"):
        to_plain(fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))))


def test_a_value_of_another_type_is_refused_at_writing() -> None:
    graph = fx.Graph()
    graph.output((graph.placeholder("x"), range(3)))
    with pytest.raises(InputError, match=r"node 'output', argument 0: range\(0, 3\) \(range\)"):
        to_plain(fx.GraphModule(nn.Module(), graph))


# --- what is refused at reading


@pytest.fixture
def written() -> tuple[Document, dict[str, Tensor]]:
    document, tensors = to_plain(recorded(Tied(), (torch.randn(2, 4),), {"mask": torch.eye(2, 4)}))
    return json.loads(json.dumps(document)), tensors


def call_of(document: Document, target: str) -> dict[str, Any]:
    return next(n for n in document["nodes"] if n["target"] == target)


def first(document: Document) -> dict[str, Any]:
    return call_of(document, "aten.linear.default")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def put(**changes: Any) -> Callable[[Document], None]:
    return lambda document: first(document).update(changes)


def argument(value: Any) -> Callable[[Document], None]:
    return lambda document: first(document)["args"].__setitem__(1, value)


def rename(old: str, new: str) -> Callable[[Document], None]:
    """A tensor of another name, everywhere."""

    def change(document: Document) -> None:
        tensors = document["tensors"]
        document["tensors"] = {new if k == old else k: v for k, v in tensors.items()}
        for node in document["nodes"]:
            if node["target"] == old:
                node["target"] = new

    return change


def described(name: str, **changes: Any) -> Callable[[Document], None]:
    return lambda document: document["tensors"][name].update(changes)


def called(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document["call"].update(changes)


HOSTILE: dict[str, tuple[Callable[[Document], Any], str]] = {
    "another format": (lambda d: d.update(format="prunus graph 9"), "format: prunus graph 9"),
    "a key too many": (lambda d: d.update(code="1"), "document: .*'code'"),
    "no document": (lambda d: d.clear(), r"document: \[\]"),
    "an unknown operator": (put(target="aten.nope.default"), "node .*'aten.nope.default'"),
    "an unknown overload": (put(target="aten.linear.nope"), "aten.linear.nope"),
    "a function of Python": (put(target="os.system"), "os.system"),
    "a builtin": (put(target="operator.attrgetter"), "operator.attrgetter"),
    "an attribute of operators": (put(target="aten.linear.__class__"), "aten.linear.__class__"),
    "an attribute of torch.ops": (put(target="aten.__dict__.default"), "aten.__dict__.default"),
    "another namespace": (put(target="prim.device.default"), "prim.device.default"),
    "a higher order operator": (put(target="higher_order.cond"), "higher_order.cond"),
    "an operator that opens files": (put(target="aten.from_file.default"), "aten.from_file"),
    "an operator with a newline": (put(target="aten.linear.default\n"), "aten.linear.default"),
    "a target that is no text": (put(target=["aten"]), "a list cannot be used"),
    "an unknown op": (put(op="call_method"), "call_method"),
    "an op that is no text": (put(op=["placeholder"]), "placeholder"),
    "a node that does not exist": (argument({"node": "nope"}), "{'node': 'nope'}"),
    "a later node": (argument({"node": "output"}), "{'node': 'output'}"),
    "a node that reads itself": (
        lambda d: first(d)["args"].__setitem__(0, {"node": first(d)["name"]}),
        "'linear_default'",
    ),
    "two nodes of one name": (put(name="x"), "node .*'x'"),
    "a node name with code": (put(name="x; import os"), "'x; import os'"),
    "a dunder for a node": (put(name="__class__"), "'__class__'"),
    "a keyword for a node": (put(name="lambda"), "'lambda'"),
    "an argument name with code": (put(kwargs={"a=1, b": 2}), r"\['a=1, b'\]"),
    "an argument given twice": (put(kwargs={"input": 2}), r"\['input'\]"),
    "too many arguments": (put(args=[1, 2, 3, 4]), "4 arguments"),
    "arguments that are no list": (put(args="abc"), "a str"),
    "a value of two kinds": (argument({"node": "x", "tuple": []}), "allowed: nodes before"),
    "a value of unknown kind": (argument({"object": "x"}), "{'object': 'x'}"),
    "an unknown dtype": (argument({"dtype": "float33"}), "float33"),
    "an attribute for a dtype": (argument({"dtype": "ops"}), "{'dtype': 'ops'}"),
    "an unknown device": (argument({"device": "toaster"}), "toaster"),
    "no number": (argument({"float": "12; x"}), "12; x"),
    "a key that cannot be hashed": (argument({"dict": [[[], 1]]}), "dict"),
    "a class in an argument": (argument({"class": 3}), "class"),
    "a class of one part": (argument({"class": [[]]}), "class"),
    "a slice of five parts": (argument({"slice": [1, 2, 3, 4, 5]}), "slice"),
    "values too deep": (argument(deep(50)), "20 deep"),
    "values deeper than Python goes": (argument(deep(100_000)), "20 deep"),
    "no output": (lambda d: d["nodes"].pop(), "one output, as the last node"),
    "a node after the output": (lambda d: d["nodes"].append(first(d)), "one output"),
    "no nodes": (lambda d: d["nodes"].clear(), "an output"),
    "nodes that are no list": (lambda d: d.update(nodes={}), "nodes: a dict"),
    "an input of two names": (
        lambda d: d["nodes"].insert(1, {**call_of(d, "x"), "name": "y"}),
        "every input once",
    ),
    "an input with a default": (lambda d: call_of(d, "x")["args"].append(1), "1 arguments"),
    "an input with a dotted name": (lambda d: call_of(d, "x").update(target="x.y"), "'x.y'"),
    "an attribute that is no tensor": (
        lambda d: call_of(d, "first.bias").update(target="first"),
        "get_attr of 'first'",
    ),
    "an attribute by a dunder": (
        lambda d: call_of(d, "first.bias").update(target="first.__class__"),
        "first.__class__",
    ),
    "a tensor named by a dunder": (rename("shift", "first.__dict__"), "'first.__dict__'"),
    "a tensor in a dunder": (rename("shift", "__class__.x"), "'__class__.x'"),
    "a tensor whose name ends a string": (rename("shift", 'a"+f()+"'), "plain ASCII names"),
    "a tensor without a name": (rename("shift", ""), "''"),
    "a tensor of an empty part": (rename("shift", "first..x"), "'first..x'"),
    "a missing tensor": (lambda d: d["tensors"].update(more=d["tensors"]["shift"]), "'more'.*miss"),
    "a tensor nobody describes": (lambda d: d["tensors"].pop("unused.bias"), "'unused.bias'"),
    "a tensor of another type": (described("shift", dtype="float64"), "'shift', dtype: float64"),
    "a tensor of another shape": (described("shift", shape=[5]), r"'shift', shape: \[5\]"),
    "a huge shape": (described("shift", shape=[10**15]), "'shift', shape"),
    "a shape that is no list": (described("shift", shape="4"), "'shift', shape: 4"),
    "another kind": (described("shift", kind="module"), "'shift', kind: module"),
    "a gradient for integers": (described("passing", requires_grad=True), "requires_grad: True"),
    "a flag that is no truth value": (described("shift", persistent=1), "persistent: 1"),
    "a tie to nothing": (described("again.bias", same_as="nope"), "'again.bias': nope"),
    "a tie to a tie": (described("again.bias", same_as="again.weight"), "'again.bias'"),
    "a tie to a list": (described("again.bias", same_as=[1]), "'again.bias': a list"),
    "an argument named by code": (called(names=["x", "mask=f()"]), "'mask=f\\(\\)'"),
    "an argument twice": (called(names=["x", "x"]), "each once"),
    "too few arguments": (called(names=["x"]), "each once"),
    "inputs by a name with code": (
        called(inputs={"tuple": [{"tuple": ["*"]}, {"dict": [["a':f(), 'b", "*"]]}]}),
        "plain ASCII names",
    ),
    "inputs of another structure": (called(inputs="*"), "call, inputs"),
    "more inputs than placeholders": (
        called(inputs={"tuple": [{"tuple": [["*", "*"]]}, {"dict": [["mask", "*"]]}]}),
        "3 leaves",
    ),
    "more outputs than leaves": (called(outputs=["*", "*"]), "2 leaves"),
    "an output of numbers": (called(outputs={"tuple": [1]}), "call: 1"),
    "a named tuple with code": (
        called(outputs={"class": ["named_tuple", ["a, b=f()"], ["*"]]}),
        "plain ASCII names",
    ),
    "a class of fewer fields": (called(outputs={"class": ["a.B", ["a"], ["*"] * 6]}), "each part"),
    "a class without list": (called(outputs={"class": ["a.B", None, 3]}), "call"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_document_is_refused_by_the_place(
    name: str, written: tuple[Document, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    document, tensors = written
    change, message = HOSTILE[name]
    change(document)
    ran: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            ran.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch(), pytest.raises(InputError, match=message):
        from_plain(document, tensors)
    assert set(ran) <= {"aten.detach.default"}


def test_a_named_class_is_looked_up_and_never_imported(
    written: tuple[Document, dict[str, Tensor]],
) -> None:
    document, tensors = written
    count = len(document["nodes"][-1]["args"][0]["tuple"])
    for name in ("antigravity.Fly", "os.system", "collections.Counter", 7):
        document["call"]["outputs"] = {"class": [name, None, ["*"] * count]}
        out = from_plain(document, tensors)(torch.ones(2, 4), mask=torch.ones(2, 4))
        assert type(out) is tuple
    assert "antigravity" not in sys.modules


def test_every_allowed_function_is_what_its_name_says() -> None:
    for name, function in graph_file._FUNCTIONS.items():
        assert name.split(".")[0] in ("operator", "torch", "prims", "prunus")
        assert name.split(".")[1] == function.__name__.split(".")[0]


def test_a_mutation_of_any_single_value_is_refused_or_harmless(
    written: tuple[Document, dict[str, Tensor]],
) -> None:
    """Whatever stands at any place of the document: nothing but InputError comes out."""
    document, tensors = written
    odd = [None, True, -1, 1.5, "x", "__class__", [], {}, [["*"]], {"node": "x"}, {"tuple": 3}]

    def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
        yield path
        items = value.items() if isinstance(value, dict) else ()
        for key, inner in enumerate(value) if isinstance(value, list) else items:
            yield from places(inner, (*path, key))

    refused = 0
    for path in [p for p in places(document) if p][::3]:
        for new in odd:
            changed = copy.deepcopy(document)
            owner: Any = changed
            for key in path[:-1]:
                owner = owner[key]
            owner[path[-1]] = new
            try:
                from_plain(changed, tensors)
            except InputError:
                refused += 1
    assert refused > 1000
