"""A recorded forward pass, run again, is the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.nn.utils import rnn

from helpers import needs, transformers
from prunus._common.torch_internals import exported_module
from prunus.errors import InputError
from prunus.graph.recorder import record

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(nn.functional.dropout(x.mean((2, 3)), training=self.training))


class Steps(nn.Module):
    """A loop over time steps, as many as the longest length, by ``.item()``."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(5, 6)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 6), x.new_zeros(len(x), 6)
        step = 0
        while step < lengths.max().item():
            h, c = self.cell(x[:, step], state)
            alive = (step < lengths)[:, None]
            state = torch.where(alive, h, state[0]), torch.where(alive, c, state[1])
            step += 1
        return state[0] * self.scale.item()


class Packed(nn.Module):
    def __init__(self, recurrent: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = recurrent(5, 6, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, state = self.recurrent(packed)
        padded, _ = rnn.pad_packed_sequence(out, batch_first=True)
        return padded, state[0] if isinstance(state, tuple) else state


class InPlace(nn.Module):
    """Writes into slices, views, constants and its own buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.plain = torch.arange(4.0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.linear(x).clone()
        y[:, 1:3] = x[:, :2] * 3
        y.t()[0].add_(1).mul_(2)
        y[torch.tensor([0, 1]), 3] = x[:2, 0]
        y[y > 1.5] = 0.5
        total = torch.tensor([0.0, 1.0, 2.0, 3.0])
        total += x.sum(0)
        self.plain.copy_(torch.arange(4.0)).add_(total)
        self.count.add_(1)
        self.seen[1:].copy_(x[0, 1:])
        x[0, 0] = 7.0
        return {"y": y + self.plain, "total": total, "seen": self.seen * 1, "x": x + self.count}


class Mixed(nn.Module):
    """Nested inputs and outputs, keywords, a shared module, a tied weight, values by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(
        self, pair: list[Tensor], flag: bool, *, options: dict[str, Any], n: int = 2
    ) -> Any:
        x = self.first(pair[0]) + self.second(pair[1]) * n
        if flag:
            x = self.again(x) + options["bias"]
        return {"out": (x, [pair[0], None, n]), "highest": x.max(-1)}


def bert() -> nn.Module:
    config = transformers().BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    return transformers().BertModel(config)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.fixture(autouse=True)
def _no_fused_layers() -> Iterator[None]:
    """The transformer's fused layer differs from its parts in the last bit."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def lengths(*values: int) -> Tensor:
    return torch.tensor(values)


# A model, two inputs of the same shape.
CASES: dict[str, Any] = {
    "cnn": (Cnn, lambda: ((torch.randn(2, 3, 8, 8),), {})),
    "lstm": (lambda: nn.LSTM(5, 6, 2, bidirectional=True), lambda: ((torch.randn(4, 3, 5),), {})),
    "gru": (lambda: nn.GRU(5, 6, 2), lambda: ((torch.randn(4, 3, 5),), {})),
    "transformer": (encoder, lambda: ((torch.randn(2, 7, 16),), {})),
    "masked transformer": (
        encoder,
        lambda: (
            (torch.randn(2, 7, 16),),
            {"src_key_padding_mask": torch.arange(7).expand(2, 7) > torch.randint(3, 6, (2, 1))},
        ),
    ),
    "bert": (
        bert,
        lambda: (
            (torch.randint(0, 50, (2, 9)),),
            {"attention_mask": (torch.arange(9) < torch.tensor([[9], [5]])).long()},
        ),
    ),
    "steps": (Steps, lambda: ((torch.randn(3, 7, 5), lengths(5, 2, 3)), {})),
    "packed lstm": (
        lambda: Packed(nn.LSTM),
        lambda: ((torch.randn(3, 7, 5), lengths(2, *torch.randint(1, 7, (1,)).tolist(), 7)), {}),
    ),
    "packed gru": (
        lambda: Packed(nn.GRU),
        lambda: ((torch.randn(3, 7, 5), lengths(2, *torch.randint(1, 7, (1,)).tolist(), 7)), {}),
    ),
    "in place": (InPlace, lambda: ((torch.randn(3, 4),), {})),
    "mixed": (
        Mixed,
        lambda: (
            ([torch.randn(2, 4), torch.randn(2, 4)], True),
            {"options": {"bias": torch.randn(4), "more": None}, "n": 3},
        ),
    ),
}


def recorded(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return record(model.eval(), args, kwargs)


def fresh(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, tree)


def operators(module: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in module.graph.nodes if n.op == "call_function"]


def assert_equal(one: Any, other: Any) -> None:
    (ones, structure), (others, same) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    assert structure == same
    for a, b in zip(ones, others, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("name", CASES)
def test_the_graph_gives_the_models_answer_on_this_and_on_other_inputs(name: str) -> None:
    torch.manual_seed(0)
    build, example = CASES[name]
    model = build().eval()
    args, kwargs = example()
    module = recorded(model, *args, **kwargs)
    assert module.notes == []
    with torch.no_grad():
        for again in ((args, kwargs), example(), example()):
            a, k = fresh(again)
            graphs = module(*a, **k)
            written = fresh((a, k))
            put_back(model)
            a, k = fresh(again)
            assert_equal(graphs, model(*a, **k))
            assert_equal(written, (a, k))
            put_back(model)


def put_back(model: nn.Module) -> None:
    for buffer in model.buffers() if isinstance(model, InPlace) else ():
        buffer.zero_()


@pytest.mark.parametrize("name", CASES)
def test_the_graph_holds_the_models_own_tensors_under_their_names(name: str) -> None:
    build, example = CASES[name]
    model = build().eval()
    args, kwargs = example()
    before = fresh(model.state_dict())
    module = recorded(model, *args, **kwargs)
    names = [n for n in module.state_dict() if not n.startswith("_constant")]
    assert sorted(names) == sorted(model.state_dict())
    for key, parameter in model.named_parameters(remove_duplicate=False):
        assert module.get_parameter(key) is parameter
    for key, buffer in model.named_buffers(remove_duplicate=False):
        assert module.get_buffer(key) is buffer
    assert_equal(dict(before), dict(model.state_dict()))


@pytest.mark.parametrize("name", CASES)
def test_every_value_is_described_as_it_is(name: str) -> None:
    build, example = CASES[name]
    args, kwargs = example()
    module = recorded(build(), *args, **kwargs)

    class Compare(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node.op == "output":
                return value
            assert "val" in node.meta, node
            for real, said in zip(
                pytree.tree_leaves(value), pytree.tree_leaves(node.meta["val"]), strict=True
            ):
                if isinstance(real, Tensor):
                    assert (real.shape, real.stride(), real.dtype, real.device) == (
                        said.shape, said.stride(), said.dtype, said.device
                    ), node  # fmt: skip
                else:
                    assert real == said
            return value

    with torch.no_grad():
        Compare(module).run(*pytree.tree_leaves((args, kwargs)))


def test_composite_operators_stay_whole() -> None:
    x = torch.randn(2, 7, 16)
    found = set(operators(recorded(encoder(), x)))
    assert "aten.scaled_dot_product_attention.default" in found
    assert {"aten.linear.default", "aten.layer_norm.default"} <= found
    assert "aten.lstm.input" in operators(recorded(nn.LSTM(5, 6), torch.randn(4, 3, 5)))
    assert "aten.gru.input" in operators(recorded(nn.GRU(5, 6), torch.randn(4, 3, 5)))
    assert "aten.batch_norm.default" in operators(recorded(Cnn(), torch.randn(2, 3, 8, 8)))
    packed = operators(recorded(Packed(nn.LSTM), torch.randn(3, 7, 5), lengths(2, 4, 7)))
    assert "aten.lstm.data" in packed


@pytest.mark.parametrize("name", ["cnn", "lstm", "gru", "transformer"])
def test_the_same_operators_as_export_where_export_works(name: str) -> None:
    build, example = CASES[name]
    model = build().eval()
    if isinstance(model, nn.RNNBase):
        needs("export of recurrent modules")
    args, kwargs = example()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, args, kwargs, strict=False)
        exported = exported_module(program)
    module = recorded(model, *args, **kwargs)
    assert operators(module) == operators(exported)
    modules = [stack(n) for n in module.graph.nodes if n.op == "call_function"]
    assert modules == [stack(n) for n in exported.graph.nodes if n.op == "call_function"]


def stack(node: fx.Node) -> list[tuple[str, str]]:
    entered = node.meta["nn_module_stack"]
    return [(path, kind) for path, kind in entered.values()]


def test_every_operator_knows_the_modules_it_was_called_in() -> None:
    x = torch.randn(2, 4)
    module = recorded(Mixed(), [x, x + 1], True, options={"bias": x[0]})
    linears = [n for n in module.graph.nodes if str(n.target) == "aten.linear.default"]
    entered = [list(n.meta["nn_module_stack"].items())[1] for n in linears]
    kind = "torch.nn.modules.linear.Linear"
    assert entered == [
        ("L__self__first", ("first", kind)),
        ("L__self__second", ("second", kind)),
        ("L__self__first@1", ("first", kind)),
    ]


class Reads(nn.Module):
    """Lets numbers leave torch in a chosen way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.how = how

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.linear(x)
        if self.how == "item":
            return y / y.abs().max().item()
        if self.how == "numpy":
            return y + torch.from_numpy(y.detach().numpy() * 2)
        if self.how == "tolist":
            return y + torch.tensor(y[0].tolist())
        if self.how == "if":
            return y if y.sum() > 0 else -y
        if self.how == "written":
            best = torch.zeros(4)
            best[1:] = y[0, 1:]
            return y * float(best[0])
        if self.how == "mask":
            return y if mask.all() else y * mask
        if self.how == "shape":
            return y + torch.from_numpy(torch.zeros_like(y).numpy() + 1)
        if self.how == "constant":
            return y * torch.tensor([2.0]).item() * self.linear.weight.sum().item()
        holder = torch.zeros(4)
        holder.numpy()[1] = 5.0
        return y + holder


@pytest.mark.parametrize(
    ("how", "notes", "executed"),
    [
        ("item", ["aten.item read real numbers in the model"], []),
        ("numpy", [".numpy() read real numbers in the model"], []),
        ("tolist", [".tolist() read real numbers in the model"], []),
        ("if", ["aten.is_nonzero read real numbers in the model"], []),
        ("written", ["aten.item read real numbers in the model"], []),
        ("mask", [], ["aten.is_nonzero read integers in the model"]),
        ("shape", [], []),
        ("constant", [], []),
        ("behind", ["run again on the recorded input, the graph gives an output other"], []),
    ],
)
def test_what_no_longer_follows_the_input_is_noted(
    how: str, notes: list[str], executed: list[str]
) -> None:
    module = recorded(Reads(how), torch.randn(2, 4), torch.ones(2, 4, dtype=torch.long))
    assert [note.split(":")[0].split(" than")[0] for note in module.notes] == notes
    assert [note.split(":")[0] for note in module.executed] == executed


def test_a_tensor_given_twice_is_noted_since_the_graph_reads_it_once() -> None:
    class Differs(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - 2 * b

    x = torch.randn(3)
    assert recorded(Differs(), x, x).notes == ["b is a: the graph reads the latter"]
    assert recorded(Differs(), x, x.clone()).notes == []


def test_lengths_that_decide_are_listed_as_executed() -> None:
    module = recorded(Steps(), torch.randn(3, 7, 5), lengths(5, 2, 3))
    assert module.executed == [
        "aten.item read integers in the model: the graph refuses inputs that change them"
    ]


def test_a_parameter_made_on_the_way_is_a_view_and_no_constant() -> None:
    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return nn.Parameter(self.linear(x)).sigmoid() + x.data

    model = Wraps().eval()
    module = recorded(model, torch.randn(2, 4))
    assert not any("_constant" in name for name, _ in module.named_buffers())
    x = torch.randn(2, 4)
    assert torch.equal(module(x), model(x))


def test_vmap_scripted_parts_and_own_functions_are_recorded() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.vmap(lambda row: self.linear(row) * row.sum())(x)
            return Double.apply(self.scripted(y))

    model = Odd().eval()
    module = recorded(model, torch.randn(2, 4))
    x = torch.randn(2, 4)
    torch.testing.assert_close(module(x), model(x))


def test_random_numbers_of_the_pass_are_drawn_anew_and_the_state_is_left_alone() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(3)

    before = torch.get_rng_state()
    module = recorded(Noise(), torch.zeros(3))
    assert torch.equal(before, torch.get_rng_state())
    assert module.notes == []
    assert not torch.equal(module(torch.zeros(3)), module(torch.zeros(3)))


def test_gradients_flow_through_the_recorded_graph() -> None:
    model = Cnn().eval()
    x = torch.randn(2, 3, 8, 8)
    module = recorded(model, x)
    module(x).sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(x).sum().backward()
    assert_equal(found, [p.grad for p in model.parameters()])


def test_hooks_are_gone_afterwards_even_when_the_model_fails() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            raise KeyError(self.linear(x))

    model = Fails()
    with pytest.raises(KeyError):
        recorded(model, torch.randn(2, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.count == 0


def test_an_output_that_cannot_stand_in_a_graph_is_refused_by_its_type() -> None:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, object()

    with pytest.raises(InputError, match="the model returns a object"):
        recorded(Returns(), torch.zeros(1))


def test_a_generator_is_refused_with_the_operator_that_takes_it() -> None:
    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(1, generator=torch.Generator())

    with pytest.raises(InputError, match=r"aten\.rand\.generator is given a Generator"):
        recorded(Draws(), torch.zeros(1))


def test_a_tensor_whose_name_a_graph_uses_itself_is_refused() -> None:
    model = nn.ModuleDict({"graph": nn.Linear(2, 2)})
    model.forward = lambda x: model["graph"](x)  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"a graph cannot hold a tensor 'graph\.weight'"):
        recorded(model, torch.zeros(1, 2))
