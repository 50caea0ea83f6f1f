"""A hidden width turned to principal directions: the model stays what it is, until it is cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

import prunus
from helpers import transformers
from prunus.cli.main import cli
from prunus.compaction import rotating
from prunus.errors import InputError, RunError
from prunus.recipe.schema import Recipe

WORDS = 11
X = torch.randint(0, WORDS, (4, 5), generator=torch.Generator().manual_seed(0))
ROTATED = {"structure": {"name": "hidden", "rotate": True}, "target": 0.5}


class Own(nn.Module):
    """An RMS norm as models write it; what it stores is the scale less ``less``."""

    less = 0.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = 1e-2

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (x * scale) * (self.less + self.weight)


class OnePlus(Own):
    less = 1.0


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "torch's": nn.RMSNorm,
    "torch's with eps": lambda n: nn.RMSNorm(n, eps=1e-2),
    "without a scale": lambda n: nn.RMSNorm(n, elementwise_affine=False),
    "own": Own,
    "scale 1 + w": OnePlus,
}


class Net(nn.Module):
    """A decoder without masks: embeddings, positions, attention, a gated branch, an untied head."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.RMSNorm, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(WORDS, width), nn.Parameter(torch.randn(1, 5, width))
        self.norms = nn.ModuleList(norm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 12), nn.Linear(4, width)
        self.up, self.gate = nn.Linear(width, 12), nn.Linear(width, 12, bias=False)
        self.down = nn.Linear(12, width)
        self.head = nn.Linear(width, WORDS)
        with torch.no_grad():
            for p in self.norms.parameters():
                p.add_(torch.randn_like(p) * 0.3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        x = x + self.branch(self.norms[1](x))
        return self.head(self.norms[2](x))

    def branch(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def pruned(model: nn.Module, recipe: Any = ROTATED, **more: Any) -> Any:
    return prunus.prune(model, recipe, **{"calibration": [X], "example": X, **more})


def train(model: nn.Module, run: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run.attach(optimizer)
    for _ in run.batches([None] * 3):
        optimizer.zero_grad()
        F.cross_entropy(model(X).flatten(0, 1), X.flatten()).backward()
        optimizer.step()


# --- the rotation itself


@pytest.mark.parametrize("kind", sorted(NORMS))
def test_a_turned_model_is_what_it_was(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(NORMS[kind]).double()
    before, expected = copy.deepcopy(model), model(X)
    seen: list[Tensor] = []
    monkeypatch.setattr("prunus.progressive.cut.turned", _keep(model, seen))
    pruned(model)
    assert torch.allclose(seen[0], expected, atol=1e-12)  # turned, and not cut yet
    assert not torch.allclose(seen[1], before.words.weight, atol=0.1)


def _keep(model: Net, seen: list[Tensor]) -> Callable[..., Any]:
    from prunus.progressive.rotation import turned

    def both(*args: Any) -> Any:
        found = turned(*args)
        seen[:] = [model(X).detach(), model.words.weight.detach().clone()]
        return found

    return both


def test_what_is_read_lies_along_the_axes_largest_first() -> None:
    inner, seen = Net(), []
    inner.down.register_forward_hook(lambda *_: None)
    variances = rotating.directions(torch.diag(torch.tensor([1.0, 4.0, 2.0])), torch.ones(3) > 0)[1]
    assert variances.tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    pruned(inner, {**ROTATED, "target": 0.2})
    for norm in inner.norms:
        norm.register_forward_hook(lambda _m, _x, y: seen.append(y.detach().reshape(-1, 8)))
    inner(X)
    rows = torch.cat(seen)
    variance = rows.square().mean(0)
    assert bool((variance[:-1] >= variance[1:] - 0.25).all())  # but for what the cut moved
    assert float(variance[0]) > 3 * float(variance[5])


def test_a_stream_of_few_directions_loses_all_others_and_nothing_else() -> None:
    model = Net(Own)
    basis = torch.linalg.qr(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))[0]
    project = basis @ basis.T
    with torch.no_grad():
        for table in (model.words.weight, model.places):
            table.copy_(table @ project)
        for layer in (model.out, model.down):
            layer.weight.copy_(project @ layer.weight)
            layer.bias.copy_(project @ layer.bias)
    dense, expected = copy.deepcopy(model), model(X)
    small = pruned(model, {**ROTATED, "compact": "end"}).model
    assert small.words.embedding_dim == 4
    assert torch.allclose(small(X), expected, atol=1e-5)
    by_score = pruned(dense, {"structure": "hidden", "target": 0.5, "compact": "end"}).model
    assert not torch.allclose(by_score(X), expected, atol=1e-1)


def test_removed_indices_stay_where_they_are() -> None:
    matrix, variances = rotating.directions(
        torch.diag(torch.tensor([1.0, 0.0, 3.0])), torch.tensor([True, False, True])
    )
    assert matrix.abs().tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert variances.tolist() == [0.75, 0.0, 0.25]


@pytest.mark.parametrize("compact", ["none", "every_round"])
def test_every_round_turns_again(compact: str) -> None:
    recipe = {**ROTATED, "compact": compact, "rounds": 2, "dense": "3it", "retrain": "3it"}
    result = pruned(Net(), recipe, train=train)
    assert result.rounds[-1].achieved == pytest.approx(0.5)
    assert any("turned to principal directions" in note for note in result.notes)
    assert result.model.words.embedding_dim == (8 if compact == "none" else 4)
    if compact == "none":
        zero = (result.model.words.weight == 0).all(0)
        assert int(zero.sum()) == 4


def test_a_convolution_that_writes_patches_turns_with_the_stream() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patch, self.first = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
            self.norm, self.head = Own(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
            return self.head(self.norm(x)[:, 0] + self.norm(x).mean(1))

    images = torch.randn(2, 3, 4, 4)
    result = pruned(Patches(), {**ROTATED, "compact": "end"}, calibration=[images], example=images)
    assert result.model.patch.out_channels == 4


def test_a_norm_whose_result_nobody_reads_keeps_its_scale() -> None:
    class Net2(Net):
        def forward(self, tokens: Tensor) -> Tensor:
            self.spare(self.words(tokens))
            return super().forward(tokens)

    model = Net2()
    model.spare = nn.RMSNorm(8)
    nn.init.uniform_(model.spare.weight)
    before = model.spare.weight.detach().clone()
    result = pruned(model, {**ROTATED, "target": 0.2})
    kept = result.masks["spare.weight"].flatten()
    assert torch.equal(model.spare.weight[kept], before[kept])


# --- what keeps it from being turned


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.words.weight


class SublayerNorm(Net):
    def branch(self, x: Tensor) -> Tensor:
        return self.norms[2](super().branch(x))


class ActivatedStream(Net):
    def branch(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Scaled(Net):
    """A scale for each index in front of the addition, as in CaiT."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x) * self.scale


class Depthwise(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(8, 8, 3, padding=1, groups=8)

    def branch(self, x: Tensor) -> Tensor:
        return self.mix(x.transpose(1, 2)).transpose(1, 2)


class Batched(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.BatchNorm1d(8)

    def branch(self, x: Tensor) -> Tensor:
        return self.mix(super().branch(x).transpose(1, 2)).transpose(1, 2)


class Biased(Own):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class Affine(Own):
    """One for no stored number that all indices share."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.weight * 2 + 3)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "layer norm": (lambda: Net(nn.LayerNorm), "subtracts a mean"),
    "tied head": (Tied, "words.weight and head.weight are one tensor.*untie"),
    "norm after a sublayer": (SublayerNorm, "has scaled, index by index"),
    "activation": (ActivatedStream, "relu acts on each index by itself"),
    "scale of a branch": (Scaled, "has scaled, index by index"),
    "depthwise": (Depthwise, "conv1d in mix works on each index by itself"),
    "batch norm": (Batched, "batch_norm in mix acts on each index by itself"),
    "norm with a bias": (lambda: Net(Biased), "has scaled, index by index"),
    "scaled twice": (lambda: Net(Affine), "for a second time"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_does_not_commute_is_refused_with_the_reason(kind: str) -> None:
    make, why = REFUSED[kind]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=f"can be turned exactly.*{why}"):
        pruned(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_tied_head_behind_a_norm_that_scales_all_alike_is_turned() -> None:
    model = Tied()
    nn.init.constant_(model.norms[2].weight, 0.7)
    small = pruned(model, {**ROTATED, "compact": "end"}).model
    assert small.head.weight is small.words.weight
    assert small.words.embedding_dim == 4
    model = Tied()
    nn.init.constant_(model.norms[2].weight, 0.7)
    with pytest.raises(InputError, match=r"one tensor.*training would make that scale differ"):
        pruned(model, {**ROTATED, "rounds": 1, "retrain": "3it"}, train=train)


def test_a_width_that_cannot_be_turned_stays_beside_one_that_can() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = Net(), nn.Sequential(nn.Linear(WORDS, 8), nn.LayerNorm(8))
            self.end = nn.Linear(8, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.end(self.b(self.a(tokens)))

    result = pruned(Both(), {**ROTATED, "compact": "end"})
    assert (result.model.a.words.embedding_dim, result.model.b[0].out_features) == (4, 8)
    assert any("what cannot be turned stays: b.0.weight (layer_norm" in n for n in result.notes)


# --- failures leave the model as it was


@pytest.mark.parametrize("broken", ["not orthogonal", "not folded"])
def test_a_wrong_rotation_is_caught_before_anything_changes(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    if broken == "not folded":
        monkeypatch.setattr(rotating, "_fold", lambda *_: None)
    else:
        right = rotating.directions
        monkeypatch.setattr(rotating, "directions", lambda *a: (right(*a)[0] * 1.01, right(*a)[1]))
    with pytest.raises(RunError, match="turned model does not equal the one before"):
        pruned(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_calibration_is_needed_and_may_come_with_a_loss() -> None:
    with pytest.raises(InputError, match=r"structure: rotate.*pass calibration"):
        prunus.prune(Net(), ROTATED, example=X)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    assert pruned(Net(), calibration=[(X, X)], loss=loss).rounds[-1].achieved == 0.5


def test_batches_that_read_nothing_are_refused_before_training() -> None:
    with pytest.raises(RunError, match="none of the layers that read the stream was seen to run"):
        pruned(
            Net(), {**ROTATED, "rounds": 1, "retrain": "3it"}, calibration=[X[:0]],
            train=lambda model, run: pytest.fail("it trained"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"criterion": "random"}, "criterion: with rotate the variance"),
        ({"restore": "rewind", "rounds": 2, "dense": "3it"}, "restore: rewind brings back"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        Recipe.load({**ROTATED, **changes})


def test_gradual_pruning_and_own_loops_are_refused() -> None:
    with pytest.raises(InputError, match=r"rotate turns all weights.*set rounds"):
        pruned(Net(), {**ROTATED, "retrain": "3it"}, train=train)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="your optimizer would not turn"):
        prunus.Pruner(model, ROTATED, optimizer, steps=4, calibration=[X], example=X)


# --- recipes, and models of others


def test_a_recipe_turns_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(_TASK)
    (tmp_path / "recipe.yaml").write_text(
        "task: task.py:task\nstructure: {name: hidden, rotate: true}\ncompact: end\n"
        "target: 0.5\nrounds: 1\ndense: 2ep\nretrain: 1ep\n"
    )
    folder = tmp_path / "run"
    done = CliRunner().invoke(cli, ["run", str(tmp_path / "recipe.yaml"), "--folder", str(folder)])
    assert done.exit_code == 0, done.output
    net = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8, eps=1e-3), nn.Linear(8, 2))
    opened = prunus.load(folder, model=net)
    assert opened[0].out_features == 4
    assert '"rotated"' in (folder / "journal.jsonl").read_text()


_TASK = """
import torch
from torch import nn
from helpers import tiny_task

def task():
    norm = lambda: nn.RMSNorm(8, eps=1e-3)
    return tiny_task(model=lambda: nn.Sequential(nn.Linear(8, 8), norm(), nn.Linear(8, 2)))
"""

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def decoder(name: str, **more: Any) -> nn.Module:
    """Of transformers, tiny, its norms not all alike."""
    package = transformers()
    torch.manual_seed(0)
    config = getattr(package, f"{name}{'Text' if name == 'Gemma3' else ''}Config")
    model = getattr(package, f"{name}ForCausalLM")(config(**SIZES, **more)).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "norm" in key:
                p.add_(torch.randn_like(p) * 0.2)
    assert isinstance(model, nn.Module)
    return model


IDS = {"input_ids": torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(0))}


@pytest.mark.filterwarnings("ignore")  # of the models' own code
@pytest.mark.parametrize("name", ["Llama", pytest.param("Qwen2", marks=pytest.mark.zoo),
                                  pytest.param("Gemma", marks=pytest.mark.zoo)])  # fmt: skip
def test_decoders_are_turned(name: str) -> None:
    model = decoder(name, tie_word_embeddings=False)
    result = pruned(model, calibration=[IDS], example=IDS)
    assert "turned to principal directions" in result.notes[-1]
    assert result.rounds[-1].achieved == 0.5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("Llama", {"tie_word_embeddings": True}, "one tensor"),
        pytest.param("Gemma3", {"head_dim": 4}, "has scaled", marks=pytest.mark.zoo),
    ],
)
def test_decoders_that_do_not_commute_are_refused(name: str, more: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        pruned(decoder(name, **more), calibration=[IDS], example=IDS)
