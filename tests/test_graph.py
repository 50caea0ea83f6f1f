"""What each family of operators relates, by hand on small models."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import cut_units
from prunus._common.torch_internals import lacking
from prunus.compaction.compact import perform
from prunus.compaction.search import find_plan
from prunus.errors import InputError
from prunus.graph.analysis import Analysis, analyze
from prunus.graph.labels import Fixed, Labels
from prunus.graph.listing import units
from prunus.graph.solve import Heads, solve
from prunus.graph.trace import trace
from prunus.graph.units import coupled_units


class Model(nn.Module):
    """Parameters by name, and a function of them and an input of three numbers."""

    def __init__(self, forward: Callable[..., Any], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = forward
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))

    def forward(self, x: Tensor) -> Any:
        return self.function(x, **dict(self.named_parameters()))


EXAMPLE = torch.arange(6.0).reshape(2, 3)


def found(
    forward: Callable[..., Any], heads: Heads = "whole", **shapes: tuple[int, ...]
) -> list[set[tuple[str, int, int]]]:
    """The units of a model: sets of (parameter, dimension, index), in order."""
    analysis = analyze(Model(forward, **shapes), EXAMPLE, heads=heads)
    return slices(analysis, list(shapes))


def slices(analysis: Analysis, names: list[str]) -> list[set[tuple[str, int, int]]]:
    sets: dict[int, set[tuple[str, int, int]]] = {}
    for name in names:
        for d, dim in enumerate(analysis.tensors[name].dims):
            if isinstance(dim, Fixed):
                continue
            for i, (label, free) in enumerate(
                zip(analysis.solved.of(dim), analysis.solved.free(dim), strict=True)
            ):
                if free:
                    sets.setdefault(int(label), set()).add((name, d, i))
    return [s for _, s in sorted(sets.items(), key=lambda item: sorted(item[1]))]


def test_a_neuron_is_its_row_its_bias_and_the_column_that_reads_it() -> None:
    def forward(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(x, a, b)), c)

    assert found(forward, a=(2, 3), b=(2,), c=(4, 2)) == [
        {("a", 0, 0), ("b", 0, 0), ("c", 1, 0)},
        {("a", 0, 1), ("b", 0, 1), ("c", 1, 1)},
    ]


def test_what_is_summed_must_be_zero_where_it_is_removed() -> None:
    """σ(0) = ½, so a sum over the sigmoid counts what a mask removed; over tanh it does not."""

    def over(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda x, a: function(F.linear(x, a)).sum(-1)

    assert found(over(torch.tanh), a=(2, 3)) == [{("a", 0, 0)}, {("a", 0, 1)}]
    assert found(over(torch.sigmoid), a=(2, 3)) == []


def test_a_transposed_product_and_einsum_say_the_same() -> None:
    expected = [{("a", 1, i), ("b", 0, i)} for i in range(2)]
    assert found(lambda x, a, b: x @ a @ b, a=(3, 2), b=(2, 4)) == expected
    forms = found(
        lambda x, a, b: torch.einsum("nj,jk->nk", torch.einsum("ni,ij->nj", x, a), b),
        a=(3, 2),
        b=(2, 4),
    )
    assert forms == expected


def test_depthwise_channels_fall_one_by_one_and_groups_as_a_whole_or_inside() -> None:
    def grouped(groups: int) -> Callable[..., Tensor]:
        def forward(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            y = F.conv1d(x[:, :, None], a)
            return F.conv1d(F.conv1d(y, b, groups=groups), c)

        return forward

    depthwise = found(grouped(4), a=(4, 3, 1), b=(4, 1, 1), c=(2, 4, 1))
    assert depthwise == [{("a", 0, i), ("b", 0, i), ("c", 1, i)} for i in range(4)]
    two = found(grouped(2), a=(6, 3, 1), b=(8, 3, 1), c=(2, 8, 1))
    inside = [{("a", 0, i), ("a", 0, 3 + i), ("b", 1, i)} for i in range(3)]
    outside = [{("b", 0, i), ("b", 0, 4 + i), ("c", 1, i), ("c", 1, 4 + i)} for i in range(4)]
    assert two == inside + outside
    three = found(grouped(3), a=(6, 3, 1), b=(3, 2, 1), c=(2, 3, 1))
    assert three == [
        {("a", 0, 2 * i), ("a", 0, 2 * i + 1), ("b", 0, i), ("c", 1, i)} for i in range(3)
    ]


def test_a_batch_norm_goes_along_and_a_layer_norm_stays() -> None:
    def batch(x: Tensor, a: Tensor, g: Tensor, b: Tensor, c: Tensor) -> Tensor:
        mean, var = torch.zeros(2), torch.ones(2)
        return F.linear(F.batch_norm(F.linear(x, a), mean, var, g, b), c)

    def layer(x: Tensor, a: Tensor, g: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.linear(F.layer_norm(F.linear(x, a), (2,), g, b), c)

    shapes = {"a": (2, 3), "g": (2,), "b": (2,), "c": (4, 2)}
    assert found(batch, **shapes) == [
        {("a", 0, i), ("g", 0, i), ("b", 0, i), ("c", 1, i)} for i in range(2)
    ]
    assert found(layer, **shapes) == []


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardized for each output channel (Qiao et al. 2019)."""

    def __init__(self, inputs: int, outputs: int, how: str) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.how = how

    def weights(self) -> Tensor:
        w = self.weight
        if self.how == "mean and std":
            return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        if self.how == "var_mean":
            var, mean = torch.var_mean(w, (1, 2, 3), keepdim=True)
            return (w - mean) * (var + 1e-5).rsqrt()
        if self.how == "one after the other":
            w = w - w.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
            return w / (w.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5).expand_as(w)
        if self.how == "batch norm":  # as timm does
            flat = w.reshape(1, len(w), -1)
            return F.batch_norm(flat, None, None, training=True).reshape_as(w)
        return F.layer_norm(w, w.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weights(), self.bias, padding=1)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("mean and std", "mean in 2: looks at every index"),
        ("var_mean", "var_mean in 2: looks at every index"),
        ("one after the other", "mean in 2: looks at every index"),
        ("batch norm", "reshape in 2: its indices go by another factor"),
        ("layer norm", "layer_norm in 2: its variance counts every index"),
    ],
)
def test_standardized_weights_lose_outputs_and_keep_what_the_mean_counts(
    how: str, why: str
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 1), nn.ReLU(), Standardized(5, 6, how), nn.ReLU(), nn.Conv2d(6, 3, 1)]
    model, example = nn.Sequential(*layers).eval(), torch.rand(2, 2, 6, 6)
    analysis = analyze(model, example)
    (kind,) = coupled_units(analysis, list(analysis.names))
    assert kind.places == (("2.weight", 0), ("2.bias", 0), ("4.weight", 1))
    assert len(kind) == 6
    for d in (1, 2, 3):
        assert analysis.solved.why(analysis.tensors["2.weight"].dims[d]) == why
    plan = find_plan(model, cut_units(analysis, kind.classes[:2]), example)
    assert plan.comparison.error < 1e-12
    assert perform(model, plan)[2].out_channels == 4  # type: ignore[index, union-attr]


def test_a_division_by_what_a_cut_makes_zero_pins_it() -> None:
    def forward(x: Tensor, a: Tensor, b: Tensor, small: float = 0.0) -> Tensor:
        return F.linear(F.linear(x, a / (a.norm(dim=1, keepdim=True) + small)), b)

    assert found(forward, a=(2, 3), b=(4, 2)) == []
    analysis = analyze(Model(forward, a=(2, 3), b=(4, 2)), EXAMPLE)
    why = analysis.solved.why(analysis.tensors["a"].dims[0])
    assert why == "div: divides by what a cut makes zero"
    safe = found(lambda x, a, b: forward(x, a, b, 1e-6), a=(2, 3), b=(4, 2))
    assert safe == [{("a", 0, i), ("b", 1, i)} for i in range(2)]


def test_a_group_of_a_group_norm_goes_as_a_whole() -> None:
    def forward(x: Tensor, a: Tensor, c: Tensor) -> Tensor:
        return F.linear(F.group_norm(F.linear(x, a), 2), c)

    groups = [
        {(name, d, 3 * g + i) for name, d in (("a", 0), ("c", 1)) for i in range(3)}
        for g in range(2)
    ]
    assert found(forward, a=(6, 3), c=(4, 6)) == groups


def heads_of(h: int, d: int) -> Callable[..., Tensor]:
    def forward(x: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> Tensor:
        def split(w: Tensor, n: int) -> Tensor:
            return F.linear(x[None], w).view(1, 2, n, d).transpose(1, 2)

        shared = k.shape[0] // d
        y = F.scaled_dot_product_attention(
            split(q, h), split(k, shared), split(v, shared), enable_gqa=shared != h
        )
        return F.linear(y.transpose(1, 2).reshape(1, 2, h * d), o)

    return forward


def test_attention_loses_whole_heads_or_the_same_dimensions_of_every_head() -> None:
    shapes = {"q": (4, 3), "k": (4, 3), "v": (4, 3), "o": (3, 4)}
    places = (("q", 0), ("k", 0), ("v", 0), ("o", 1))
    whole = found(heads_of(2, 2), **shapes)
    assert whole == [{(n, d, 2 * h + i) for n, d in places for i in range(2)} for h in range(2)]
    dims = found(heads_of(2, 2), heads="dims", **shapes)
    assert {("v", 0, 0), ("v", 0, 2), ("o", 1, 0), ("o", 1, 2)} in dims
    assert {("q", 0, 0), ("q", 0, 2), ("k", 0, 0), ("k", 0, 2)} in dims


def test_a_head_of_keys_takes_all_its_queries_along() -> None:
    """Four heads of queries share two of keys and values: ``[queries, keys, values, output]``."""
    shapes = {"q": (8, 3), "k": (4, 3), "v": (4, 3), "o": (3, 8)}
    expected = [
        {("q", 0, 4 * h + i) for i in range(4)}
        | {("o", 1, 4 * h + i) for i in range(4)}
        | {(n, 0, 2 * h + i) for n in "kv" for i in range(2)}
        for h in range(2)
    ]
    assert found(heads_of(4, 2), **shapes) == expected


def test_halves_of_a_gate_fall_together() -> None:
    def forward(x: Tensor, a: Tensor, c: Tensor) -> Tensor:
        return F.linear(F.glu(F.linear(x, a)), c)

    assert found(forward, a=(4, 3), c=(2, 2)) == [
        {("a", 0, i), ("a", 0, 2 + i), ("c", 1, i)} for i in range(2)
    ]


def test_a_hidden_unit_is_its_row_of_every_gate() -> None:
    def forward(x: Tensor, i: Tensor, h: Tensor, o: Tensor) -> Tensor:
        state = x.new_zeros(2, 2)
        hidden, _ = torch.lstm_cell(x, (state, state), i, h)
        return F.linear(torch.gru_cell(x, hidden, i[:6], h[:6]), o)

    expected = [
        {(n, 0, 2 * g + u) for n in "ih" for g in range(4)} | {("h", 1, u), ("o", 1, u)}
        for u in range(2)
    ]
    assert found(forward, i=(8, 3), h=(8, 2), o=(3, 2)) == expected


@pytest.mark.parametrize(
    ("mix", "why"),
    [
        (lambda y: y.softmax(-1), "softmax"),
        (lambda y: y.cumsum(-1), "cumsum"),
        (lambda y: y.mean(-1), "mean"),
        (lambda y: y.topk(1, -1).values, "topk"),
        (lambda y: y[:, torch.tensor([1, 0])], "read by position"),
    ],
)
def test_what_looks_along_a_dimension_pins_it_and_says_so(
    mix: Callable[[Tensor], Tensor], why: str
) -> None:
    model = Model(lambda x, a: mix(torch.tanh(F.linear(x, a))), a=(4, 3))
    listed = units(model, EXAMPLE)
    assert listed.total == 0
    assert any(p.place == ("a", 0) and why in p.why for p in listed.pinned), str(listed)


def test_an_index_that_is_taken_stays_and_so_do_rows_that_another_call_may_read() -> None:
    assert found(lambda x, a: torch.tanh(F.linear(x, a))[:, 0], a=(3, 3)) == []


def test_an_empty_slice_is_no_reason_to_stay() -> None:
    """Rotary embeddings of a part of each head, where the part is all of it."""

    def forward(x: Tensor, a: Tensor, c: Tensor) -> Tensor:
        y = F.linear(x, a).view(2, 3, 2)
        kept, rest = y[..., :2] * 2, y[..., 2:]
        return F.linear(torch.cat([kept, rest], -1).reshape(2, 6), c)

    expected = [
        {("a", 0, 2 * i), ("a", 0, 2 * i + 1), ("c", 1, 2 * i), ("c", 1, 2 * i + 1)}
        for i in range(3)
    ]
    assert found(forward, a=(6, 3), c=(4, 6)) == expected


def test_an_unknown_operator_pins_its_operands_and_is_listed() -> None:
    with torch.library._scoped_library("prunus_tests", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CPU")
        library.impl("twice", torch.empty_like, "Meta")
        model = Model(lambda x, a: torch.ops.prunus_tests.twice(F.linear(x, a)), a=(4, 3))
        listed = units(model, EXAMPLE)
    assert listed.total == 0
    assert any("no rule for the operator" in line for line in listed.summary())


def test_a_size_of_one_is_broadcast_and_no_unit() -> None:
    def forward(x: Tensor, a: Tensor, g: Tensor, c: Tensor) -> Tensor:
        return F.linear(F.linear(x, a) * g, c)

    expected = [{("a", 0, i), ("c", 1, i)} for i in range(2)]
    assert found(forward, a=(2, 3), g=(1,), c=(4, 2)) == expected
    assert found(lambda x, a, c: x @ a @ c, a=(3, 1), c=(1, 4)) == []


def test_a_length_that_is_repeated_pins_nothing() -> None:
    def forward(x: Tensor, a: Tensor, c: Tensor) -> Tensor:
        return F.linear(F.normalize(F.linear(x, a), dim=-1), c)

    assert found(forward, a=(2, 3), c=(4, 2)) == [{("a", 0, i), ("c", 1, i)} for i in range(2)]


def test_what_padding_fills_is_nobodys_index() -> None:
    """Channels of ``a`` are padded to those of ``b``: the outer two of ``b`` are its own."""

    def forward(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.linear(F.pad(F.linear(x, a), (1, 1)) + F.linear(x, b), c)

    assert found(forward, a=(2, 3), b=(4, 3), c=(3, 4)) == [
        {("a", 0, 0), ("b", 0, 1), ("c", 1, 1)},
        {("a", 0, 1), ("b", 0, 2), ("c", 1, 2)},
        {("b", 0, 0), ("c", 1, 0)},
        {("b", 0, 3), ("c", 1, 3)},
    ]


def test_padding_with_ones_is_not_zero_and_pins_a_sum() -> None:
    def forward(x: Tensor, a: Tensor) -> Tensor:
        return F.pad(torch.tanh(F.linear(x, a)), (1, 0), value=1.0).sum(-1)

    assert found(forward, a=(2, 3)) == []


def test_rows_of_a_table_that_this_length_does_not_read_stay() -> None:
    def forward(x: Tensor, a: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return F.linear(F.linear(x, a) + F.dropout(t, 0.1, False)[: x.shape[0]], c)

    expected = [{("a", 0, i), ("t", 1, i), ("c", 1, i)} for i in range(3)]
    assert found(forward, a=(3, 3), t=(7, 3), c=(4, 3)) == expected


def test_copies_into_views_of_zeros_go_with_what_they_copy() -> None:
    """Columns of ``c`` that read what nobody wrote are units of their own."""

    def forward(x: Tensor, a: Tensor, c: Tensor) -> Tensor:
        y = x.new_zeros(2, 5)
        y[:, 1:4] = F.linear(x, a)
        return F.linear(y, c)

    assert found(forward, a=(3, 3), c=(4, 5)) == [
        *({("a", 0, i), ("c", 1, i + 1)} for i in range(3)),
        {("c", 1, 0)},
        {("c", 1, 4)},
    ]


def test_a_model_that_branches_on_values_is_recorded_and_the_listing_says_so() -> None:
    def forward(x: Tensor, a: Tensor, c: Tensor) -> Tensor:
        y = F.linear(x, a)
        return F.linear(y if bool(y.sum() > -1e9) else -y, c)

    listed = units(Model(forward, a=(2, 3), c=(4, 2)), EXAMPLE)
    assert listed.how == "recorder"
    assert listed.total == 2
    assert any("torch.export refused" in note for note in listed.notes)
    assert "note: " in str(listed)


def test_what_neither_tracer_can_follow_is_refused_with_both_reasons() -> None:
    def forward(x: Tensor, a: Tensor) -> Tensor:
        if bool((x @ a).sum() > -1e9):
            raise ValueError("not today")
        return x

    with pytest.raises(InputError, match=r"neither by torch.export \(.*\) nor .*not today"):
        units(Model(forward, a=(3, 2)), EXAMPLE)


def test_a_known_cut_decides_its_sites() -> None:
    """Six indices seen as 2 × 3: the cut of indices 0 and 3 goes by the inner dimension."""
    labels = Labels()
    whole, outer, inner = labels.fresh(6), labels.fresh(2), labels.fresh(3)
    labels.factors("view", whole, (outer, inner), (2, 3))
    labels.gone.append(whole[[0, 3]])
    labels.pin(whole[[1, 2, 4, 5]], "it stays in this cut")
    solved = solve(labels)
    assert solved.gone[solved.of(inner)].tolist() == [True, False, False]
    assert not solved.free(outer).any()


def test_on_the_meta_device_shapes_are_compared_and_the_plan_says_so() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        example = torch.ones(1, 4)
    analysis = analyze(model, example)
    (kind,) = coupled_units(analysis, ["0.weight"])
    plan = find_plan(model, cut_units(analysis, kind.classes[:2]), example)
    assert plan.route == "sliced"
    assert plan.notes == ("on the meta device: shapes were compared, values could not be",)
    assert perform(model, plan)[0].weight.shape == (4, 4)


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_a_recurrent_module_is_traced_by_every_torch(recurrent: type[nn.RNNBase]) -> None:
    traced = trace(recurrent(2, 3), torch.ones(1, 1, 2))
    refused = lacking("export of recurrent modules")
    assert traced.how == ("export" if refused is None else "recorder")
    operators = [str(n.target) for n in traced.module.graph.nodes if n.op == "call_function"]
    assert f"aten.{recurrent.__name__.lower()}.input" in operators


def test_a_torch_without_check_guards_exports_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    new = torch.export.ExportedProgram.module
    older = lambda self: new(self, check_guards=False)  # noqa: E731  # no such argument up to 2.8
    if "check_guards" in inspect.signature(new).parameters:
        monkeypatch.setattr(torch.export.ExportedProgram, "module", older)
    assert trace(nn.Linear(2, 3), torch.ones(1, 2)).how == "export"


def test_our_own_wrong_call_is_not_taken_for_exports_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def module(self: torch.export.ExportedProgram) -> None:
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(torch.export.ExportedProgram, "module", module)
    with pytest.raises(TypeError, match="unexpected keyword"):
        trace(nn.Linear(2, 3), torch.ones(1, 2))
