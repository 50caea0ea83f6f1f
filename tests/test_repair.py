"""What comes back after a cut and before any training: each repair by its own equation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import InputError
from prunus._common.activations import places, watch
from prunus._common.unfolding import columns, of_weight_rows, rows, weight_rows
from prunus.methods.catalog import names
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs._descent import aside
from prunus.methods.repairs.batch_norm import settle
from prunus.methods.repairs.least_squares import conjugate_gradients
from prunus.methods.repairs.least_squares import least_squares as fit
from prunus.methods.repairs.reconstruct import blocks_of
from prunus.methods.traits import trait

Batch = tuple[Tensor, Tensor]
REPAIRS = names("repairs")


def images(count: int, seed: int) -> Batch:
    """Four kinds of diagonal stripes under noise."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, 4, (count,), generator=generator)
    stripes = torch.stack([torch.eye(8).roll(2 * k, 0) for k in range(4)])
    return torch.randn(count, 1, 8, 8, generator=generator) + 2 * stripes[kinds][:, None], kinds


def network() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.Dropout(0.2))
        for i, o in ((1, 8), (8, 12))
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for seed in range(60):
        optimizer.zero_grad()
        loss(model, images(64, seed)).backward()
        optimizer.step()
    return model.eval()


CALIBRATION = [images(64, seed) for seed in range(100, 104)]
TEST = images(500, 999)


def error(model: nn.Module, reference: nn.Module) -> float:
    """Of the answers, against those before the cut."""
    with torch.no_grad():
        return float(F.mse_loss(model.eval()(TEST[0]), reference(TEST[0])))


RECONSTRUCT = {"name": "reconstruct", "blocks": ["0", "1"], "steps": 60}
CUTS: dict[str, dict[str, Any]] = {
    "channels": {"structure": "channel", "target": 0.5},
    "weights": {"target": 0.8},
    "neurons": {"structure": "neuron", "target": 0.5},
    "2:4": {"structure": "2:4", "allocation": "uniform"},
}


@pytest.mark.parametrize("cut", CUTS)
def test_each_repair_brings_answers_closer_and_leaves_zeros(trained: nn.Module, cut: str) -> None:
    errors = {}
    for repair in (None, "batch_norm", "least_squares", RECONSTRUCT):
        model = copy.deepcopy(trained)
        recipe = {**CUTS[cut], "repair": repair}
        result = prunus.prune(
            model, recipe, example=TEST[0][:2], calibration=CALIBRATION, loss=loss
        )
        errors[str(repair)] = error(model, trained)
        for name, mask in result.masks.items():
            parameter = model.get_parameter(name)
            assert not parameter[~mask.expand(parameter.shape)].any()
    if cut != "neurons":  # whose norms stay: of a channel that is zero they give another constant
        assert errors["batch_norm"] < errors["None"]
    assert errors["least_squares"] < min(errors["None"], errors["batch_norm"])
    best = errors["batch_norm" if cut == "weights" else "least_squares"]
    if cut == "neurons":  # fitted as well as they can be: steps leave them where they are
        assert errors[str(RECONSTRUCT)] == pytest.approx(best, rel=1e-3)
    else:
        assert errors[str(RECONSTRUCT)] < best


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 6), outputs=st.integers(1, 4), groups=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_rows_are_those_of_least_squares_on_what_stays(
    size: int, outputs: int, groups: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 40, size, generator=generator, dtype=torch.float64)
    y = torch.randn(groups, 40, outputs, generator=generator, dtype=torch.float64)
    start = torch.randn(groups, outputs, size, generator=generator, dtype=torch.float64)
    kept = (torch.rand(start.shape, generator=generator) < 0.7).double()
    ridge = 1e-3
    xx, xy = x.mT @ x, x.mT @ y
    found = conjugate_gradients(xx, xy, start, kept, ridge, 200)
    for g in range(groups):
        pull = ridge * float(xx[g].diagonal().mean())
        for row in range(outputs):
            stays = kept[g, row].bool()
            system = xx[g][stays][:, stays] + pull * torch.eye(int(stays.sum()))
            answer = xy[g, stays, row] + pull * start[g, row, stays]
            expected = torch.zeros(size, dtype=torch.float64)
            expected[stays] = torch.linalg.solve(system, answer)
            torch.testing.assert_close(found[g, row], expected, rtol=1e-6, atol=1e-8)


LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 3), (2, 7, 5)),
    (nn.Linear(5, 3, bias=False), (5,)),
    (nn.Conv1d(4, 8, 3, groups=4), (2, 4, 9)),
    (nn.Conv1d(4, 8, 3), (4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, (3, 2), padding="same", padding_mode="circular", dilation=2), (2, 4, 9, 8)),
    (nn.Conv3d(2, 4, 2, bias=False), (2, 2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 5, stride=3, padding=1, dilation=2, output_padding=2), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=(2, 3), groups=2), (4, 5, 6)),
    (nn.ConvTranspose3d(2, 4, 2, stride=(1, 2, 3), bias=False), (2, 2, 3, 2, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_layer_is_the_product_of_its_columns(layer: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    read = columns(layer, x)
    groups = len(read)
    matrix = weight_rows(layer, layer.weight)
    assert torch.equal(of_weight_rows(layer, matrix), layer.weight)
    product = read @ matrix.view(groups, -1, read.shape[-1]).mT
    if layer.bias is not None:
        product = product + layer.bias.view(groups, 1, -1)
    torch.testing.assert_close(product, rows(layer, layer(x)), rtol=1e-4, atol=1e-5)


class Decoder(nn.Module):
    """A convolution and a transposed one, which is told the size of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.last = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(4, 2, 1)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(self.down(x).relu(), output_size=x.shape[2:])
        return self.last(hidden.relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("structure", ["weight", "channel"])
@pytest.mark.parametrize("repair", ["bias_correction", "least_squares"])
def test_transposed_convolutions_are_repaired(structure: str, repair: str) -> None:
    torch.manual_seed(0)
    model, errors = Decoder(), []
    x = torch.randn(8, 3, 8, 8)  # one more row and column than the decoder gives by itself
    for one in (None, repair):
        masked = copy.deepcopy(model)
        prunus.prune(masked, {"target": 0.5, "structure": structure, "repair": one},
                     example=x[:2], calibration=[x[:4], x[4:]],
                     loss=lambda m, b: m(b).square().mean())  # fmt: skip
        errors.append(float((masked(x) - model(x)).detach().square().mean()))
    assert errors[1] < (0.8 if repair == "least_squares" else 1) * errors[0]


def test_what_is_whole_is_fitted_to_itself(trained: nn.Module) -> None:
    model = copy.deepcopy(trained)
    before = {n: t.clone() for n, t in model.state_dict().items() if "running" not in n}
    passes = [((x,), {}) for x, _ in CALIBRATION]
    frozen = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.train()  # with its norms in eval mode, which keep their statistics
    for norm in frozen:
        norm.eval()
    fit(RepairContext(model, trained, {}, lambda: passes))
    for name, tensor in before.items():
        torch.testing.assert_close(model.state_dict()[name], tensor)
    assert not any(norm.training for norm in frozen)
    assert model.training


@pytest.mark.parametrize("repair", ["least_squares", "reconstruct"])
def test_training_goes_on_from_the_answers_where_a_fit_ends(
    trained: nn.Module, repair: str
) -> None:
    """Batch norms that go by their batch give what they give by their statistics."""
    model, batch = copy.deepcopy(trained), images(512, 100)
    prunus.prune(model, {"structure": "neuron", "target": 0.6}, example=batch[0][:1])
    blocks = {"name": repair, "blocks": ["0", "1"], "steps": 10}
    how = blocks if repair == "reconstruct" else repair
    prunus.repair(model, [batch[0]], repair=how, reference=trained)
    with torch.no_grad():
        wanted = model.eval()(batch[0])
        for module in model.modules():
            module.train(isinstance(module, nn.BatchNorm2d))
        found = model(batch[0])
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        assert (model[0][1].weight[model[0][1].weight != 0] - trained[0][1].weight[
            model[0][1].weight != 0]).abs().max() > 1e-3  # fmt: skip


@given(st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_settled_norms_answer_as_they_did(seed: int) -> None:
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(3)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.1, 2)
    norm.weight.data[0] = 0
    x = 3 * torch.randn(64, 3) + 1
    wanted = norm.eval()(x).detach()
    settle(RepairContext(norm, None, {}, lambda: [((x,), {})]))
    torch.testing.assert_close(norm(x), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    torch.testing.assert_close(norm.running_var, x.var(0))


def test_a_norm_without_weights_or_that_is_not_called_stays_as_it_is() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.idle = nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(x)  # type: ignore[no-any-return]

    model = Odd().eval()
    before = copy.deepcopy(model.state_dict())
    settle(RepairContext(model, None, {}, lambda: [((torch.randn(8, 2),), {})]))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])
    with pytest.raises(InputError, match="batches of several items"):
        settle(RepairContext(nn.BatchNorm1d(2), None, {}, lambda: [((torch.ones(1, 2),), {})]))


def test_norms_that_share_their_scale_or_compute_it_stay_as_they_are() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.made = (nn.BatchNorm1d(2) for _ in range(3))
            self.two.weight = self.one.weight
            nn.utils.parametrizations.weight_norm(self.made)

        def forward(self, x: Tensor) -> Tensor:
            return self.made(self.two(self.one(x)))  # type: ignore[no-any-return]

    model, x = Odd().eval(), 3 * torch.randn(8, 2) + 1
    wanted = model(x).detach()
    settle(RepairContext(model, None, {}, lambda: [((x,), {})]))
    torch.testing.assert_close(model(x), wanted)
    assert model.one.weight.tolist() == [1, 1]


def test_a_removed_input_that_repeats_another_is_made_up_for_exactly() -> None:
    whole = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
    with torch.no_grad():
        whole[0].weight.copy_(torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]))
    model = copy.deepcopy(whole)
    masks = {"1.weight": torch.tensor([[True, False, True]])}
    with torch.no_grad():
        model[1].weight.mul_(masks["1.weight"])
    x = torch.randn(64, 3)
    prunus.repair(
        model, [x], repair={"name": "least_squares", "ridge": 1e-9}, reference=whole, masks=masks
    )
    torch.testing.assert_close(model(x), whole(x), rtol=1e-3, atol=1e-4)
    assert not model[1].weight[:, 1].any()


def test_parts_of_a_large_call_tell_what_the_whole_tells(
    trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for chunk in (2**24, 1):
        monkeypatch.setattr("prunus._common.unfolding.CHUNK", chunk)
        model = copy.deepcopy(trained)
        recipe = {**CUTS["channels"], "repair": "least_squares"}
        prunus.prune(model, recipe, example=TEST[0][:2], calibration=CALIBRATION, loss=loss)
        found.append(model.state_dict())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


def test_a_layer_that_is_called_twice_is_fitted_to_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.out = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.shared(self.shared(x)))

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(8, 4)
    place, _ = places(model, [((x,), {})])
    assert (place.name, place.calls) == ("shared", 2)
    seen: list[Tensor] = []
    watch(model, place, [((x,), {})], lambda read, _: seen.append(read))
    torch.testing.assert_close(seen[1], model.shared(x))
    assert not model.shared._forward_hooks


def test_blocks_are_the_outermost_that_repeat_or_those_that_are_named() -> None:
    layer = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)
    model = nn.Sequential(
        nn.Linear(4, 4),
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        nn.Linear(4, 2),
    )
    assert blocks_of(model, ()) == ["1.layers.0", "1.layers.1"]
    assert blocks_of(model, ["*.self_attn"]) == ["1.layers.0.self_attn", "1.layers.1.self_attn"]
    assert blocks_of(model, ["1", "1.layers.0"]) == ["1"]


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fails = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if self.fails and len(x) == 3:
            raise KeyError("of the model's own")
        return x.mean((2, 3))


@pytest.mark.parametrize("repair", sorted({*REPAIRS} - {"reconstruct"}))
def test_a_repair_that_fails_leaves_the_model_as_it_was(repair: str) -> None:
    model = Broken()
    before = copy.deepcopy(model.state_dict())
    model.fails = True
    x = torch.randn(8, 1, 6, 6)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        model.conv.weight[0].zero_()
    changed = copy.deepcopy(model.state_dict())
    reads = trait("repairs", repair, "NEEDS_LOSS")
    more: Any = {"loss": lambda m, b: m(b).square().sum()} if reads else {}
    with pytest.raises(KeyError, match="of the model's own"):
        prunus.repair(model, [x, x[:3]], repair=repair, reference=reference, **more)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, changed[name]), name
    assert model.training
    assert before.keys() == changed.keys()


def test_what_a_repair_lacks_is_said_before_anything_changes(trained: nn.Module) -> None:
    x, _ = CALIBRATION[0]
    with pytest.raises(InputError, match="pass reference"):
        prunus.repair(copy.deepcopy(trained), [x], repair="least_squares")
    with pytest.raises(InputError, match="no batch"):
        prunus.repair(copy.deepcopy(trained), [])
    with pytest.raises(InputError, match="did you mean 'batch_norm'"):
        prunus.repair(copy.deepcopy(trained), [x], repair="batchnorm")
    twin = copy.deepcopy(trained)
    with pytest.raises(InputError, match="name the blocks"):
        prunus.repair(twin, [x], repair="reconstruct", reference=trained)
    with pytest.raises(InputError, match="several items"):
        prunus.repair(nn.Sequential(nn.BatchNorm1d(2)), [torch.ones(1, 2)])
    with pytest.raises(InputError, match="give calibration"):
        prunus.prune(copy.deepcopy(trained), {"target": 0.5, "repair": "batch_norm"})
    with pytest.raises(InputError, match="use restore: keep"):
        prunus.Recipe.load(
            {
                "target": 0.5,
                "rounds": 2,
                "dense": "1ep",
                "repair": "bias_correction",
                "restore": "rewind",
            }
        )
    with pytest.raises(InputError, match="set rounds"):
        prunus.prune(
            copy.deepcopy(trained),
            {"target": 0.5, "retrain": "4it", "repair": "bias_correction"},
            train=lambda model, run: None,
            calibration=CALIBRATION,
            loss=loss,
        )
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    with pytest.raises(InputError, match=r"call prunus\.repair"):
        prunus.Pruner(trained, {"target": 0.5, "repair": "bias_correction"}, optimizer, steps=4)


@pytest.mark.parametrize("compact", ["none", "every_round"])
def test_a_run_that_is_stopped_ends_with_the_same_bits(
    trained: nn.Module, tmp_path: Path, compact: str
) -> None:
    recipe = {
        "structure": "channel", "target": 0.5, "rounds": 2, "retrain": "3it",
        "repair": "least_squares", "compact": compact,
    }  # fmt: skip

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        run.attach(optimizer)
        for batch in run.batches(CALIBRATION):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

    def ended(folder: Path | None, stop_at: int | None = None) -> dict[str, Tensor]:
        model, asked = copy.deepcopy(trained), [0]

        def stop() -> bool:
            asked[0] += 1
            return asked[0] == stop_at

        given: Any = {
            "train": train, "example": TEST[0][:2], "calibration": CALIBRATION, "loss": loss,
            "folder": folder, "evaluate": lambda m: -float(loss(m, TEST)),
        }  # fmt: skip
        if stop_at is not None:
            with pytest.raises(prunus.Interrupted):
                prunus.prune(model, recipe, should_stop=stop, **given)
            model = copy.deepcopy(trained)
        return prunus.prune(model, recipe, **given).model.state_dict()

    wanted = ended(None)
    found = ended(tmp_path, 1 if compact == "none" else 3)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("repair", ["bias_correction", "least_squares"])
def test_a_bias_that_layers_share_stays_since_it_is_fitted_to_one_of_them_only(
    repair: str,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].bias = model[0].bias
    before = model[0].bias.tolist()
    batches = [(torch.randn(64, 6), torch.zeros(64, dtype=torch.long)) for _ in range(2)]
    last = model[4].weight.clone(), model[4].bias.clone()
    prunus.prune(model, {"target": 0.5, "repair": repair}, calibration=batches,
                 loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]))  # fmt: skip
    assert model[0].bias.tolist() == before
    kept = model[4].weight != 0
    moved = not torch.equal(model[4].weight[kept], last[0][kept])
    assert moved or not torch.equal(model[4].bias, last[1])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())  # type: ignore[no-any-return]


class Again(nn.Module):
    """Blocks of which one runs three times, or two that share their matrices."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.one, self.two, self.out = Residual(), Residual(), nn.Linear(6, 2)
        self.shared = shared
        if shared:
            self.two.up.weight, self.two.down.weight = self.one.up.weight, self.one.down.weight

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1 if self.shared else 3):
            x = self.one(x)
        return self.out(self.two(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_learns_from_all_of_its_calls_and_not_what_it_shares(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Again(shared=shared)
    learned: dict[str, list[str]] = {}

    def noted(own: Any, masks: Any, loss: Any, **how: Any) -> None:
        learned[next(iter(own)).split(".")[0]] = sorted(own)

    monkeypatch.setattr("prunus.methods.repairs.reconstruct.descend", noted)
    sizes: list[int] = []
    kept = aside
    monkeypatch.setattr("prunus.methods.repairs.reconstruct.aside",
                        lambda number: sizes.append(number) or kept(number))  # fmt: skip
    batches = [(torch.randn(8, 6), torch.zeros(8, dtype=torch.long)) for _ in range(4)]
    prunus.prune(model, {"target": 0.5, "repair": "reconstruct"}, calibration=batches,
                 loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]))  # fmt: skip
    assert sizes == ([4, 4] if shared else [12, 4])
    every = ["down.bias", "down.weight", "up.bias", "up.weight"]
    wanted = [n for n in every if not shared or "bias" in n]
    assert learned == {name: [f"{name}.{n}" for n in wanted] for name in ("one", "two")}


@pytest.mark.parametrize("around", [nn.Sequential, nn.DataParallel])
@pytest.mark.parametrize("repair", ["batch_norm", "least_squares"])
def test_a_model_in_eval_mode_is_repaired_within_whatever_is_put_around_it(
    trained: nn.Module, around: Any, repair: str
) -> None:
    found = []
    for wrap in (lambda model: model, around):
        inner = copy.deepcopy(trained)
        prunus.prune(wrap(inner), {"target": 0.8, "repair": repair}, calibration=CALIBRATION[:2],
                     example=TEST[0][:2], loss=loss)  # fmt: skip
        found.append(inner.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


@pytest.mark.parametrize("repair", ["bias_correction", "least_squares"])
def test_a_unit_of_which_nothing_is_left_gets_no_bias_again(repair: str) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    masked = copy.deepcopy(whole)
    with torch.no_grad():
        masked[0].weight[:2] = 0
        masked[0].bias[:2] = 0
        masked[0].bias[5] = 0  # of a unit that stays
    prunus.repair(masked, [torch.randn(16, 4)], repair=repair, reference=whole)
    assert not masked[0].weight[:2].any()
    assert not masked[0].bias[:2].any()
    assert masked[0].bias[5] != 0


class Listed(nn.Module):
    """A block that runs three times, from a list that has it once or under three names."""

    def __init__(self, *, names: int) -> None:
        super().__init__()
        self.norm, self.last, self.out = nn.BatchNorm1d(6), Residual(), nn.Linear(6, 2)
        self.blocks = nn.ModuleList([Residual()] * names)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for place in range(3):
            x = self.blocks[place % len(self.blocks)](x)
        return self.out(self.last(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("repair", ["bias_correction", "least_squares", "reconstruct"])
def test_a_module_of_several_names_is_one_module_and_shares_nothing(repair: str) -> None:
    batches = [(torch.randn(8, 6), torch.zeros(8, dtype=torch.long)) for _ in range(4)]
    found = []
    for number in (1, 3):
        torch.manual_seed(0)
        model = Listed(names=number)
        prunus.prune(model, {"target": 0.5, "repair": repair}, calibration=batches,
                     loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]))  # fmt: skip
        found.append(dict(model.named_parameters()))
    assert found[0].keys() == found[1].keys()
    for name, parameter in found[0].items():
        torch.testing.assert_close(found[1][name], parameter)
