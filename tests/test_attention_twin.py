"""``NarrowAttention`` against the masked ``nn.MultiheadAttention``, in every use of it."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from helpers import pruned_both
from prunus.compaction.slicing.attention import NarrowAttention, Narrowing, narrowings
from prunus.compaction.slicing.surgery import Surgery
from prunus.errors import InputError

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, without a parameter that is constant."""
    generator = seeded(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=F64)
            parameter.add_(0.3 * noise)
    return model


def rows(attention: nn.MultiheadAttention, heads: list[int], dims: list[int]) -> Tensor:
    """The rows of a projection that belong to these dimensions of these heads."""
    size = attention.head_dim
    return torch.tensor([head * size + dim for head in heads for dim in dims])


def narrowed(
    attention: nn.MultiheadAttention,
    heads: list[int],
    queries: list[int] | None = None,
    values: list[int] | None = None,
) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """A copy with all else zero, and one with it cut out."""
    every = list(range(attention.head_dim))
    qk = rows(attention, heads, every if queries is None else queries)
    v = rows(attention, heads, every if values is None else values)
    width = attention.embed_dim
    packed = torch.cat([qk, width + qk, 2 * width + v])
    kept: dict[str, tuple[Tensor | None, ...]] = {
        "in_proj_weight": (packed, None), "q_proj_weight": (qk, None), "k_proj_weight": (qk, None),
        "v_proj_weight": (v, None), "in_proj_bias": (packed,), "out_proj.weight": (None, v),
        "bias_k": (None, None, qk), "bias_v": (None, None, v),
    }  # fmt: skip
    masked, small = copy.deepcopy(attention), copy.deepcopy(attention)
    own = {name: kept[name] for name, _ in masked.named_parameters() if name in kept}
    for name, cut in own.items():
        parameter = masked.get_parameter(name)
        for dim, index in enumerate(cut):
            if index is not None:
                gone = torch.ones(parameter.shape[dim], dtype=torch.bool)
                gone[index] = False
                parameter.data.index_fill_(dim, gone.nonzero()[:, 0], 0.0)
    found = narrowings(small, own)
    assert [n.after for n in found] == [tuple(heads)]
    Surgery(own, tuple(found)).apply(small)
    assert type(small) is NarrowAttention
    return masked, small


def gap(a: Any, b: Any) -> float:
    """The largest difference; the shapes are the same."""
    if a is None or b is None:
        assert a is b
        return 0.0
    if isinstance(a, tuple):
        return max(gap(x, y) for x, y in zip(a, b, strict=True))
    assert a.shape == b.shape
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


@pytest.fixture
def slow_path() -> Iterator[None]:
    """Without torch's fast path, which treats a mask of numbers as one of bools."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@st.composite
def uses(draw: st.DrawFn) -> dict[str, Any]:
    """An attention, what stays of it, and how it is called."""
    heads, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    subset = lambda n: sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))  # noqa: E731
    kept, queries, values = subset(heads), subset(size), subset(size)
    if [len(kept), len(queries), len(values)] == [heads, size, size]:
        heads += 1  # something goes
    cross = draw(st.booleans())
    widths = {"kdim": draw(st.integers(1, 5)), "vdim": draw(st.integers(1, 5))}
    kinds = st.sampled_from([None, "bool", "float"])
    return {
        "made": {
            "embed_dim": heads * size, "num_heads": heads, "bias": draw(st.booleans()),
            "add_bias_kv": draw(st.booleans()), "add_zero_attn": draw(st.booleans()),
            "batch_first": draw(st.booleans()),
            **(widths if cross and draw(st.booleans()) else {}),
        },
        "stays": (kept, queries, values),
        "cross": cross,
        "batch": draw(st.sampled_from([None, 1, 2, 3])),
        "lengths": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "padding": draw(kinds),
        "mask": draw(kinds),
        "each_head": draw(st.booleans()),
        "causal": draw(st.booleans()),
        "weights": draw(st.booleans()),
        "average": draw(st.booleans()),
        "train": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }  # fmt: skip


def mask_of(kind: str | None, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
    """Bools that leave the first key, or numbers."""
    numbers = torch.randn(shape, generator=generator, dtype=F64)
    if kind is None or kind == "float":
        return None if kind is None else numbers
    gone = numbers > 0
    gone[..., 0] = False
    return gone


def call_of(use: dict[str, Any], attention: nn.MultiheadAttention) -> tuple[Any, dict[str, Any]]:
    """Arguments for one call."""
    generator = seeded(use["seed"])
    batch, (length, keys) = use["batch"], use["lengths"]
    keys = keys if use["cross"] else length

    def sequence(size: int, width: int) -> Tensor:
        shape = (size, width) if batch is None else (batch, size, width)
        made = torch.randn(shape, generator=generator, dtype=F64)
        return made if attention.batch_first or batch is None else made.transpose(0, 1)

    query = sequence(length, attention.embed_dim)
    inputs = (query, query, query)
    if use["cross"]:
        key = sequence(keys, attention.kdim)
        same = attention.kdim == attention.vdim and use["seed"] % 2
        inputs = (query, key, key if same else sequence(keys, attention.vdim))
    many = (batch or 1) * attention.num_heads
    shape = (many, length, keys) if use["each_head"] else (length, keys)
    mask = mask_of(use["mask"], shape, generator)
    causal = use["causal"] and not use["each_head"]
    if causal:
        mask = torch.ones(length, keys, dtype=torch.bool).triu(1)
    padding = mask_of(use["padding"], (keys,) if batch is None else (batch, keys), generator)
    return inputs, {
        "key_padding_mask": padding, "attn_mask": mask, "need_weights": use["weights"],
        "average_attn_weights": use["average"], "is_causal": causal,
    }  # fmt: skip


@pytest.mark.usefixtures("slow_path")
@pytest.mark.filterwarnings("ignore:Support for mismatched")
@settings(max_examples=250, deadline=None)
@given(uses())
def test_it_answers_as_the_masked_attention_whatever_it_is_asked(use: dict[str, Any]) -> None:
    attention = randomized(nn.MultiheadAttention(**use["made"]), use["seed"])
    assert isinstance(attention, nn.MultiheadAttention)
    masked, small = narrowed(attention, *use["stays"])
    assert small.state_dict().keys() == masked.state_dict().keys()
    args, kwargs = call_of(use, attention)
    for model in (masked, small):
        model.train(use["train"])
        model.zero_grad()
    query = args[0].clone().requires_grad_()
    again = args[0].clone().requires_grad_()
    first = masked(query, *(query if a is args[0] else a for a in args[1:]), **kwargs)
    second = small(again, *(again if a is args[0] else a for a in args[1:]), **kwargs)
    assert gap(first, second) < 1e-12
    first[0].square().sum().backward()
    second[0].square().sum().backward()
    assert gap(query.grad, again.grad) < 1e-10
    if attention.out_proj.bias is not None:
        assert gap(masked.out_proj.bias.grad, small.out_proj.bias.grad) < 1e-10
    with torch.no_grad():
        assert gap(first, small(*args, **kwargs)) < 1e-12


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_it_answers_in_the_layout_of_the_original(batch_first: bool, weights: bool) -> None:
    attention = nn.MultiheadAttention(8, 4, batch_first=batch_first)
    masked, small = narrowed(attention, [0, 2])
    x = torch.randn(3, 5, 8)
    for model in (masked, small):
        out, _ = model(x, x, x, need_weights=weights)
        assert batch_first or out.is_contiguous()  # which code that calls view() relies upon


@pytest.mark.parametrize("weights", [False, True])
def test_dropout_acts_on_the_weights_while_training_and_is_right_on_average(weights: bool) -> None:
    attention = randomized(nn.MultiheadAttention(8, 4, dropout=0.4, batch_first=True))
    masked, small = narrowed(attention, [1, 3], [0], [1])  # type: ignore[arg-type]
    x = torch.randn(1, 6, 8, generator=seeded(1), dtype=F64).expand(20_000, 6, 8)
    torch.manual_seed(0)
    answers = [
        [t.detach() for t in m.train()(x, x, x, need_weights=weights) if t is not None]
        for m in (masked, small)
    ]
    for a, b in zip(*answers, strict=True):
        assert not torch.equal(b[0], b[1])
        spread = a.std(0) / 20_000**0.5
        assert bool(((a.mean(0) - b.mean(0)).abs() <= 8 * spread + 1e-12).all())
        assert gap(a.std(0), b.std(0)) < 0.05 * float(a.std(0).max())
    y = x[:2]
    assert torch.equal(small.eval()(y, y, y)[0][0], small(y, y, y)[0][1])
    assert gap(masked.eval()(y, y, y), small(y, y, y)) < 1e-12


def test_autocast_gives_the_type_and_about_the_values_of_the_original() -> None:
    masked, small = narrowed(nn.MultiheadAttention(16, 4, batch_first=True), [0, 3])
    x, pad = torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)
    pad[0, 3:] = True
    for need in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            a = masked(x, x, x, key_padding_mask=pad, need_weights=need)
            b = small(x, x, x, key_padding_mask=pad, need_weights=need)
        assert [None if t is None else t.dtype for t in a] == [
            t if t is None else t.dtype for t in b
        ]
        assert gap(a, b) < 0.02


def test_what_torch_refuses_is_refused() -> None:
    _, small = narrowed(nn.MultiheadAttention(8, 4, batch_first=True), [0, 3])
    x = torch.randn(2, 5, 8)
    with pytest.raises(InputError, match=r"attn_mask has the shape \(4, 5, 5\); .* \(8, 5, 5\)"):
        small(x, x, x, attn_mask=torch.zeros(4, 5, 5))  # the heads that are left: which are meant?
    with pytest.raises(InputError, match=r"key_padding_mask has the shape \(1, 5\)"):
        small(x, x, x, key_padding_mask=torch.zeros(1, 5, dtype=torch.bool))
    with pytest.raises(InputError, match=r"int64; it must be bool or floating"):
        small(x, x, x, key_padding_mask=torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="give both"):
        small(x, x, x, is_causal=True)
    nested = torch.nested.as_nested_tensor([x[0], x[1, :2]])
    with pytest.raises(InputError, match="nested tensor"):
        small(nested, nested, x)


def test_classes_derived_from_it_and_uneven_heads_are_left_alone() -> None:
    class Own(nn.MultiheadAttention):
        pass

    kept = {"in_proj_weight": (torch.tensor([0, 1, 4, 5, 8, 9]), None)}
    assert [n.after for n in narrowings(nn.MultiheadAttention(4, 2), kept)] == [(0,)]
    assert narrowings(Own(4, 2), kept) == []
    uneven = {"in_proj_weight": (torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10]), None)}
    assert narrowings(nn.MultiheadAttention(4, 2), uneven) == []
    others = {
        "out_proj.weight": (torch.tensor([0, 1]), None),
        "out_proj.bias": (torch.tensor([0, 1]),),
    }
    assert narrowings(nn.MultiheadAttention(4, 2), others) == []  # which torch's own code can hold


def test_it_is_the_same_object_and_becomes_what_it_was() -> None:
    attention = nn.MultiheadAttention(8, 4)
    called: list[str] = []
    attention.register_forward_hook(lambda *_: called.append("hook"))
    before, mark = dict(vars(attention)), attention.in_proj_weight
    change = Narrowing("", None, (0, 2))
    change.set(attention)
    assert isinstance(attention, nn.MultiheadAttention)
    assert isinstance(attention, NarrowAttention)
    assert attention.heads == (0, 2)
    assert attention.in_proj_weight is mark
    assert copy.deepcopy(attention).heads == (0, 2)
    change.set(attention, back=True)
    assert type(attention) is nn.MultiheadAttention
    assert vars(attention) == before
    x = torch.randn(2, 1, 8)
    attention(x, x, x)
    assert called == ["hook"]


# --- layers and whole transformers, with masks that are given after the cut


class Encoder(nn.Module):
    """Pads and masks are optional, and absent in the example."""

    def __init__(self, *, layers: int = 2, nested: bool = True, **settings: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, **{"dropout": 0.0, **settings})
        self.inner = nn.Linear(6, 16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nested tensors are not to be had
            self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=nested)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, pad: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.out(self.encoder(self.inner(x), mask=mask, src_key_padding_mask=pad))


class Decoder(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(16, 4, 24, **{"dropout": 0.0, **settings})
        self.inner, self.out = nn.Linear(6, 16), nn.Linear(16, 3)
        self.decoder = nn.TransformerDecoder(layer, 2)

    def forward(self, x: Tensor, memory: Tensor, **masks: Any) -> Tensor:
        return self.out(self.decoder(self.inner(x), self.inner(memory), **masks))


class Whole(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.transformer = nn.Transformer(16, 4, 1, 1, 24, **{"dropout": 0.0, **settings})
        self.inner, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor, **masks: Any) -> Tensor:
        return self.out(self.transformer(self.inner(x), self.inner(y), **masks))


def pair(
    model: nn.Module, example: Any, structure: str = "head", target: float = 0.5
) -> tuple[nn.Module, nn.Module, prunus.Masks]:
    """The masked model and the compact one, both in float64."""
    model = randomized(model)
    example = tuple(e.double() for e in example)
    recipe = {"structure": structure, "target": target, "allocation": "uniform"}
    masked, small = pruned_both(model, recipe, example)
    assert small.compaction is not None
    assert small.compaction.route == "attributes"
    assert not any("graph" in note for note in small.compaction.notes)
    assert type(small.model) is type(masked)
    assert any(isinstance(m, NarrowAttention) for m in small.model.modules())
    return masked, small.model, small.masks


def padding(batch: int, length: int, *, left: bool = True) -> Tensor:
    pad = torch.zeros(batch, length, dtype=torch.bool)
    pad[0, -2:] = left
    pad[-1, 0] = not left
    return pad


def agree(masked: nn.Module, small: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The same answers in train and eval mode, with and without autograd."""
    for train in (True, False):
        masked.train(train)
        small.train(train)
        assert gap(masked(*args, **kwargs), small(*args, **kwargs)) < 1e-10
        with torch.no_grad():
            assert gap(masked(*args, **kwargs), small(*args, **kwargs)) < 1e-10


@pytest.mark.parametrize(
    ("batch_first", "norm_first", "bias", "structure"),
    [  # every pair of settings meets
        (True, False, True, "head"),
        (True, True, False, "channel"),
        (False, False, False, "channel"),
        (False, True, True, "channel"),
        (False, True, False, "head"),
    ],
)
def test_an_encoder_takes_masks_that_were_not_in_the_example(
    batch_first: bool, norm_first: bool, bias: bool, structure: str
) -> None:
    model = Encoder(batch_first=batch_first, norm_first=norm_first, bias=bias)
    masked, small, _ = pair(model, (torch.randn(2, 5, 6),), structure)
    for batch, length in ((2, 5), (1, 7), (3, 4)):
        shape = (batch, length, 6) if batch_first else (length, batch, 6)
        x = torch.randn(shape, generator=seeded(batch), dtype=F64)
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        agree(masked, small, x)
        agree(masked, small, x, pad=padding(batch, length))  # aligned to the left: nested tensors
        agree(masked, small, x, mask=causal)
        if batch > 1:
            agree(masked, small, x, pad=padding(batch, length, left=False))
            agree(masked, small, x, pad=padding(batch, length), mask=causal)
    agree(masked, small, torch.randn(5, 6, dtype=F64))


def test_nested_tensors_leave_zeros_where_the_masked_encoder_leaves_them() -> None:
    masked, small, _ = pair(Encoder(batch_first=True), (torch.randn(2, 5, 6),))
    x, pad = torch.randn(2, 5, 6, dtype=F64), padding(2, 5)
    masked.eval(), small.eval()
    with torch.no_grad():
        hidden = [m.encoder(m.inner(x), src_key_padding_mask=pad) for m in (masked, small)]
    assert bool((hidden[0][0, -2:] == 0).all())
    assert gap(*hidden) < 1e-10


def test_a_narrow_feedforward_keeps_the_fast_path_and_is_right_there() -> None:
    model = randomized(Encoder(batch_first=True))
    x, pad = torch.randn(2, 5, 6, dtype=F64), padding(2, 5)
    recipe = {"structure": "channel", "target": 0.3, "scope": {"include": ["*linear1*"]}}
    masked = prunus.prune(copy.deepcopy(model), recipe, example=x)
    small = prunus.compact(model, masked.masks, x)
    assert small.route == "sliced"
    agree(masked.model, small.model, x)
    agree(masked.model, small.model, x, pad=pad)


@pytest.mark.parametrize(("batch_first", "norm_first"), [(True, True), (False, False)])
def test_a_decoder_takes_masks_that_were_not_in_the_example(
    batch_first: bool, norm_first: bool
) -> None:
    model = Decoder(batch_first=batch_first, norm_first=norm_first)
    masked, small, _ = pair(model, (torch.randn(2, 5, 6), torch.randn(2, 5, 6)))
    sizes = ((3, 4, 6), (3, 7, 6)) if batch_first else ((4, 3, 6), (7, 3, 6))
    x, memory = (torch.randn(s, generator=seeded(2), dtype=F64) for s in sizes)
    causal = nn.Transformer.generate_square_subsequent_mask(4, dtype=F64)
    cross = torch.ones(4, 7, dtype=torch.bool).triu(2)
    agree(masked, small, x, memory)
    agree(masked, small, x, memory, tgt_mask=causal, tgt_is_causal=True)
    agree(masked, small, x, memory, tgt_mask=causal, memory_mask=cross)
    agree(
        masked, small, x, memory, tgt_mask=causal > 1, tgt_key_padding_mask=padding(3, 4),
        memory_key_padding_mask=padding(3, 7, left=False), memory_mask=cross,
    )  # fmt: skip


@pytest.mark.parametrize(("batch_first", "norm_first"), [(True, False), (False, True)])
def test_a_whole_transformer_takes_masks_that_were_not_in_the_example(
    batch_first: bool, norm_first: bool
) -> None:
    model = Whole(batch_first=batch_first, norm_first=norm_first)
    masked, small, _ = pair(model, (torch.randn(2, 5, 6), torch.randn(2, 5, 6)))
    sizes = ((3, 7, 6), (3, 4, 6)) if batch_first else ((7, 3, 6), (4, 3, 6))
    x, y = (torch.randn(s, generator=seeded(2), dtype=F64) for s in sizes)
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    agree(masked, small, x, y)
    agree(masked, small, x, y, tgt_mask=causal, tgt_is_causal=True)
    agree(
        masked, small, x, y, src_mask=torch.ones(7, 7, dtype=torch.bool).triu(3), tgt_mask=causal,
        memory_mask=torch.ones(4, 7, dtype=torch.bool).triu(2),
        tgt_key_padding_mask=padding(3, 4), src_key_padding_mask=padding(3, 7, left=False),
        memory_key_padding_mask=padding(3, 7, left=False),
    )  # fmt: skip
    agree(masked, small, x, y, src_key_padding_mask=padding(3, 7))


class Cross(nn.Module):
    """Attention to a memory of other widths, with weights on request."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            16,
            4,
            kdim=6,
            vdim=10,
            add_bias_kv=True,
            add_zero_attn=True,
            batch_first=True,
            **settings,
        )
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, **more: Any) -> tuple[Tensor, Any]:
        found, weights = self.attention(x, key, value, **{"need_weights": False, **more})
        return self.out(x + found), weights


def test_cross_attention_of_other_widths() -> None:
    example = (torch.randn(2, 3, 16), torch.randn(2, 5, 6), torch.randn(2, 5, 10))
    masked, small, _ = pair(Cross(), example)
    assert isinstance(small, Cross)
    assert small.attention.q_proj_weight.shape == (8, 16)
    args = [torch.randn(3, n, w, dtype=F64) for n, w in ((4, 16), (6, 6), (6, 10))]
    agree(masked, small, *args)
    agree(masked, small, *args, need_weights=True, average_attn_weights=False)
    agree(masked, small, *args, need_weights=True, key_padding_mask=padding(3, 6))
    agree(masked, small, *args, attn_mask=torch.randn(12, 4, 6, dtype=F64), need_weights=True)


# --- in place, again, on disk, elsewhere


def test_a_second_cut_gives_a_narrower_one() -> None:
    x = torch.randn(2, 5, 6)
    first = pair(Encoder(batch_first=True), (x,))[1]
    heads = [m.heads for m in first.modules() if isinstance(m, NarrowAttention)]
    masked, small, _ = pair(first, (x,))
    left = [m.heads for m in small.modules() if isinstance(m, NarrowAttention)]
    assert all({*a} > {*b} for a, b in zip(heads, left, strict=True))
    y = torch.randn(3, 4, 6, dtype=F64)
    for kwargs in ({}, {"pad": padding(3, 4, left=False)}, {"pad": padding(3, 4)}):
        agree(masked, small, y, **kwargs)
    each = torch.randn(3 * 4, 4, 4, dtype=F64)
    layers = [m.encoder.layers[0].self_attn.eval() for m in (masked, small)]
    z = torch.randn(3, 4, 16, dtype=F64)
    assert gap(*(layer(z, z, z, attn_mask=each) for layer in layers)) < 1e-10


def test_it_is_saved_and_opened_again(tmp_path: Path) -> None:
    _, small, _ = pair(Encoder(batch_first=True), (torch.randn(2, 5, 6),))
    x, pad = torch.randn(3, 4, 6, dtype=F64), padding(3, 4, left=False)
    for sparse in (False, True):
        path = prunus.save(small, tmp_path / f"{sparse}.safetensors", sparse=sparse)
        opened = prunus.load(path, Encoder(batch_first=True).double())
        again = prunus.load(path, prunus.load(path, Encoder(batch_first=True).double()))
        assert [m.heads for m in opened.modules() if isinstance(m, NarrowAttention)] == [
            m.heads for m in small.modules() if isinstance(m, NarrowAttention)
        ]
        small.eval()
        assert torch.equal(opened(x, pad), small(x, pad))
        assert torch.equal(again(x, pad), small(x, pad))
        with pytest.raises(InputError, match="does not fit"):
            prunus.load(path, Encoder(batch_first=True, layers=1).double())


@pytest.mark.parametrize(
    "heads",
    [
        {"encoder.layers.0.self_attn": []},
        {"encoder.layers.0.self_attn": [3, 1]},
        {"encoder.layers.0.self_attn": [1, 1]},
        {"encoder.layers.0.self_attn": [0, 4]},
        {"encoder.layers.0.self_attn": [True]},
        {"encoder.layers.0.self_attn": "01"},
        {"encoder.layers.0": [0]},
        {"__class__": [0]},
    ],
)
def test_heads_that_a_file_cannot_mean_are_refused(heads: dict[str, Any], tmp_path: Path) -> None:
    model = Encoder(batch_first=True)
    path = tmp_path / "model.safetensors"
    manifest = {
        "format": "prunus compact 3", "class": "Encoder", "attributes": [], "graphs": {},
        "dropped": [], "tied": {}, "sparse": {}, "heads": heads,
    }  # fmt: skip
    safetensors.torch.save_file(model.state_dict(), path, {"prunus": json.dumps(manifest)})
    with pytest.raises(InputError, match=r"does not fit|cannot stay"):
        prunus.load(path, model)
    assert not any(isinstance(m, NarrowAttention) for m in model.modules())


def test_a_training_run_goes_on_with_it_and_grows_back() -> None:
    torch.manual_seed(0)
    model = Encoder(batch_first=True, dropout=0.1)
    x, y = torch.randn(8, 5, 6), torch.randint(0, 3, (8, 5))
    kinds: list[type[nn.Module]] = []

    def train(m: nn.Module, run: Any) -> None:
        optimizer = torch.optim.AdamW(m.parameters(), 1e-3)
        run.attach(optimizer)
        for inputs, target in run.batches([(x, y)] * 4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(m(inputs).transpose(1, 2), target)
            loss.backward()
            optimizer.step()
            kinds.append(type(m.get_submodule("encoder.layers.0.self_attn")))

    def evaluate(m: nn.Module) -> float:
        m.eval()
        with torch.no_grad():
            right = m(x, padding(8, 5)).argmax(2) == y
        return float(right.float().mean())

    recipe = {"structure": "head", "target": 0.5, "rounds": 2, "retrain": "4it",
              "compact": "every_round", "allocation": "uniform"}  # fmt: skip
    parameter = model.encoder.layers[0].self_attn.in_proj_weight
    result = prunus.prune(model, recipe, train=train, evaluate=evaluate, example=x)
    assert NarrowAttention in kinds
    assert result.compaction is not None
    assert result.compaction.route == "attributes"
    assert result.model is model
    assert model.encoder.layers[0].self_attn.in_proj_weight is parameter
    assert parameter.shape == (24, 16)


def test_an_encoder_with_it_runs_in_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = Encoder(batch_first=True).eval()
    recipe = {"structure": "head", "target": 0.5, "allocation": "uniform"}
    x, pad = torch.randn(2, 5, 6), padding(2, 5, left=False)
    result = prunus.prune(model, {**recipe, "compact": "end"}, example=(x, pad))
    made = prunus.deploy(
        result.model, example=(x, pad), runtime="onnxruntime", folder=tmp_path, seconds=0.05
    )
    assert made.model is not None
    with torch.no_grad():
        expected = result.model(x, pad)
    assert gap(expected, torch.as_tensor(made.model(x, pad))) < 1e-4
