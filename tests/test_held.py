"""A model that is called sparse is: whoever writes to its weights is held, or named."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunus
from prunus.errors import InputError, RunError
from prunus.pruning.followers import Followers
from prunus.pruning.optimizers import Together, _bits
from prunus.pruning.zeroing import zeroer

STEPS = 20
INPUTS = torch.randn(32, 10, generator=torch.Generator().manual_seed(1))
CLASSES = torch.arange(32) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 3))


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def step(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    nn.functional.cross_entropy(model(INPUTS), CLASSES).backward()
    for optimizer in optimizers:
        optimizer.step()


def left(model: nn.Module, masks: prunus.types.Masks) -> int:
    """Values where weights are removed."""
    return sum(int((model.get_parameter(n)[~m] != 0).sum()) for n, m in masks.items())


@contextmanager
def told(text: str) -> Iterator[None]:
    with pytest.warns(UserWarning, match=text):
        yield


# --- averages


def torchs_average(model: nn.Module) -> tuple[Any, Callable[[], object], Callable[[str], Tensor]]:
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    return ema, lambda: ema.update_parameters(model), ema.module.get_parameter


def plain_average(model: nn.Module) -> tuple[Any, Callable[[], object], Callable[[str], Tensor]]:
    """Every step's mean so far, as for stochastic weight averaging."""
    swa = AveragedModel(model)
    return swa, lambda: swa.update_parameters(model), swa.module.get_parameter


def a_deep_copy(model: nn.Module) -> tuple[Any, Callable[[], object], Callable[[str], Tensor]]:
    twin = copy.deepcopy(model).requires_grad_(False)

    def update() -> None:
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 0.1)

    return twin, update, twin.get_parameter


def a_shadow(model: nn.Module) -> tuple[Any, Callable[[], object], Callable[[str], Tensor]]:
    """Tensors by name, as many write it by hand."""
    shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update() -> None:
        for name, p in model.named_parameters():
            shadow[name].mul_(0.9).add_(p.detach(), alpha=0.1)

    return shadow, update, shadow.__getitem__


def a_shadow_made_anew(
    model: nn.Module,
) -> tuple[Any, Callable[[], object], Callable[[str], Tensor]]:
    shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update() -> None:
        for name, p in model.named_parameters():
            shadow[name] = 0.9 * shadow[name] + 0.1 * p.detach()

    return shadow, update, shadow.__getitem__


def by_data_alone(model: nn.Module) -> tuple[Any, Callable[[], object], Callable[[str], Tensor]]:
    """What torch does not count as a change of the parameter."""
    twin = copy.deepcopy(model)

    def update() -> None:
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.data = 0.9 * mine.data + 0.1 * theirs.data

    return twin, update, twin.get_parameter


def in_half(model: nn.Module) -> tuple[Any, Callable[[], object], Callable[[str], Tensor]]:
    twin = copy.deepcopy(model).bfloat16()

    def update() -> None:
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.data.lerp_(theirs.data.bfloat16(), 0.1)

    return twin, update, twin.get_parameter


AVERAGES = [
    torchs_average, plain_average, a_deep_copy, a_shadow, a_shadow_made_anew, by_data_alone, in_half
]  # fmt: skip


@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_that_is_named_is_as_sparse_as_the_model(average: Any) -> None:
    model = net()
    optimizer = sgd(model)
    ema, update, get = average(model)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS, copies=[ema])
    for _ in range(STEPS):
        step(model, optimizer)
        update()
    pruner.finish()
    assert pruner.sparsity == pytest.approx(0.8, abs=0.01)
    for name, mask in pruner.masks.items():
        assert not get(name)[~mask].any()
        assert get(name)[mask].all()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_that_nobody_named_is_told_of_at_the_end(average: Any, when: str) -> None:
    model = net()
    optimizer = sgd(model, 0.01)
    made = average(model) if when == "before" else None
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    _, update, _ = made or average(model)
    for _ in range(STEPS):
        step(model, optimizer)
        update()
    with told(r"copies of '0\.weight'.*pass such copies to copies="):
        pruner.finish()


@pytest.mark.parametrize("rounds", [None, 2])
@pytest.mark.parametrize(
    ("average", "named"), [*((a, False) for a in AVERAGES), (torchs_average, True)]
)
def test_an_average_in_a_run_is_held_where_it_is_attached_and_else_told_of(
    average: Any, named: bool, rounds: int | None
) -> None:
    made: list[Any] = []

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = sgd(model, 0.01)
        made[:] = made or average(model)
        run.attach(optimizer, **({"ema": made[0]} if named else {}))
        for _ in run.batches([0] * STEPS):
            step(model, optimizer)
            made[1]()

    recipe = {"target": 0.8, "rounds": rounds, "retrain": "1ep",
              "schedule": "linear" if rounds else "cubic"}  # fmt: skip
    result = prunus.prune(net(), recipe, train=train)
    notes = [text for text in result.notes if "holds copies of '0.weight'" in text]
    assert len(notes) == (not named)
    assert any(made[2](n)[~m].any() for n, m in result.masks.items()) == (not named)


def test_an_average_that_nobody_holds_any_more_is_none() -> None:
    model = net()
    optimizer = sgd(model, 0.01)
    gc.collect()
    gc.disable()  # it would find the cycle at a time of its own
    try:
        pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
        ema, update, get = torchs_average(model)
        ema.itself = [ema]
        for _ in range(STEPS):
            step(model, optimizer)
            update()
        del ema, update, get
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pruner.finish()
    finally:
        gc.enable()


def test_a_list_in_the_place_of_one_that_is_gone_makes_no_average_of_what_it_holds() -> None:
    model = net()
    optimizer = sgd(model, 0.01)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    gone = [p.detach().clone() for p in model.parameters()]
    for _ in range(STEPS // 2):
        step(model, optimizer)
    copies = tuple(value.clone() for value in gone)
    del gone
    kept = [*copies]  # where the other list was, if nobody holds that
    for _ in range(STEPS // 2):
        step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.finish()
    assert len(kept) == 4


def test_what_a_run_keeps_itself_is_nobodys_average() -> None:
    best: list[Any] = []

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        run.attach(optimizer, None, scaler=None)
        best.append(copy.deepcopy(model))
        for _ in run.batches([0] * STEPS):
            optimizer.zero_grad()
            run.distill((INPUTS, CLASSES)).backward()
            optimizer.step()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    recipe = {"target": 0.8, "dense": "1ep", "retrain": "1ep", "rounds": 3, "schedule": "linear",
              "teacher": "dense", "restore": {"name": "rewind", "k": "2it"}}  # fmt: skip
    result = prunus.prune(net(), recipe, train=train, loss=loss)
    assert not [text for text in result.notes if "holds copies" in text]


def test_what_has_no_state_is_not_attached() -> None:
    def train(model: nn.Module, run: prunus.Run) -> None:
        run.attach(sgd(model), ema={"0.weight": model.get_parameter("0.weight")})

    with pytest.raises(InputError, match=r"run\.attach: ema is a dict, which has no state_dict"):
        prunus.prune(net(), {"target": 0.5, "retrain": "2it"}, train=train)


def test_what_only_looks_like_the_model_is_not_told_of() -> None:
    """A dense twin in training, a snapshot of the model, accumulators of gradients."""
    model, twin = net(), net()
    optimizer, other = sgd(model), sgd(twin)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    best = copy.deepcopy(model)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    squares = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for _ in range(STEPS):
        step(model, optimizer)
        step(twin, other)
        for name, p in model.named_parameters():
            assert p.grad is not None
            squares[name].addcmul_(p.grad, p.grad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.finish()
    assert all(t.all() for t in (best[0].weight, kept["0.weight"], twin[0].weight))


def test_a_copy_that_is_none_is_refused_by_name() -> None:
    model = net()
    for wrong in (nn.Linear(10, 24), {"0.weight": torch.ones(2, 2)}, [1]):
        masks = {"0.weight": torch.rand(24, 10) > 0.5}
        with pytest.raises(InputError, match="copies"):
            prunus.enforce(model, masks, sgd(model), copies=[wrong])  # type: ignore[list-item]


Fit = Callable[[list[Any], int], nn.Module]


@pytest.fixture
def fit() -> Fit:
    """Train a LightningModule for so many epochs, with callbacks in this order."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

    def fitted(callbacks: list[Any], epochs: int) -> nn.Module:
        model, data = Module(), torch.utils.data.TensorDataset(INPUTS, CLASSES)
        trainer = pl.Trainer(
            max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=8))
        return model

    return fitted


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["WeightAveraging", "StochasticWeightAveraging"])
def test_averages_of_lightnings_callbacks_are_held(kind: str, first: bool, fit: Fit) -> None:
    from lightning.pytorch import callbacks

    from prunus.integrations.lightning import PruneCallback

    settings = {"swa_lrs": 0.01, "swa_epoch_start": 2} if kind[0] == "S" else {}
    own, other = PruneCallback({"target": 0.8}), getattr(callbacks, kind)(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning's own: torch's deprecations, workers
        warnings.filterwarnings("error", ".*(removed weights|weights were removed)")
        model = fit([own, other] if first else [other, own], 5)
    assert own.pruner is not None
    assert own.pruner.sparsity == pytest.approx(0.8, abs=0.01)
    assert left(model, own.pruner.masks) == 0


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("event", ["on_train_end", "on_fit_end"])
def test_an_average_that_any_callback_copies_back_is_told_of_and_zero(
    event: str, first: bool, fit: Fit
) -> None:
    import lightning.pytorch as pl

    from prunus.integrations.lightning import PruneCallback

    class Average(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.kept = {k: v.clone() for k, v in pl_module.state_dict().items()}

    setattr(Average, event, lambda self, trainer, module: module.load_state_dict(self.kept))
    own, other = PruneCallback({"target": 0.8}), Average()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = fit([own, other] if first else [other, own], 2)
    assert sum("removed weights of 'net.0.weight'" in str(w.message) for w in caught) == 1
    assert own.pruner is not None
    assert left(model, own.pruner.masks) == 0


# --- writes outside optimizer.step()


def by_copying(model: nn.Module, dense: nn.Module) -> None:
    with torch.no_grad():
        for p, q in zip(model.parameters(), dense.parameters(), strict=True):
            p.copy_(q)


def by_data(model: nn.Module, dense: nn.Module) -> None:
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        p.data = q.data.clone()


def by_loading(model: nn.Module, dense: nn.Module) -> None:
    model.load_state_dict(dense.state_dict())


def by_assigning(model: nn.Module, dense: nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(dense.state_dict()), assign=True)


def by_new_parameters(model: nn.Module, dense: nn.Module) -> None:
    for name, p in dense.named_parameters():
        path, _, key = name.rpartition(".")
        setattr(model.get_submodule(path), key, nn.Parameter(p.detach().clone()))


def by_an_optimizer_without_hooks(model: nn.Module, dense: nn.Module) -> None:
    with torch.no_grad():
        for p, q in zip(model.parameters(), dense.parameters(), strict=True):
            p.sub_(0.5 * (p - q))


IN_PLACE = [by_copying, by_data, by_loading, by_an_optimizer_without_hooks]
WAYS = [*IN_PLACE, by_assigning, by_new_parameters]


def half_way(way: Any) -> tuple[nn.Module, torch.optim.Optimizer, prunus.Pruner]:
    model = net()
    dense, optimizer = copy.deepcopy(model), sgd(model)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    for _ in range(STEPS // 2):
        step(model, optimizer)
    way(model, dense)
    assert left(model, pruner.masks)
    return model, optimizer, pruner


@pytest.mark.parametrize("way", IN_PLACE)
def test_weights_that_someone_else_wrote_are_held_at_the_next_step(way: Any) -> None:
    model, optimizer, pruner = half_way(way)
    for _ in range(STEPS // 2):
        step(model, optimizer)
        assert left(model, pruner.masks) == 0
    pruner.finish()


@pytest.mark.parametrize("way", [by_assigning, by_new_parameters])
def test_a_parameter_that_the_optimizer_does_not_have_ends_the_next_step(way: Any) -> None:
    model, optimizer, _ = half_way(way)
    with pytest.raises(RunError, match=r"'0\.weight' is another tensor.*without assign"):
        step(model, optimizer)


@pytest.mark.parametrize("way", [by_assigning, by_new_parameters])
def test_a_new_optimizer_for_new_parameters_is_held(way: Any) -> None:
    model, _, pruner = half_way(way)
    other = sgd(model)
    for _ in range(3):
        step(model, other)
        assert left(model, pruner.masks) == 0
    grads = [(model.get_parameter(n).grad, m) for n, m in pruner.masks.items()]
    assert all(g is not None and not g[~m].any() for g, m in grads)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("event", ["finish", "state"])
def test_weights_that_someone_wrote_last_are_named_and_zero_again(way: Any, event: str) -> None:
    model, _, pruner = half_way(way)
    with told(r"removed weights of '0\.weight' and 1 more were not zero"):
        pruner.finish() if event == "finish" else pruner.state_dict()
    assert left(model, pruner.masks) == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("finished", [False, True])
def test_a_file_of_a_model_that_is_no_longer_sparse_is_told_of(
    way: Any, finished: bool, tmp_path: Path
) -> None:
    model = net()
    dense, optimizer = copy.deepcopy(model), sgd(model)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    for _ in range(STEPS):
        step(model, optimizer)
    if finished:
        pruner.finish()
    prunus.save(model, tmp_path / "sparse.safetensors")
    way(model, dense)
    with told("saved was pruned, and '0.weight' and 1 more has values again"):
        prunus.save(model, tmp_path / "dense.safetensors")


def by_prune(model: nn.Module) -> None:
    prunus.prune(model, {"target": 0.8})


def by_a_run(model: nn.Module) -> None:
    def train(model: nn.Module) -> None:
        step(model, sgd(model))

    prunus.prune(model, {"target": 0.8, "rounds": 1}, train=train)


def by_enforce(model: nn.Module) -> None:
    masks = prunus.prune(net(), {"target": 0.8}).masks
    prunus.enforce(model, masks, sgd(model))()


@pytest.mark.parametrize("pruned", [by_prune, by_a_run, by_enforce])
def test_a_training_that_nobody_watches_is_told_of_when_saved(pruned: Any, tmp_path: Path) -> None:
    model = net()
    pruned(model)
    prunus.save(model, tmp_path / "sparse.safetensors")
    step(model, sgd(model))
    with told("saved was pruned, and '0.weight' and 1 more has values again"):
        prunus.save(model, tmp_path / "dense.safetensors")


def test_a_pruning_that_began_anew_is_not_measured_by_the_one_before(tmp_path: Path) -> None:
    model = net()
    prunus.prune(model, {"target": 0.8})
    with torch.no_grad():
        model[0].weight.add_(1)
    pruner = prunus.Pruner(model, {"target": 0.5}, sgd(model), steps=STEPS)
    prunus.save(model, tmp_path / "dense.safetensors")  # warnings are errors here
    for _ in range(STEPS):
        step(model, *pruner._engine.enforcer.optimizers)
    pruner.finish()
    prunus.save(model, tmp_path / "sparse.safetensors")


# --- the model itself changes


def a_norm(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model[0])


def a_computed_weight(model: Any) -> None:
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())


def a_plain_tensor(model: Any) -> None:
    weight = model[0].weight
    del model[0].weight
    model[0].weight = weight.data


@pytest.mark.parametrize("change", [a_norm, a_computed_weight, a_plain_tensor])
def test_a_weight_that_is_gone_ends_the_next_step_and_no_other_training(change: Any) -> None:
    model, other = net(), net()
    optimizer = sgd(model)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    step(model, optimizer)
    change(model)
    step(other, sgd(other))
    with pytest.raises(RunError, match=r"'0\.weight' is pruned, and not in the model any more"):
        step(model, optimizer)
    with pytest.raises(RunError, match=r"'0\.weight' is pruned"):
        pruner.finish()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_module_that_took_anothers_place_is_found_at_the_next_step(frozen: bool) -> None:
    model: Any = net()
    optimizer = sgd(model)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    step(model, optimizer)
    model[0] = nn.Linear(10, 24).requires_grad_(not frozen)
    if frozen:  # nothing can train it, so it is held as any other
        step(model, optimizer)
        assert left(model, pruner.masks) == 0
    else:
        with pytest.raises(RunError, match="is another tensor than the optimizer trains"):
            step(model, optimizer)


def test_a_tied_weight_that_becomes_two_is_held_under_both_names() -> None:
    model: Any = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.Linear(10, 3))
    model[2].weight = model[0].weight
    optimizer = sgd(model)
    pruner = prunus.Pruner(model, {"target": 0.5}, optimizer, steps=STEPS)
    for k in range(STEPS):
        step(model, optimizer)
        if k == STEPS // 2:
            model[2].weight = nn.Parameter(torch.randn(10, 10))
            optimizer.add_param_group({"params": [model[2].weight]})
    pruner.finish()
    for i in (0, 2):
        assert not model[i].weight[~pruner.masks["0.weight"]].any()


@pytest.mark.parametrize("first", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("then", [torch.float32, torch.float64, torch.bfloat16])
def test_a_model_that_is_cast_on_the_way_is_held(first: Any, then: Any) -> None:
    model = net().to(first)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    for k in range(STEPS):
        if k == STEPS // 2:
            model.to(then)
        optimizer.zero_grad()
        loss = model(INPUTS.to(model[0].weight.dtype)).float()
        nn.functional.cross_entropy(loss, CLASSES).backward()
        optimizer.step()
        assert left(model, pruner.masks) == 0
    pruner.finish()
    assert pruner.sparsity == pytest.approx(0.8, abs=0.01)


# --- optimizers


def test_an_optimizer_whose_hooks_never_run_is_refused() -> None:
    """As timm's Lookahead, which takes over what the optimizer inside has."""

    class Lookahead(torch.optim.Optimizer):
        def __init__(self, inside: torch.optim.Optimizer) -> None:
            self.inside, self.state = inside, inside.state
            self.param_groups, self.defaults = inside.param_groups, inside.defaults

        def step(self, closure: Any = None) -> None:
            self.inside.step()

    model = net()
    with pytest.raises(InputError, match=r"Lookahead does not call Optimizer\.__init__"):
        prunus.Pruner(model, {"target": 0.8}, Lookahead(sgd(model)), steps=STEPS)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, once
def test_a_compiled_step_is_held_and_counted() -> None:
    model = net()
    optimizer = sgd(model)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=4)
    compiled = torch.compile(optimizer.step, backend="eager")
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(INPUTS), CLASSES).backward()
        compiled()
    pruner.finish()
    assert (pruner.step, left(model, pruner.masks)) == (4, 0)
    assert pruner.sparsity == pytest.approx(0.8, abs=0.01)


class ScheduleFree(torch.optim.Optimizer):
    """Trains y, keeps z beside it, and swaps in their mean x for evaluation."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.detach().clone())
                share = 1 / group["k"]
                p.lerp_(z, share).add_(p.grad, alpha=-group["lr"] * (1 - group["beta"]))
                z.add_(p.grad, alpha=-group["lr"])

    @torch.no_grad()
    def eval(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.lerp_(self.state[p]["z"], 1 - 1 / group["beta"])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: ScheduleFree(p),
        lambda p: torch.optim.ASGD(p, lr=0.1),
        lambda p: torch.optim.ASGD(p, lr=0.1, t0=2),
    ],
    ids=["schedule-free", "averages", "averages later"],
)
def test_state_that_mirrors_the_weights_is_as_sparse_as_they_are(make: Any) -> None:
    model = net()
    optimizer = make(model.parameters())
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    for _ in range(STEPS):
        step(model, optimizer)
    pruner.finish()
    key = "ax" if isinstance(optimizer, torch.optim.ASGD) else "z"
    for name, mask in pruner.masks.items():
        assert not optimizer.state[model.get_parameter(name)][key][~mask].any()
    if isinstance(optimizer, ScheduleFree):
        optimizer.eval()
        assert left(model, pruner.masks) == 0


def test_momenta_are_left_as_they_are() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    for _ in range(STEPS):
        step(model, optimizer)
    pruner.finish()
    state = optimizer.state[model[0].weight]  # type: ignore[index]
    assert state["exp_avg"][~pruner.masks["0.weight"]].any()


def two_of(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return (
        torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9),  # type: ignore[index]
        torch.optim.AdamW(model[2].parameters(), lr=0.01),  # type: ignore[index]
    )


GRADUAL = {"target": 0.8}
ROUNDS = {"target": 0.8, "rounds": 3, "schedule": "linear", "allocation": "uniform"}


@pytest.mark.parametrize("recipe", [GRADUAL, ROUNDS], ids=["gradual", "rounds"])
@pytest.mark.parametrize("given", ["both", "first", "last"])
def test_every_optimizer_with_a_weight_in_scope_is_held(given: str, recipe: Any) -> None:
    model = net()
    both = two_of(model)
    told_of = {"both": list(both), "first": both[0], "last": both[1]}[given]
    pruner = prunus.Pruner(model, recipe, told_of, steps=STEPS)
    for _ in range(STEPS):
        step(model, *both)
        assert left(model, pruner.masks) == 0
    assert pruner.done
    pruner.finish()
    assert pruner.sparsity == pytest.approx(0.8, abs=0.01)


def test_several_optimizers_make_one_step_and_are_rolled_back_together() -> None:
    model = net()
    both = two_of(model)
    metrics, states = iter([1.0, 1.0, 0.0]), []

    def evaluate(_: nn.Module) -> float:
        states.append(copy.deepcopy([o.state_dict()["state"] for o in both]))
        return next(metrics)

    recipe = {**ROUNDS, "retrain": "4it", "guard": {"max_drop": 0.1}}
    pruner = prunus.Pruner(model, recipe, both, evaluate=evaluate)
    for _ in range(8):
        step(model, *both)
    assert [r.accepted for r in pruner.rounds] == [True, True, False]
    for optimizer, before, rejected in zip(both, states[1], states[2], strict=True):
        now = optimizer.state_dict()["state"]
        pairs = [(now[i][k], v, rejected[i][k]) for i in before for k, v in before[i].items()]
        pairs = [each for each in pairs if isinstance(each[1], Tensor)]
        assert all(torch.equal(a, b) for a, b, _ in pairs)
        assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_optimizers_taken_together_give_back_what_they_saved() -> None:
    model, twin = net(), net()
    both, others = two_of(model), two_of(twin)
    step(model, *both)
    saved = Together(both).state_dict()
    assert [g["params"] for g in saved["param_groups"]] == [[0, 1], [2, 3]]
    Together(others).load_state_dict(saved)
    for a, b in zip(both, others, strict=True):
        mine, theirs = a.state_dict(), b.state_dict()
        assert mine["param_groups"] == theirs["param_groups"]
        for i, entry in mine["state"].items():
            assert all(torch.equal(v, theirs["state"][i][k]) for k, v in entry.items())


def test_an_optimizer_made_later_is_held_too() -> None:
    model = net()
    masks = prunus.prune(model, {"target": 0.8}).masks
    stop = prunus.enforce(model, masks, sgd(model))
    later = torch.optim.Adam(model.parameters(), lr=0.1)
    step(model, later)
    assert left(model, masks) == 0
    stop()
    step(model, later)
    assert left(model, masks) > 0


# --- gradients


def test_layers_that_are_unfrozen_later_get_the_same_gradient_masks() -> None:
    model = net()
    masks = prunus.prune(model, {"target": 0.5}).masks
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    prunus.enforce(model, masks, optimizer)
    assert not model[0].weight.requires_grad
    step(model, optimizer)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    nn.functional.cross_entropy(model(INPUTS), CLASSES).backward()
    grad = model[0].weight.grad
    assert grad is not None
    assert grad.any()
    assert not grad[~masks["0.weight"]].any()
    optimizer.step()
    assert left(model, masks) == 0


def test_a_plain_train_never_lets_gradients_of_removed_weights_reach_clipping() -> None:
    seen: list[float] = []

    def train(model: nn.Module) -> None:
        optimizer = sgd(model)
        gone = {n: p == 0 for n, p in model.named_parameters() if p.dim() > 1}
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(INPUTS), CLASSES).backward()
            grads = [model.get_parameter(n).grad for n in gone]
            seen.extend(
                float(g[m].abs().sum())
                for g, m in zip(grads, gone.values(), strict=True)
                if g is not None
            )
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    model = net()
    prunus.prune(model, {"target": 0.8, "rounds": 2, "schedule": "linear"}, train=train)
    assert len(seen) == 12
    assert not any(seen)
    assert not model[0].weight._post_accumulate_grad_hooks


# --- copies of model and optimizer


def test_a_copy_of_model_and_optimizer_that_trains_on_is_told_of() -> None:
    model = net()
    optimizer = sgd(model)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    for _ in range(STEPS // 2):
        step(model, optimizer)
    twin, other = copy.deepcopy((model, optimizer))
    with told("trains a copy of the Sequential.*prunus.enforce"):
        step(twin, other)
    prunus.enforce(twin, pruner.masks, other)
    for _ in range(3):
        step(twin, other)
    assert left(twin, pruner.masks) == 0
    assert pruner.step == STEPS // 2


def test_a_copy_that_was_trained_on_is_told_of_when_saved(tmp_path: Path) -> None:
    model = net()
    optimizer = sgd(model)
    pruner = prunus.Pruner(model, {"target": 0.8}, optimizer, steps=STEPS)
    for _ in range(STEPS):
        step(model, optimizer)
    pruner.finish()
    twin = copy.deepcopy(model)
    prunus.save(twin, tmp_path / "sparse.safetensors")
    step(twin, sgd(twin))
    with told("has values again"):
        prunus.save(twin, tmp_path / "dense.safetensors")


def test_a_pickle_of_a_model_at_work_needs_nothing_of_prunus() -> None:
    model = net()
    pruner = prunus.Pruner(model, {"target": 0.8}, sgd(model), steps=STEPS)
    for protocol in (2, 5):
        assert b"prunus" not in pickle.dumps(model, protocol)
    file = io.BytesIO()
    torch.save(model, file)
    assert b"prunus" not in file.getvalue()
    again = pickle.loads(pickle.dumps(model))
    again.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="ended after 0 of 20 steps"):
        pruner.finish()


def test_two_pruners_of_one_model_hold_what_is_theirs(tmp_path: Path) -> None:
    model = net()
    first, last = two_of(model)
    each = [
        prunus.Pruner(model, {"target": 0.8, "scope": {"include": [name]}}, optimizer, steps=STEPS)
        for name, optimizer in (("0", first), ("2", last))
    ]
    for _ in range(STEPS):
        step(model, first, last)
    for pruner in each:
        pruner.finish()
        assert left(model, pruner.masks) == 0
    prunus.save(model, tmp_path / "model.safetensors")


# --- refusals, and tensors that are others than they were


def test_an_optimizer_of_another_model_is_refused_before_anything_is_changed() -> None:
    model, average = net(), net()
    before = copy.deepcopy([model.state_dict(), average.state_dict()])
    masks = {"0.weight": torch.rand_like(model.get_parameter("0.weight")) > 0.5}
    with pytest.raises(InputError, match="the optimizer does not have it"):
        prunus.enforce(model, masks, sgd(net()), copies=[average])
    for found, wanted in zip([model.state_dict(), average.state_dict()], before, strict=True):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_zeroing_looks_at_where_a_tensor_lies_and_how_large_it_is() -> None:
    weight, mask = torch.ones(8, 4), torch.rand(8, 4) > 0.5
    zero = zeroer(weight, mask)
    zero(torch.empty(8, 4, device="meta"))  # moved: its address is none of ours
    with pytest.raises(RuntimeError, match="size of tensor"):
        zero(torch.ones(2, 4))
    zero(weight)
    assert torch.equal(weight, mask.float())


def test_an_average_whose_first_row_never_changes_is_one() -> None:
    table = nn.Embedding(20, 8, padding_idx=0)  # whose first row is not trained
    average = table.weight.detach().clone()
    followers = Followers([average.shape])
    followers.after_step(table)
    average[1:] *= 1.01
    masks = {"weight": torch.arange(160).view(20, 8) % 2 == 0}
    assert followers.dense(table, masks, set())["weight"] is average


@pytest.mark.parametrize("kind", [torch.complex128, torch.float64, torch.bfloat16])
def test_whether_a_step_moved_anything_shows_whatever_its_values_are(kind: torch.dtype) -> None:
    weight = nn.Parameter(torch.full((3,), float("nan"), dtype=kind))
    before = _bits(torch.optim.SGD([weight]))
    assert _bits(torch.optim.SGD([weight])) == before
    weight.data[0] = 1.0
    assert _bits(torch.optim.SGD([weight])) != before


@pytest.fixture
def swapping() -> Iterator[None]:
    """torch swaps what is in a parameter when a module is moved or loaded."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("how", ["Pruner", "enforce"])
def test_a_model_whose_parameters_are_swapped_is_moved_and_goes_on_masked(how: str) -> None:
    model = nn.Linear(6, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if how == "enforce":
        prunus.enforce(model, {"weight": torch.arange(24).view(4, 6) % 2 == 0}, optimizer)
    else:
        prunus.Pruner(model, {"target": 0.5, "schedule": "one_shot"}, optimizer, steps=8)
    for step in range(8):
        if step == 3:
            model.double()
        if step == 5:
            model.load_state_dict({"weight": model.weight.detach() * 2})
        optimizer.zero_grad()
        model(torch.ones(2, 6, dtype=model.weight.dtype)).square().sum().backward()
        if step in (2, 4, 7):  # not in the very first pass behind a swap
            assert int((model.weight.grad == 0).sum()) == 12
        optimizer.step()
        assert int((model.weight == 0).sum()) == 12
    assert model.weight.dtype is torch.float64
