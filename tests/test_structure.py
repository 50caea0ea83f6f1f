"""Channels and heads taken out of models: by recipe, by call, in rounds, from the command line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

import prunus
from helpers import needs
from prunus import costs
from prunus.cli.main import cli
from prunus.progressive.engine import PruningEngine
from prunus.tasks.digits import digits


class Net(nn.Module):
    """Two convolutions with batch norm, two linear layers."""

    def __init__(self, *, hard_coded: bool = False) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.hidden, self.out = nn.Linear(48, 20), nn.Linear(20, 10)
        self.hard_coded = hard_coded

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.first(x))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.second(x))), 2)
        x = x.view(-1, 48) if self.hard_coded else x.flatten(1)
        return self.out(F.relu(self.hidden(x)))


class Encoder(nn.Module):
    """A transformer encoder that classifies sequences."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x).mean(1))


IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def data() -> torch.utils.data.DataLoader[Any]:
    task = digits()
    images, classes = next(iter(task.validation))
    pairs = torch.utils.data.TensorDataset(images.double(), classes)
    return torch.utils.data.DataLoader(pairs, 50, shuffle=True)


def trainer(loader: Any, make: Any = None) -> Any:
    make = make or (lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9))

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = make(model.parameters())
        run.attach(optimizer)
        for images, classes in run.batches(loader):
            optimizer.zero_grad()
            F.cross_entropy(model(images), classes).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return train


ROUNDS = {
    "structure": "channel", "allocation": "uniform", "schedule": "linear", "rounds": 3,
    "dense": "8it", "retrain": "6it",
}  # fmt: skip


@pytest.mark.parametrize(
    ("figure", "allocation"),
    [*(("macs", allocation) for allocation in ("uniform", "global", "per_cost", "erk")),
     ("params", "per_cost"), ("bytes", "per_cost"), ("params", "erk")],
)  # fmt: skip
def test_a_bound_is_met_within_a_unit(figure: str, allocation: str) -> None:
    torch.manual_seed(0)
    model = Net()
    before = costs.measure(model, IMAGES)[figure]
    recipe = {"structure": "channel", "allocation": allocation, "target": {f"max_{figure}": 0.5},
              "compact": "end"}  # fmt: skip
    result = prunus.prune(model, recipe, example=IMAGES)
    after = costs.measure(result.model, IMAGES)[figure]
    assert before is not None
    assert after is not None
    widest = 2304 / 19592  # the macs of one unit of the first layer
    assert 0.5 - widest < after / before <= 0.5
    assert result.rounds[-1].achieved == pytest.approx(1 - after / before, abs=1e-9)
    assert result.cost_after[figure] == after


def test_an_absolute_bound_counts_the_macs_of_one_example() -> None:
    torch.manual_seed(0)
    model = Net()
    result = prunus.prune(
        model,
        {"structure": "channel", "target": {"max_macs": 10_000}, "compact": "end"},
        example=IMAGES,
    )
    macs = costs.measure(result.model, IMAGES)["macs"]
    assert macs is not None
    assert 10_000 - 2304 < macs <= 10_000


def test_sparsity_of_units_is_what_the_masks_say() -> None:
    torch.manual_seed(0)
    model = Net()
    weights = [n for n, p in model.named_parameters() if p.dim() > 1]
    total = sum(model.get_parameter(n).numel() for n in weights)
    result = prunus.prune(model, {"structure": "channel", "target": 0.6}, example=IMAGES)
    kept = sum(
        int(result.masks[n].expand(model.get_parameter(n).shape).sum())
        if n in result.masks
        else model.get_parameter(n).numel()
        for n in weights
    )
    assert result.sparsity == pytest.approx(1 - kept / total)
    assert 0.5 < result.sparsity <= 0.6


def test_a_layer_that_is_pinned_throughout_counts_on_neither_side_of_the_sparsity() -> None:
    torch.manual_seed(0)
    model, x = Encoder(), torch.randn(2, 5, 16)
    recipe = {"structure": "channel", "target": 0.5, "allocation": "uniform", "compact": "end"}
    pruner = PruningEngine(model, recipe, example=x)
    assert "out.weight" not in pruner.space.scored  # 16 normalized inputs, 3 outputs
    whole = sum(p.numel() for n, p in model.named_parameters() if n in pruner.space.scored)
    assert whole == sum(p.numel() for p in model.parameters() if p.dim() > 1) - 3 * 16
    result = prunus.prune(model, recipe, example=x)
    left = sum(
        p.numel() for n, p in result.model.named_parameters() if p.dim() > 1 and n != "out.weight"
    )
    assert result.sparsity == pytest.approx(1 - left / whole)


def test_multiples_and_minimum_widths_are_kept() -> None:
    torch.manual_seed(0)
    recipe = {
        "structure": {"name": "channel", "multiple_of": 4, "least": 4},
        "target": {"max_macs": 0.4},
        "compact": "end",
    }
    model = prunus.prune(Net(), recipe, example=IMAGES).model
    widths = [model.first.out_channels, model.second.out_channels, model.hidden.out_features]
    assert all(w % 4 == 0 and w >= 4 for w in widths), widths


def test_excluded_layers_keep_every_unit_that_touches_them() -> None:
    torch.manual_seed(0)
    recipe = {"structure": "channel", "target": 0.2, "compact": "end",
              "scope": {"exclude": ["second"]}}  # fmt: skip
    model = prunus.prune(Net(), recipe, example=IMAGES).model
    assert (model.first.out_channels, model.second.out_channels) == (8, 12)
    assert model.hidden.out_features < 20


@pytest.mark.parametrize(
    ("pattern", "first", "second", "hidden"),
    [
        ("norm1", True, False, False),  # scale, bias and statistics
        ("norm2.running_mean", False, True, False),
        ("hidden.bias", False, False, True),
        ("hidden.weight", False, True, True),
    ],
)
def test_whatever_a_pattern_excludes_keeps_the_units_that_touch_it(
    pattern: str, first: bool, second: bool, hidden: bool
) -> None:
    torch.manual_seed(0)
    recipe = {"structure": "channel", "target": 0.4, "compact": "end", "allocation": "uniform",
              "scope": {"exclude": [pattern]}}  # fmt: skip
    model = prunus.prune(Net(), recipe, example=IMAGES).model
    widths = (model.first.out_channels, model.second.out_channels, model.hidden.out_features)
    assert (widths[0] == 8, widths[1] == 12, widths[2] == 20) == (first, second, hidden)


class Shared(nn.Module):
    """One matrix under two names, each with a layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(4, 9), nn.Linear(4, 6)
        self.left, self.right = nn.Linear(9, 5), nn.Linear(9, 5)
        self.right.weight = self.left.weight
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.left(hidden) * self.right(hidden) + self.out(torch.relu(self.other(x)))


def test_a_tied_weight_is_excluded_under_either_name() -> None:
    for pattern in ("left.weight", "right.weight", "right"):
        torch.manual_seed(0)
        recipe = {"structure": "channel", "target": 0.3, "compact": "end",
                  "scope": {"exclude": [pattern]}}  # fmt: skip
        model = prunus.prune(Shared(), recipe, example=torch.ones(2, 4)).model
        assert (model.first.out_features, model.other.out_features < 6) == (9, True)
        masks = prunus.prune(Shared(), {"target": 0.5, "scope": recipe["scope"]}).masks
        assert masks.keys() == {"first.weight", "other.weight", "out.weight"}


@pytest.mark.parametrize("part", ["weight_v", "weight_g"])
def test_either_part_of_a_computed_weight_excludes_its_units(part: str) -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning, match="weight_norm"):
        first = nn.utils.weight_norm(nn.Linear(4, 8))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    recipe = {"structure": "channel", "target": 0.2, "scope": {"exclude": [f"0.{part}"]}}
    result = prunus.prune(model, recipe, example=torch.ones(2, 4))
    assert "0.weight_g" not in result.masks
    assert not bool(result.masks["2.bias"].all())


def test_patterns_that_match_nothing_or_leave_nothing_are_refused() -> None:
    for structure, pattern, near in (
        ("channel", "norm3", "norm2"),
        ("channel", "*.bias", "touches every unit"),
        ("weight", "norm1", "matches no prunable parameter"),
    ):
        recipe = {"structure": structure, "target": 0.2, "scope": {"exclude": [pattern]}}
        with pytest.raises(prunus.InputError, match=near):
            prunus.prune(Net(), recipe, example=IMAGES)


def test_shrinking_every_round_gives_the_masked_runs_weights() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        base, loader = Net(), data()
        ends = []
        for compact in ("end", "every_round"):
            recipe = {**ROUNDS, "target": {"max_macs": 0.3}, "compact": compact}
            result = prunus.prune(
                copy.deepcopy(base), recipe, train=trainer(loader), example=IMAGES.double()
            )
            ends.append(result)
        masked, shrunk = (dict(r.model.named_parameters()) for r in ends)
        assert {n: p.shape for n, p in masked.items()} == {n: p.shape for n, p in shrunk.items()}
        for name, value in masked.items():
            assert torch.allclose(value, shrunk[name], rtol=0, atol=1e-12), name
        macs = [r.cost["macs"] for r in ends[1].rounds]
        assert macs == sorted(macs, reverse=True)
        assert len(set(macs)) == len(macs)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("hard_coded", [False, True])
def test_a_rejected_round_grows_the_model_back(hard_coded: bool) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        model = Net(hard_coded=hard_coded)
        calls = []

        def evaluate(model: nn.Module) -> float:
            params = sum(p.numel() for p in model.parameters())
            calls.append(params)
            return 1.0 if params > 1500 else 0.0

        result = prunus.prune(
            model,
            {**ROUNDS, "rounds": 2, "target": {"max_params": 0.2}, "compact": "every_round",
             "guard": {"max_drop": 0.1}},
            train=trainer(data()), evaluate=evaluate, example=IMAGES.double(),
        )  # fmt: skip
        verdicts = [r.verdict for r in result.rounds]
        assert "rejected" in verdicts
        assert "accepted" in verdicts
        left = sum(p.numel() for p in result.model.parameters())
        good = [r for r in result.rounds if r.verdict == "accepted"][-1]
        assert left == good.cost["params"] > 1500
        assert result.model(IMAGES.double()).shape == (2, 10)
        assert (result.model is model) == (not hard_coded)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_error_while_shrinking_leaves_the_model_as_it_was_given() -> None:
    torch.manual_seed(0)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    train, loader = trainer([(IMAGES, torch.tensor([1, 2]))]), []

    def breaks(model: nn.Module, run: prunus.Run) -> None:
        if run.round == 2:
            raise RuntimeError("lost")
        loader.append(sum(p.numel() for p in model.parameters()))
        train(model, run)

    recipe = {**ROUNDS, "target": {"max_macs": 0.3}, "compact": "every_round"}
    with pytest.raises(RuntimeError, match="lost"):
        prunus.prune(model, recipe, train=breaks, example=IMAGES)
    assert loader[-1] < loader[0]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.first.out_channels, model.norm1.num_features) == (8, 8)


def test_heads_are_removed_whole_and_the_model_keeps_its_class() -> None:
    torch.manual_seed(0)
    model, x = Encoder(), torch.randn(2, 5, 16)
    result = prunus.prune(
        model, {"structure": "head", "target": 0.5, "compact": "end", "allocation": "uniform"},
        example=x,
    )  # fmt: skip
    assert result.compaction is not None
    assert result.compaction.route == "attributes"
    assert type(result.model) is Encoder
    attention = result.model.encoder.layers[0].self_attn
    assert attention.in_proj_weight.shape == (24, 16)
    assert result.model(torch.randn(3, 7, 16)).shape == (3, 3)


def test_compact_says_what_it_did_and_leaves_the_given_model_alone() -> None:
    torch.manual_seed(0)
    model = Net()
    result = prunus.prune(model, {"structure": "channel", "target": 0.5}, example=IMAGES)
    before = copy.deepcopy(model.state_dict())
    small = prunus.compact(model, result.masks, IMAGES)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert small.error < 1e-12
    assert small.effect > 1e-3
    assert small.after["params"] < small.before["params"]
    model.eval()
    assert torch.allclose(small.model.eval()(IMAGES), model(IMAGES), atol=1e-6)
    for word in ("route", "params", "macs", "bytes"):
        assert word in str(small)


def test_masks_of_single_weights_make_nothing_smaller() -> None:
    torch.manual_seed(0)
    model = Net()
    result = prunus.prune(model, {"target": 0.5})
    with pytest.raises(prunus.InputError, match="remove no whole unit"):
        prunus.compact(model, result.masks, IMAGES)


@pytest.mark.parametrize("hard_coded", [False, True])
def test_a_compact_model_is_saved_and_opened_without_pickle(
    hard_coded: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Net(hard_coded=hard_coded)
    result = prunus.prune(model, {"structure": "channel", "target": 0.5}, example=IMAGES)
    small = prunus.compact(model, result.masks, IMAGES)
    path = small.save(tmp_path / "small.safetensors")
    opened = prunus.load(path, None if hard_coded else Net())
    assert torch.equal(opened(IMAGES), small.model.eval()(IMAGES))
    if not hard_coded:
        assert opened.second.in_channels == small.model.second.in_channels
        with pytest.raises(prunus.InputError, match="pass the dense model"):
            prunus.load(path)
        with pytest.raises(prunus.InputError, match="does not fit"):
            prunus.load(path, Encoder())


def test_modules_that_became_graphs_are_saved_with_their_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Encoder(), torch.randn(2, 5, 16)
    result = prunus.prune(model, {"structure": "head", "target": 0.5}, example=x)
    small = prunus.compact(model, result.masks, x)
    opened = prunus.load(small.save(tmp_path / "small.safetensors"), Encoder())
    other = torch.randn(4, 3, 16)
    assert torch.equal(opened(other), small.model.eval()(other))


def test_a_run_folder_holds_the_compact_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    recipe = {"structure": "channel", "target": {"max_macs": 0.5}, "compact": "end"}
    prunus.prune(model, recipe, example=IMAGES, folder=tmp_path / "run")
    opened = prunus.load(tmp_path / "run" / "model.safetensors", Net())
    assert torch.equal(opened(IMAGES), model.eval()(IMAGES))


REFUSED = [
    ({"structure": "weight", "compact": "end"}, "use structure: channel or head"),
    ({"structure": "weight", "target": {"max_macs": 0.5}}, "zeros, which are stored"),
    ({"structure": "channel", "compact": "every_round"}, "needs rounds"),
    ({"structure": "channel", "target": {"max_macs": 0.5, "sparsity": 0.5}}, "cannot be combined"),
    ({"structure": "channel", "allocation": "per_neuron"}, "shares out single weights"),
    (
        {"structure": "channel", "compact": "every_round", "rounds": 2, "dense": "1ep",
         "retrain": "1ep", "restore": "rewind"},
        "would bring them back",
    ),
    ({"structure": "channel", "target": {"max_macs": 0.0001}}, "at most"),
    ({"structure": "channel", "target": {"max_macs": 10**9}}, "is not a bound"),
    ({"structure": "head", "target": 0.5}, "no attention head"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "message"), REFUSED)
def test_what_cannot_go_together_is_refused_with_the_reason(
    recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(prunus.InputError, match=message):
        prunus.prune(Net(), recipe, example=IMAGES)


def test_structures_found_by_analysis_ask_for_an_example() -> None:
    with pytest.raises(prunus.InputError, match="pass example="):
        prunus.prune(Net(), {"structure": "channel"})


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_optimizers_that_cannot_be_sliced_are_refused_before_training(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    if name == "Muon":
        needs(name)
    make = getattr(torch.optim, name)
    batch = [(torch.rand(4, 8), torch.tensor([0, 1, 0, 1]))]
    with pytest.raises(prunus.InputError, match=name):
        prunus.prune(
            model,
            {**ROUNDS, "target": 0.5, "compact": "every_round"},
            train=trainer(batch, lambda p: make(p, lr=0.01)),
            example=batch[0][0],
        )


def test_the_command_lists_units_and_reasons(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["units", "digits"])
    assert done.exit_code == 0
    assert "112 units" in done.output
    assert "positions in space" in done.output
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)), "
        "torch.ones(1, 3)\n"
    )
    done = CliRunner().invoke(cli, ["units", f"{tmp_path}/mine.py:make", "--json"])
    assert done.exit_code == 0, done.output
    assert '"units": 5' in done.output


def test_a_recipe_runs_from_the_command_line_and_reports_the_smaller_model(tmp_path: Path) -> None:
    changes = ["structure=channel", "target={max_macs: 0.5}", "compact=every_round", "rounds=2",
               "schedule=linear", "dense=2ep", "retrain=1ep"]  # fmt: skip
    done = CliRunner().invoke(cli, ["run", "iterative", *changes, "--folder", f"{tmp_path}/run"])
    assert done.exit_code == 0, done.output
    assert "verified" in done.output
    assert "of the macs gone (requested 0.5000)" in done.output
    assert (tmp_path / "run" / "model.safetensors").is_file()


class Residual(nn.Module):
    """Branches beside an identity, one of which the model hardly needs."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(3)
        )
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return self.out(x)


def test_residual_branches_are_dropped_and_the_file_knows_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(3, 8)
    with torch.no_grad():
        for parameter in model.branches[1].parameters():
            parameter.mul_(0.01)
    structure = {"name": "layer", "modules": ["branches.*"]}
    result = prunus.prune(
        model,
        {"structure": structure, "target": 0.34, "compact": "end",
         "scope": {"include": ["branches.*"]}},
        example=x, folder=tmp_path / "run",
    )  # fmt: skip
    assert result.compaction is not None
    assert result.compaction.error == 0
    assert sum(1 for _ in result.model.branches[1].parameters()) == 0
    assert result.cost_after["macs"] == 2 * 2 * 8 * 12 + 16
    opened = prunus.load(tmp_path / "run" / "model.safetensors", Residual())
    assert torch.equal(opened(x), result.model.eval()(x))


def test_gradual_pruning_ends_compact() -> None:
    torch.manual_seed(0)
    batch = [(IMAGES, torch.tensor([1, 2]))] * 8
    recipe = {"structure": "channel", "target": {"max_macs": 0.5}, "compact": "end",
              "retrain": "8it"}  # fmt: skip
    result = prunus.prune(Net(), recipe, train=trainer(batch), example=IMAGES)
    assert result.compaction is not None
    after, before = result.cost_after["macs"], result.cost_before["macs"]
    assert after is not None
    assert before is not None
    assert after <= 0.5 * before


def test_a_loop_of_ones_own_is_told_to_compact_afterwards() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = {"structure": "channel", "target": 0.5}
    with pytest.raises(prunus.InputError, match="after training"):
        prunus.Pruner(model, {**recipe, "compact": "end"}, optimizer, steps=4, example=IMAGES)
    pruner = prunus.Pruner(model, recipe, optimizer, steps=4, example=IMAGES)
    for _ in range(4):
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        optimizer.step()
    assert prunus.compact(model, pruner.masks, IMAGES).after["params"] < 2186


def test_the_same_dimensions_of_every_head_can_go_instead_of_whole_heads() -> None:
    torch.manual_seed(0)
    model, x = Encoder(), torch.randn(2, 5, 16)
    recipe = {"structure": {"name": "channel", "heads": "dims"}, "target": 0.3,
              "allocation": "uniform", "compact": "end"}  # fmt: skip
    result = prunus.prune(model, recipe, example=x)
    rows = result.model.encoder.layers[0].self_attn.in_proj_weight.shape[0]
    assert rows < 48
    assert rows % 12 == 0  # three projections of four heads
    assert result.compaction is not None
    assert result.compaction.error < 1e-10


def test_whole_heads_are_taken_singly_whatever_multiple_channels_come_in() -> None:
    from prunus.graph.analysis import analyze
    from prunus.methods.structures.channel import channel
    from prunus.pruning.scope import find_layers

    model = nn.TransformerEncoderLayer(32, 4, dim_feedforward=48, batch_first=True).eval()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    found = analyze(model, torch.randn(2, 5, 32))
    layers = find_layers(model, coupled=True)
    groups = channel(layers, shapes, found, multiple_of=8)
    assert {(g.units, g.multiple_of) for g in groups} >= {(4, 1), (48, 8)}
