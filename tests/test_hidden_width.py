"""The hidden width: what a norm counts goes, and is counted on."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given
from torch import Tensor, nn

import prunus
from helpers import transformers
from prunus.cli.main import cli
from prunus.compaction.compact import Compact
from prunus.compaction.slicing.norms import (
    Wide,
    WideLayerNorm,
    Widening,
    WideRMSNorm,
    wide_class,
    width_of,
)
from prunus.compaction.slicing.rescaling import rescale
from prunus.errors import InputError
from prunus.graph.analysis import analyze
from prunus.methods.catalog import from_file
from stand_ins import EXAMPLES
from zoo import by_name

WORDS = 11
X = torch.randint(0, WORDS, (2, 5), generator=torch.Generator().manual_seed(0))
HIDDEN = {"structure": "hidden", "target": 0.5}


class OwnNorm(nn.Module):
    """An RMS norm as models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = 1e-2

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * (x * scale)


class OnePlus(OwnNorm):
    """Gemma's: the scale is 1 + w."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * (1 + self.weight)


class Shifted(OwnNorm):
    """With a bias, so that no factor behind it makes it right."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.bias = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class Literal(nn.Module):
    """Its eps stands in the code, where nothing can change it."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-3).sqrt()


class Written(Shifted):
    """A layer norm written out, as BERT's and ConvNeXt's authors did: x − μ is no zero."""

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / torch.sqrt(self.variance(centered) + self.epsilon)
        return self.weight * scaled + self.bias

    def variance(self, centered: Tensor) -> Tensor:
        return centered.pow(2).mean(-1, keepdim=True)


class WrittenAsSum(Written):
    def variance(self, centered: Tensor) -> Tensor:
        return (centered * centered).sum(-1, keepdim=True) / 8


class Last(nn.LayerNorm):
    """Of channels that come second, as ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer norm": nn.LayerNorm,
    "layer norm without scale": lambda n: nn.LayerNorm(n, elementwise_affine=False),
    "layer norm without bias": lambda n: nn.LayerNorm(n, bias=False),
    "rms norm": nn.RMSNorm,
    "rms norm, eps": lambda n: nn.RMSNorm(n, eps=1e-2),
    "own rms norm": OwnNorm,
    "scale 1 + w": OnePlus,
}
PLAIN = {"rms norm, eps", "own rms norm", "scale 1 + w"}
"""Those that are of their own class again in the end, by another scale and eps."""

GRAPHS: dict[str, Callable[[int], nn.Module]] = {
    "own norm with a bias": Shifted,
    "eps in the code": lambda _: Literal(),
    "layer norm written out": Written,
    "its variance as a sum": WrittenAsSum,
}


class Stream(nn.Module):
    """Embedding, a residual branch behind a norm, a norm, a head."""

    def __init__(self, norm: Callable[[int], nn.Module], width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, width)
        self.norm, self.last = norm(width), norm(width)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)
        self.head = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.last(x)).mean(1)


def train(model: nn.Module, run: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    run.attach(optimizer)
    for _ in run.batches([None] * 6):
        optimizer.zero_grad()
        F.cross_entropy(model(X), torch.tensor([0, 2])).backward()
        optimizer.step()


def norms_of(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model.norm, model.last


def wide(norm: nn.Module, width: int) -> nn.Module:
    Widening("", None, width).set(norm)
    return norm


# --- norms by hand


def test_a_layer_norm_counts_the_zeros_that_are_gone() -> None:
    """Of (2, 4, 0, 0): μ = 1.5, σ² = (0.25 + 6.25 + 2·2.25) / 4 = 2.75."""
    norm = wide(nn.LayerNorm(2, eps=0.0), 4)
    found = norm(torch.tensor([2.0, 4.0]))
    assert torch.allclose(found, torch.tensor([0.5, 2.5]) / 2.75**0.5)


def test_an_rms_norm_counts_the_zeros_that_are_gone() -> None:
    """Of (3, 4, 0, 0) the mean square is 25 / 4, its root 2.5."""
    found = wide(nn.RMSNorm(2, eps=0.0), 4)(torch.tensor([3.0, 4.0]))
    assert torch.allclose(found, torch.tensor([1.2, 1.6]))


def test_another_rms_norm_counts_them_by_its_eps_and_a_factor() -> None:
    """With eps 3.75: 25 / 4 + 3.75 = 10 = (25 / 2 + 7.5) · 2 / 4."""
    norm = OwnNorm(2)
    norm.epsilon = 7.5
    found = wide(norm, 4)(torch.tensor([3.0, 4.0]))
    assert torch.allclose(found, torch.tensor([3.0, 4.0]) / 10**0.5)


def test_group_norm_loses_whole_groups() -> None:
    """Channels (1, 3 | 5, 9): what is left of the first group is (−1, 1), whatever the second."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.Linear(1, 4), nn.GroupNorm(2, 4, eps=1e-9)
            self.down = nn.Linear(4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.norm(self.up(x)))

    model = Net()
    values = {
        "up.weight": torch.zeros(4, 1), "up.bias": torch.tensor([1.0, 3, 5, 9]),
        "down.weight": torch.tensor([[1.0, 2, 4, 8]]),
    }  # fmt: skip
    model.load_state_dict(model.state_dict() | values)
    keep = torch.tensor([True, True, False, False])
    masks = {
        "up.weight": keep[:, None], "up.bias": keep, "norm.weight": keep, "norm.bias": keep,
        "down.weight": keep[None],
    }  # fmt: skip
    small = prunus.compact(model, masks, torch.ones(3, 1)).model
    assert (small.norm.num_groups, small.norm.num_channels) == (1, 2)
    assert torch.allclose(small(torch.ones(1, 1)), torch.tensor([[1.0]]))  # −1·1 + 1·2


class Response(nn.Module):
    """ConvNeXt V2's global response normalization, between two pointwise layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(3, width), nn.Linear(width, 2)
        self.gamma, self.beta = (nn.Parameter(torch.rand(1, 1, width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.up(x))
        length = x.norm(p=2, dim=1, keepdim=True)
        response = length / (length.mean(-1, keepdim=True) + 1e-6)
        return self.down(self.gamma * (x * response) + self.beta + x)


def test_global_response_normalization_divides_by_the_old_mean() -> None:
    model, x = Response(), torch.randn(2, 5, 3)
    result = prunus.prune(model, HIDDEN, example=x)
    small = prunus.compact(result.model, result.masks, x).model
    assert small.up.weight.shape[0] == 4
    assert torch.allclose(small(x), result.model(x), atol=1e-6)


@given(
    kind=st.sampled_from(sorted(NORMS)),
    kept=st.lists(st.booleans(), min_size=2, max_size=9).filter(any),
    seed=st.integers(0, 9),
)
def test_a_wide_norm_and_its_gradients_are_those_of_zeros(
    kind: str, kept: list[bool], seed: int
) -> None:
    width, keep = len(kept), torch.tensor(kept)
    torch.manual_seed(seed)
    dense = NORMS[kind](width).double()
    small = NORMS[kind](int(keep.sum())).double()
    for own, whole in zip(small.parameters(), dense.parameters(), strict=True):
        whole.data.normal_()
        own.data = whole.data[keep]
    if hasattr(small, "epsilon"):
        small.epsilon *= width / int(keep.sum())
    wide(small, width)
    x = torch.randn(3, width, dtype=torch.float64) * keep
    zeros, left = x.clone().requires_grad_(), x[:, keep].clone().requires_grad_()
    expected, found = dense(zeros)[:, keep], small(left)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    aim = torch.randn(3, int(keep.sum()), dtype=torch.float64)
    (expected * aim).sum().backward()
    (found * aim).sum().backward()
    assert torch.allclose(left.grad, zeros.grad[:, keep], rtol=1e-9, atol=1e-9)
    for own, whole in zip(small.parameters(), dense.parameters(), strict=True):
        assert torch.allclose(own.grad, whole.grad[keep], rtol=1e-9, atol=1e-9)


# --- wide norms as modules


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, OwnNorm, Last])
def test_a_wide_norm_can_be_copied_pickled_and_taken_back(norm: type[nn.Module]) -> None:
    made = wide(norm(3), 5)
    assert isinstance(made, Wide)
    assert "counted=5" in repr(made)
    assert isinstance(made, norm)
    x = torch.randn(2, 3, 3)
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(again) is type(made)
        assert torch.equal(again(x), made(x))
    Widening("", None, 5).set(made, back=True)
    assert type(made) is norm
    assert not hasattr(made, "counted")


def test_wide_norms_of_torch_have_names_that_can_be_imported() -> None:
    assert wide_class(nn.LayerNorm) is WideLayerNorm
    assert wide_class(nn.RMSNorm) is WideRMSNorm
    assert width_of(wide(nn.LayerNorm(2), 6)) == 6
    assert width_of(nn.LayerNorm((2, 2))) is None  # more than a width


def test_a_subclass_that_calls_its_parent_is_wide_through_it() -> None:
    made = wide(Last(2, eps=0.0), 4)
    found = made(torch.tensor([[[2.0], [4.0]]]))
    assert torch.allclose(found.flatten(), torch.tensor([0.5, 2.5]) / 2.75**0.5)


@pytest.mark.parametrize("kind", sorted(NORMS))
def test_wide_norms_are_exported(kind: str) -> None:
    model = copy.deepcopy(narrow(kind).model)
    program = torch.export.export(model, (X,), strict=True)
    assert torch.allclose(program.module()(X), model(X), atol=1e-6)


class Pooled(nn.Module):
    """A PoolFormer block: its norm is one group of all channels and positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 3)
        self.norm, self.last = nn.GroupNorm(1, 8), nn.GroupNorm(1, 8, affine=False)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        normed = self.norm(x)
        mixed = F.avg_pool2d(normed, 3, 1, 1, count_include_pad=False) - normed
        return self.head(self.last(x + self.scale[:, None, None] * mixed).mean((-2, -1)))


def test_one_group_of_all_channels_counts_those_that_went(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert prunus.units(Pooled(), x).total == 0
    result = prunus.prune(Pooled(), HIDDEN, example=x)
    small = prunus.compact(result.model, result.masks, x)
    assert (small.route, small.model.patch.out_channels) == ("attributes", 4)
    assert small.error < 1e-12
    other = torch.randn(3, 3, 4, 12)
    assert torch.allclose(small.model(other), result.model(other), atol=1e-5)
    assert "WideGroupNorm(1, 4, " in repr(small.model.norm)
    assert "counted=8" in repr(small.model.norm)
    again = prunus.load(small.save(tmp_path / "small.safetensors"), model=Pooled())
    assert torch.equal(again(x), small.model(x))


def test_what_chance_makes_of_zeros_is_not_counted() -> None:
    class Net(Stream):
        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(F.rrelu(self.words(tokens) - 1, training=True).mean(-1, keepdim=True)
                             + self.last(self.words(tokens)))  # fmt: skip

    why = {p.why for p in prunus.units(Net(nn.LayerNorm), X, hidden=True).pinned}
    assert any("mean: looks at every index, and a cut does not make it zero" in w for w in why)


# --- RMS norms as plain ones again


def rms(norm: nn.Module, weight: float) -> nn.Sequential:
    """Of 8 indices 2 are left: a factor of 2 for the scale, of 4 for eps."""
    norm.weight.data.fill_(weight)
    model = nn.Sequential(norm)
    Widening("0", None, 8).set(model)
    return model


def test_a_scale_and_an_eps_make_an_rms_norm_plain() -> None:
    model = rms(nn.RMSNorm(2, eps=0.5), 3.0)
    expected = model(torch.tensor([1.0, 2.0]))
    assert [(c.name, c.before, c.after) for c in rescale(model)] == [
        ("counted", 8, None),
        ("eps", 0.5, 2.0),
    ]
    assert type(model[0]) is nn.RMSNorm
    assert model[0].weight.tolist() == [6.0, 6.0]
    assert torch.allclose(model(torch.tensor([1.0, 2.0])), expected)


@pytest.mark.parametrize(("norm", "expected"), [(OwnNorm, 6.0), (OnePlus, 7.0)])
def test_how_a_class_stores_its_scale_is_found_by_trying(
    norm: type[nn.Module], expected: float
) -> None:
    model = rms(norm(2), 3.0)
    before = model(torch.tensor([1.0, 2.0]))
    assert rescale(model)
    assert type(model[0]) is norm
    assert model[0].weight.tolist() == [expected, expected]  # 3 · 2, and (1 + 3) · 2 − 1
    assert torch.allclose(model(torch.tensor([1.0, 2.0])), before)


@pytest.mark.parametrize(
    "norm", [nn.RMSNorm(2), nn.RMSNorm(2, eps=0.5).half(), nn.LayerNorm(2), Shifted(2)],
    ids=["eps of the type", "float16", "layer norm", "a bias"],
)  # fmt: skip
def test_a_norm_that_no_scale_makes_plain_stays_wide(norm: nn.Module) -> None:
    model = rms(copy.deepcopy(norm), 3.0)
    assert rescale(model) == []
    assert isinstance(model[0], Wide)


def test_a_norm_whose_scale_others_read_stays_wide() -> None:
    model = nn.Sequential(*rms(nn.RMSNorm(2, eps=0.5), 3.0), nn.RMSNorm(2))
    model[1].weight = model[0].weight
    assert rescale(model) == []


# --- models


@functools.cache
def narrow(kind: str) -> Compact:
    """A stream of half its width, for tests that only look at it."""
    result = prunus.prune(Stream(NORMS[kind]), HIDDEN, example=X)
    return prunus.compact(result.model, result.masks, X)


@pytest.mark.parametrize("kind", sorted(NORMS))
def test_a_stream_loses_indices_and_keeps_its_class(kind: str, tmp_path: Path) -> None:
    small = narrow(kind)
    assert small.units == 4
    assert small.error < 1e-10
    assert small.effect > 1e-3
    assert type(small.model) is Stream
    assert small.model.words.weight.shape == (WORDS, 4)
    assert small.model.head.in_features == 4
    assert all(isinstance(m, Wide) is (kind not in PLAIN) for m in norms_of(small.model))
    again = prunus.load(small.save(tmp_path / "small.safetensors"), model=Stream(NORMS[kind]))
    assert torch.equal(again(X), small.model(X))
    assert repr(again) == repr(small.model)


@pytest.mark.parametrize("kind", sorted(GRAPHS))
def test_a_norm_that_cannot_be_wide_becomes_a_graph(kind: str, tmp_path: Path) -> None:
    result = prunus.prune(Stream(GRAPHS[kind]), HIDDEN, example=X)
    small = prunus.compact(result.model, result.masks, X)
    assert small.route in ("modules", "graph")
    assert small.error < 1e-10
    assert small.after["params"] < 0.7 * small.before["params"]
    again = prunus.load(small.save(tmp_path / "small.safetensors"), model=Stream(GRAPHS[kind]))
    assert torch.equal(again(X), small.model(X))


@pytest.mark.parametrize("kind", ["layer norm", "rms norm", "own rms norm"])
def test_training_goes_on_as_under_masks(kind: str) -> None:
    recipe = {**HIDDEN, "rounds": 2, "retrain": "6it", "target": 0.6}
    found = {}
    for compact in ("none", "every_round"):
        found[compact] = prunus.prune(
            Stream(NORMS[kind]).double(), {**recipe, "compact": compact}, train=train, example=X
        )
    masked, small = found["none"].model, found["every_round"].model
    assert small.words.weight.shape[1] == 4  # 0.6 of 8 leaves 3.2: never more than the target
    assert torch.allclose(small(X), masked(X), atol=1e-10)
    keep = found["none"].masks["last.weight"]
    factor = 1.0 if isinstance(small.last, Wide) else 2**0.5  # a plain one in the end: √(8 / 4)
    assert torch.allclose(
        small.last.weight, masked.last.weight[keep.flatten()] * factor, atol=1e-10
    )


def test_a_run_whose_last_round_is_rejected_has_its_plain_norms_back() -> None:
    result = prunus.prune(
        Stream(nn.LayerNorm),
        {**HIDDEN, "rounds": 1, "retrain": "2it", "compact": "every_round",
         "guard": {"max_drop": 0.1}},
        train=train, evaluate=lambda m: float(m.words.embedding_dim == 8), example=X,
    )  # fmt: skip
    assert result.rounds[-1].verdict == "rejected"
    assert type(result.model.norm) is nn.LayerNorm
    assert result.model.norm.normalized_shape == (8,)


def test_channel_takes_the_hidden_width_on_request_alone() -> None:
    plain = {"structure": "channel", "target": 0.5, "compact": "end"}
    model = prunus.prune(Stream(nn.LayerNorm), plain, example=X).model
    assert (model.words.embedding_dim, model.up.out_features) == (8, 6)
    asked = {**plain, "structure": {"name": "channel", "hidden": True}}
    model = prunus.prune(Stream(nn.LayerNorm), asked, example=X).model
    assert model.words.embedding_dim < 8
    assert model.up.out_features < 12
    assert isinstance(model.norm, WideLayerNorm)


def test_a_multiple_holds_of_the_width() -> None:
    asked = {**HIDDEN, "structure": {"name": "hidden", "multiple_of": 4}, "target": 0.3}
    model = prunus.prune(Stream(nn.LayerNorm, 16), {**asked, "compact": "end"}, example=X).model
    assert model.words.embedding_dim == 12


def test_torchs_encoder_layers_keep_their_fast_path_off() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.words, self.encoder = nn.Embedding(WORDS, 8), nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(8, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.encoder(self.words(tokens)).mean(1))

    result = prunus.prune(Net().eval(), HIDDEN, example=X)
    small = prunus.compact(result.model, result.masks, X)
    assert small.route == "attributes"
    with torch.no_grad():
        assert torch.allclose(small.model.eval()(X), result.model.eval()(X), atol=1e-5)


def test_torchs_transformer_remembers_its_new_width() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 3)
            self.both = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.words(tokens)
            return self.head(self.both(x, x).mean(1))

    result = prunus.prune(Net().eval(), HIDDEN, example=X)
    small = prunus.compact(result.model, result.masks, X)
    assert (small.route, small.model.both.d_model) == ("attributes", 4)


# --- refusals


def test_a_width_that_the_model_returns_stays() -> None:
    class Net(Stream):
        def forward(self, tokens: Tensor) -> Tensor:
            return self.last(self.words(tokens))

    with pytest.raises(InputError, match=r"no hidden width can be removed.*returns stays"):
        prunus.prune(Net(nn.LayerNorm), HIDDEN, example=X)
    why = {p.why for p in prunus.units(Net(nn.LayerNorm), X, hidden=True).pinned}
    assert "the model's output" in why


def test_what_a_cut_does_not_make_zero_is_not_counted() -> None:
    class Net(Stream):
        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.last(torch.cos(self.words(tokens))))  # cos 0 = 1

    why = {p.why for p in prunus.units(Net(nn.LayerNorm), X, hidden=True).pinned}
    assert (
        "layer_norm in last: its variance counts every index, and a cut does not make it zero"
        in why
    )


def test_without_the_request_a_norm_pins_what_it_counts() -> None:
    units = prunus.units(Stream(nn.LayerNorm), X)
    assert units.total == 12
    assert "layer_norm in norm: its variance counts every index" in {p.why for p in units.pinned}
    assert prunus.units(Stream(nn.LayerNorm), X, hidden=True).total == 20


def test_a_file_that_means_no_norm_is_refused(tmp_path: Path) -> None:
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    model = prunus.prune(Stream(nn.LayerNorm), {**HIDDEN, "compact": "end"}, example=X).model
    path = prunus.save(model, tmp_path / "small.safetensors")
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["prunus"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert manifest["format"] == "prunus compact 4"
    assert manifest["norms"] == {"norm": 8, "last": 8}
    for norms in ({"norm": 9}, {"up": 8}, {"gone": 8}, {"norm": 8.0}, {"": 8}):
        save_file(tensors, path, {"prunus": json.dumps({**manifest, "norms": norms})})
        with pytest.raises(InputError, match="has no norm"):
            prunus.load(path, model=Stream(nn.LayerNorm))


# --- the command line


def test_a_recipe_removes_a_hidden_width_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(_TASK)
    (tmp_path / "recipe.yaml").write_text(
        "task: task.py:task\nstructure: {name: hidden, multiple_of: 2}\ncompact: end\n"
        "target: 0.5\nrounds: 1\ndense: 2ep\nretrain: 1ep\n"
    )
    done = CliRunner().invoke(
        cli, ["run", str(tmp_path / "recipe.yaml"), "--folder", str(tmp_path / "run")]
    )
    assert done.exit_code == 0, done.output
    said = CliRunner().invoke(cli, ["units", f"{tmp_path / 'task.py'}:task", "--hidden"])
    assert "8 units  0.weight[0], 0.bias[0], 1.weight[0], 1.bias[0] and 1 more" in said.output
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    opened = prunus.load(tmp_path / "run", model=net)
    assert opened[0].out_features == 4
    assert isinstance(opened[1], WideLayerNorm)


_TASK = """
import torch
from torch import nn
from helpers import tiny_task

def task():
    return tiny_task(model=lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)))
"""


# --- models of others


class Logits(nn.Module):
    """A model of which only the scores are returned."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Any:
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids
        )
        return found.logits


WIDTHS = {"llama": "hidden_size", "gemma": "hidden_size", "bert": "hidden_size",
          "vit": "hidden_size", "gpt2": "n_embd", "convnext": "hidden_sizes", "t5": "d_model",
          "swin": ""}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of the models' own code
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("llama", "convnext") else pytest.mark.zoo) for n in WIDTHS],
)
def test_transformers_models_lose_their_hidden_width(name: str, tmp_path: Path) -> None:
    transformers()
    entry = by_name(name)
    model = entry.build().eval()
    model = Logits(model) if name == "t5" else model
    before = copy.deepcopy(model)
    result = prunus.prune(model, {**HIDDEN, "compact": "end"}, example=entry.example())
    small = result.model
    assert type(small) is type(model)
    ratio = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in before.parameters())
    assert ratio < 0.6
    key = WIDTHS[name]
    owner, dense = (m.model if name == "t5" else m for m in (small, before))
    if key:
        now, was = (getattr(config, key) for config in (owner.config, dense.config))
        now, was = (w if isinstance(w, list) else [w] for w in (now, was))
        assert all(0.4 * b <= a <= 0.6 * b for a, b in zip(now, was, strict=True))
    path = prunus.save(small, tmp_path / "small.safetensors")
    again = prunus.load(path, model=copy.deepcopy(before))
    with torch.no_grad():
        pairs = zip(*(_outputs(m.eval(), entry.example()) for m in (small, again)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    from prunus._common.inputs import arguments
    from prunus._common.nested import tensors_of

    args, kwargs = arguments(example)
    return [t for t in tensors_of(model(*args, **kwargs)) if t.is_floating_point()]


def test_embeddings_that_are_tied_to_the_head_lose_the_same_indices() -> None:
    model = Stream(OwnNorm)
    model.head = nn.Linear(8, WORDS, bias=False)
    model.head.weight = model.words.weight
    result = prunus.prune(model, {**HIDDEN, "compact": "end"}, example=X)
    assert result.model.head.weight is result.model.words.weight
    assert result.model.head.weight.shape == (WORDS, 4)


def test_analysis_says_which_classes_a_norm_counts() -> None:
    analysis = analyze(Stream(nn.LayerNorm), X, hidden=True)
    solved = analysis.solved
    assert int((solved.hidden & (solved.reason < 0)).sum()) == 8


def test_a_wide_model_saves_with_torch(tmp_path: Path) -> None:
    model = prunus.prune(Stream(OwnNorm), {**HIDDEN, "compact": "end"}, example=X).model
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(X), model(X))


def test_the_examples_transformer_loses_its_width_and_with_it_most_of_its_table() -> None:
    network = from_file(EXAMPLES / "movie_reviews" / "movie_reviews.py", "Transformer")
    torch.manual_seed(0)
    model, x = network(60), torch.randint(1, 60, (2, 48))
    before = {n: tuple(p.shape) for n, p in model.named_parameters()}
    asked = {"structure": {"name": "hidden", "multiple_of": 8}, "target": 0.5, "compact": "end"}
    small = prunus.prune(model, asked, example=x).model
    width = before["embedding.weight"][1]
    assert small.embedding.weight.shape == (60, width // 2)
    assert sum(isinstance(m, WideLayerNorm) for m in small.modules()) >= 4
    after = {n: tuple(p.shape) for n, p in small.named_parameters()}
    assert all(sum(after[n]) < sum(before[n]) for n in before if "norm" in n or "down" in n)
