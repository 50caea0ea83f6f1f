"""The same recipe in a loop of one's own, in a Hugging Face Trainer and in Lightning."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import itertools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import helpers
import prunus
from fresh import Pythons
from helpers import tiny_task
from prunus.errors import InputError
from prunus.types import Masks

pytestmark = [
    # of transformers, accelerate and Lightning, about themselves
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*is deprecated"),
]


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    """What the loops import takes a second: before the tests, so that it counts as imported."""
    for name in ("accelerate", "transformers.trainer", "lightning.pytorch"):
        with contextlib.suppress(Exception):  # the tests that need it say what is wrong
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(64, 8, generator=GENERATOR, dtype=torch.float64)
CLASSES = (INPUTS.sum(1) > 0).long()
DATA = [{"x": x, "labels": y} for x, y in zip(INPUTS, CLASSES, strict=True)]
EPOCHS, BATCH, ACCUMULATE, CLIP = 5, 8, 2, 0.5
STEPS = EPOCHS * len(DATA) // BATCH // ACCUMULATE

GRADUAL: dict[str, Any] = {
    "target": 0.8, "schedule": "cubic", "criterion": "fisher_running", "dense": "4it",
}  # fmt: skip
ROUNDS: dict[str, Any] = {
    "target": 0.8, "schedule": "linear", "rounds": 4, "dense": "1ep", "retrain": "3it",
    "guard": {"max_drop": 0.03},
}  # fmt: skip
SHRINKING: dict[str, Any] = {
    "structure": "channel", "target": {"max_params": 0.4}, "schedule": "linear", "rounds": 3,
    "dense": "3it", "compact": "every_round",
}  # fmt: skip


class Net(nn.Module):
    """Two layers that return what a Trainer asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        out = self.b(torch.relu(self.a(x)))
        return out if labels is None else {"loss": F.cross_entropy(out, labels), "logits": out}


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(7)
    return Net().to(dtype)


def accuracy(model: nn.Module) -> float:
    dtype = next(model.parameters()).dtype
    return float((model(INPUTS.to(dtype)).argmax(1) == CLASSES).double().mean())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.1)


def scheduler_of(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (2 * STEPS))


def plain(recipe: Any, **options: Any) -> prunus.Pruner:
    model = net()
    optimizer = optimizer_of(model)
    scheduler = scheduler_of(optimizer)
    total = None if "retrain" in recipe else STEPS
    per_epoch = STEPS // EPOCHS
    pruner = prunus.Pruner(
        model, recipe, optimizer, steps=total, steps_per_epoch=per_epoch, **options
    )
    batches = zip(INPUTS.split(BATCH), CLASSES.split(BATCH), strict=True)
    for number, (x, y) in enumerate(list(batches) * EPOCHS):
        (model(x, y)["loss"] / ACCUMULATE).backward()
        if number % ACCUMULATE == ACCUMULATE - 1:
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if pruner.done and pruner.recipe.guard:
            break
    pruner.finish()
    return pruner


def hf_trainer(callback: Any, model: nn.Module, *, eval_dataset: Any = None, **changes: Any) -> Any:
    helpers.transformers()
    from transformers import Trainer, TrainingArguments

    values: dict[str, Any] = {
        "output_dir": "hf", "num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATE, "max_grad_norm": CLIP, "use_cpu": True,
        "train_sampling_strategy": "sequential", "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "logging_steps": 1, "dataloader_pin_memory": False, **changes,
    }  # fmt: skip
    optimizer = optimizer_of(model)
    return Trainer(
        model, TrainingArguments(**values), train_dataset=DATA, callbacks=[callback],
        eval_dataset=eval_dataset,
        optimizers=(optimizer, scheduler_of(optimizer)),
    )  # fmt: skip


def hf(recipe: Any, **options: Any) -> prunus.Pruner:
    from prunus.integrations.hf import PruneCallback

    callback = PruneCallback(recipe, **options)
    trainer = hf_trainer(callback, net())
    trainer.train()
    sparsities = [entry["sparsity"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(sparsities) == trainer.state.global_step
    assert sparsities[-1] == callback.pruner.sparsity
    return callback.pruner


def lit(dtype: torch.dtype = torch.float64) -> Any:
    from lightning.pytorch import LightningModule

    class Lit(Net, LightningModule):
        def training_step(self, batch: Any, index: int) -> Tensor:
            return self(batch["x"], batch["labels"])["loss"]

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_of(self)
            return [optimizer], [{"scheduler": scheduler_of(optimizer), "interval": "step"}]

    torch.manual_seed(7)
    return Lit().to(dtype)


def lit_trainer(callback: Any, **changes: Any) -> Any:
    from lightning.pytorch import Trainer

    values: dict[str, Any] = {
        "max_epochs": EPOCHS, "accumulate_grad_batches": ACCUMULATE, "gradient_clip_val": CLIP,
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "precision": "64-true",
        "callbacks": [callback], **changes,
    }  # fmt: skip
    return Trainer(**values)


def loader() -> Any:
    return torch.utils.data.DataLoader(DATA, batch_size=BATCH)  # type: ignore[arg-type]


def lightning(recipe: Any, **options: Any) -> prunus.Pruner:
    from prunus.integrations.lightning import PruneCallback

    callback = PruneCallback(recipe, **options)
    trainer = lit_trainer(callback)
    trainer.fit(lit(), loader())
    assert float(trainer.callback_metrics["sparsity"]) == pytest.approx(callback.pruner.sparsity)
    return callback.pruner


def same(one: Masks, other: Masks) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def close(one: nn.Module, other: nn.Module) -> bool:
    pairs = itertools.zip_longest(one.state_dict().values(), other.state_dict().values())
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-12) for a, b in pairs)


LOOPS: dict[str, Callable[..., prunus.Pruner]] = {
    "own": plain, "hf": hf, "lightning": lightning,
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gradual": (GRADUAL, {}),
    "rounds": (ROUNDS, {"evaluate": accuracy}),
    "shrinking": ({**SHRINKING, "guard": {"max_drop": 0.05}}, {
        "example": INPUTS[:2], "evaluate": accuracy,
    }),
}  # fmt: skip


@functools.cache
def whole(loop: str, kind: str) -> prunus.Pruner:
    """A pruner at the end of a loop that nothing interrupted; the tests only read it."""
    recipe, options = KINDS[kind]
    return LOOPS[loop](recipe, **options)


@pytest.mark.parametrize("loop", ["hf", "lightning"])
@pytest.mark.parametrize("recipe", KINDS)
def test_the_same_recipe_gives_the_same_masks_in_all_loops(loop: str, recipe: str) -> None:
    own, theirs = whole("own", recipe), whole(loop, recipe)
    assert own.sparsity > 0.3
    assert same(own.masks, theirs.masks)
    assert close(own.model, theirs.model)
    assert [r.verdict for r in own.rounds] == [r.verdict for r in theirs.rounds]
    assert own.reason == theirs.reason
    assert (recipe == "rounds") == ("rejected" in [r.verdict for r in own.rounds])


@pytest.mark.parametrize(
    "changes",
    [
        {"guard": {"max_drop": 0.03}},
        {"guard": {"max_drop": 0.05}, "target": "guard", "rounds": None},
        {"restore": {"name": "rewind", "k": "3it"}},
        {"restore": {"name": "rewind"}, "guard": {"max_drop": 0.05}},
        {"restore": "reinitialize"},
        {"restore": {"name": "revive", "values": "start"}},
        {"restore": {"name": "revive", "values": "cut", "when": "after"}},
        {"last_retrain": "5it", "criterion": "fisher_running", "structure": "neuron"},
        {"rounds": None, "criterion": "fisher_running", "guard": {"max_drop": 0.5}},
        {"rounds": None, "guard": {"max_drop": 0.0}, "schedule": "early", "target": 0.95},
    ],
    ids=str,
)
def test_a_loop_of_ones_own_does_what_the_one_call_does(changes: Any) -> None:
    recipe = {**ROUNDS, "guard": None, "dense": "8it", **changes}
    batches = list(zip(INPUTS.split(BATCH), CLASSES.split(BATCH), strict=True)) * 30
    unused = iter(batches)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        x, y = next(unused)
        optimizer.zero_grad()
        model(x, y)["loss"].backward()
        optimizer.step()

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = optimizer_of(model)
        run.attach(optimizer)
        for _ in run.batches(range(8)):
            step(model, optimizer)

    called = prunus.prune(net(), recipe, train=train, evaluate=accuracy)
    unused = iter(batches)
    model = net()
    optimizer = optimizer_of(model)
    pruner = prunus.Pruner(model, recipe, optimizer, evaluate=accuracy)
    while not pruner.done:
        step(model, optimizer)
    assert [(r.verdict, r.step) for r in pruner.rounds] == [
        (r.verdict, r.step) for r in called.rounds
    ]
    assert pruner.reason == called.reason
    assert same(pruner.masks, called.masks)
    assert all(map(torch.equal, model.state_dict().values(), called.model.state_dict().values()))


def test_a_second_rollback_finds_what_the_first_one_found() -> None:
    """State kept in memory is not the state that goes on training."""

    def result(folder: str | None) -> prunus.Result:
        return prunus.prune(tiny_task(), {**_TWICE, "guard": {"max_drop": 0.0}}, folder=folder,
                            evaluate=_scripted([1.0, 1.0, 1.0, 0.0, 0.0, 1.0]))  # fmt: skip

    kept, written = result(None), result("run")
    assert [r.verdict for r in kept.rounds][2:4] == ["rejected", "rejected"]
    pairs = zip(kept.model.parameters(), written.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


_TWICE: dict[str, Any] = {
    "target": 0.8, "schedule": "linear", "rounds": 2, "dense": "1ep", "retrain": "1ep",
}  # fmt: skip


def _scripted(metrics: list[float]) -> Callable[[nn.Module], float]:
    left = iter(metrics)
    return lambda model: next(left, 1.0)


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(
    ("kind", "at"), [("gradual", 11), ("rounds", 2), ("rounds", 11), ("shrinking", 11)]
)
def test_a_trainer_goes_on_from_its_own_checkpoint(kind: str, at: int) -> None:
    from transformers import TrainerCallback

    from prunus.integrations.hf import PruneCallback

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == at + 1:
                raise Killed

    recipe, options = KINDS[kind]
    saving = {"save_strategy": "steps", "save_steps": at}
    trainer = hf_trainer(PruneCallback(recipe, **options), net(), **saving)
    trainer.add_callback(Kill())
    with pytest.raises(Killed):
        trainer.train()
    files = {p.name for p in Path(f"hf/checkpoint-{at}").iterdir()}
    assert "prunus.safetensors" in files
    resumed, model = PruneCallback(recipe, **options), net()
    if kind == "shrinking":
        resumed.resume(model, f"hf/checkpoint-{at}")
    hf_trainer(resumed, model, **saving).train(resume_from_checkpoint=f"hf/checkpoint-{at}")
    assert resumed.pruner.model is model
    assert _ends_alike(resumed.pruner, whole("hf", kind))


@pytest.mark.parametrize(
    ("kind", "at"), [("gradual", 12), ("rounds", 4), ("rounds", 12), ("shrinking", 12)]
)
def test_lightning_goes_on_from_its_own_checkpoint(kind: str, at: int) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from prunus.integrations.lightning import PruneCallback

    recipe, options = KINDS[kind]

    def trainer(callback: Any, *others: Any) -> Any:
        saves = ModelCheckpoint(
            dirpath="lit", filename="{step}", every_n_epochs=at // 4, save_on_train_epoch_end=True
        )
        return lit_trainer(None, callbacks=[callback, saves, *others], enable_checkpointing=True)

    with pytest.raises(Killed):
        trainer(PruneCallback(recipe, **options), _kill(at + 1)).fit(lit(), loader())
    resumed, module = PruneCallback(recipe, **options), lit()
    trainer(resumed).fit(module, loader(), ckpt_path=f"lit/step={at}.ckpt")
    assert resumed.pruner.model is module
    assert _ends_alike(resumed.pruner, whole("lightning", kind))


def _kill(step: int) -> Any:
    from lightning.pytorch import Callback

    class Kill(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == step:
                raise Killed

    return Kill()


def _ends_alike(one: prunus.Pruner, other: prunus.Pruner) -> bool:
    rounds = [[(r.verdict, r.achieved, r.metric) for r in p.rounds] for p in (one, other)]
    tensors = [list(p.model.state_dict().values()) for p in (one, other)]
    return (
        rounds[0] == rounds[1]
        and one.reason == other.reason != ""
        and same(one.masks, other.masks)
        and all(map(torch.equal, *tensors))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ones_own_loop_goes_on_in_the_middle_of_a_round(kind: str) -> None:
    recipe, options = KINDS[kind]
    batches = list(zip(INPUTS.split(BATCH), CLASSES.split(BATCH), strict=True)) * 3

    def start() -> tuple[nn.Module, torch.optim.Optimizer, prunus.Pruner]:
        model = net()
        optimizer = optimizer_of(model)
        return model, optimizer, prunus.Pruner(
            model, recipe, optimizer, steps=STEPS, steps_per_epoch=4, **options
        )  # fmt: skip

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, part: slice) -> None:
        for x, y in batches[:STEPS][part]:
            optimizer.zero_grad()
            model(x, y)["loss"].backward()
            optimizer.step()

    model, optimizer, pruner = start()
    train(model, optimizer, slice(13))
    torch.save([x.state_dict() for x in (pruner, model, optimizer)], "own.pt")
    train(model, optimizer, slice(13, None))
    others = start()
    saved = torch.load("own.pt", weights_only=True)
    for part, state in zip((others[2], others[0], others[1]), saved, strict=True):
        part.load_state_dict(state)  # the pruner first: its shapes
    train(others[0], others[1], slice(13, None))
    pruner.finish()
    others[2].finish()
    assert _ends_alike(others[2], pruner)


def test_a_shrunk_checkpoint_is_refused_where_the_model_was_not_made_ready() -> None:
    from prunus.integrations.hf import PruneCallback

    options = KINDS["shrinking"][1]
    saving = {"save_strategy": "steps", "save_steps": 11}
    hf_trainer(PruneCallback(SHRINKING, **options), net(), **saving).train()
    trainer = hf_trainer(PruneCallback(SHRINKING, **options), net())
    with pytest.raises(InputError, match=r"call callback\.resume"):
        trainer.train(resume_from_checkpoint="hf/checkpoint-11")


def test_a_checkpoint_that_does_not_fit_the_pruner_is_refused() -> None:
    from prunus.integrations.hf import PruneCallback

    saving = {"save_strategy": "steps", "save_steps": 10}
    hf_trainer(PruneCallback(GRADUAL), net(), **saving).train()
    other = PruneCallback({**GRADUAL, "target": 0.5})
    with pytest.raises(InputError, match="another recipe"):
        hf_trainer(other, net()).train(resume_from_checkpoint="hf/checkpoint-10")
    with pytest.raises(InputError, match="does not exist"):
        other.resume(net(), "elsewhere")
    Path("hf/checkpoint-10").rename("hf/moved")
    Path("hf/checkpoint-20").rename("hf/checkpoint-10")
    with pytest.raises(InputError, match="from step 20, but the Trainer resumes at 10"):
        hf_trainer(PruneCallback(GRADUAL), net()).train(resume_from_checkpoint="hf/moved")
    moved = PruneCallback(GRADUAL)
    model = net()
    moved.resume(model, "hf/moved")
    hf_trainer(moved, model).train(resume_from_checkpoint="hf/moved")
    assert moved.pruner.sparsity == 0.8
    Path("hf/moved/prunus.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="damaged"):
        moved.resume(net(), "hf/moved")


@pytest.mark.parametrize("values", [GRADUAL, SHRINKING], ids=["masks", "shrinking"])
def test_mixed_precision_trains_and_holds_the_masks(values: Any) -> None:
    from prunus.integrations.hf import PruneCallback
    from prunus.integrations.lightning import PruneCallback as Callback

    options = {"example": INPUTS[:2].float()} if values is SHRINKING else {}
    first, model = PruneCallback(values, **options), net(torch.float32)
    trainer = hf_trainer(first, model, bf16=True)
    trainer.train_dataset = [{**d, "x": d["x"].float()} for d in DATA]
    trainer.train()
    second, module = Callback(values, **options), lit(torch.float32)
    loader = torch.utils.data.DataLoader(trainer.train_dataset, batch_size=BATCH)
    lit_trainer(second, precision="bf16-mixed").fit(module, loader)
    for pruner, trained in ((first.pruner, model), (second.pruner, module)):
        assert pruner.model is trained
        assert 0.3 < pruner.sparsity <= 0.8
        assert all(not trained.get_parameter(n)[~m].any() for n, m in pruner.masks.items())
        assert accuracy(trained) > 0.6
    assert (model.a.out_features < 16) == (values is SHRINKING)


def test_skipped_steps_of_a_gradient_scaler_do_not_count() -> None:
    model = net(torch.float32)
    optimizer = optimizer_of(model)
    pruner = prunus.Pruner(model, {"target": 0.5, "rounds": 2, "schedule": "linear"}, optimizer,
                           steps=4)  # fmt: skip
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (1.0, float("inf"), 1.0, 1.0):
        scaler.scale(model(INPUTS.float(), CLASSES)["loss"] * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert [r.step for r in pruner.rounds] == [0, 2]
    assert not pruner.done


def test_the_wrapped_optimizer_of_accelerate_is_followed() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    recipe = {k: v for k, v in ROUNDS.items() if k != "guard"}
    model = net()
    optimizer = optimizer_of(model)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler_of(optimizer))
    pruner = prunus.Pruner(
        model, {**recipe, "retrain": "4it"}, optimizer, steps_per_epoch=4, evaluate=accuracy
    )
    batches = zip(INPUTS.split(BATCH), CLASSES.split(BATCH), strict=True)
    for x, y in list(batches) * EPOCHS:
        with accelerator.accumulate(model):
            accelerator.backward(model(x, y)["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    own = plain({**recipe, "retrain": "4it"}, evaluate=accuracy)
    assert pruner.done
    assert same(pruner.masks, own.masks)
    assert close(pruner.model, own.model)


def test_the_trainers_own_evaluation_can_judge() -> None:
    from prunus.integrations.hf import PruneCallback

    callback = PruneCallback(
        {**ROUNDS, "guard": {"better": "lower", "max_drop": 0.2}},
        evaluate=lambda model: float(trainer.evaluate()["eval_loss"]),
    )
    trainer = hf_trainer(callback, net(), eval_dataset=DATA)
    trainer.train()
    own = plain({**ROUNDS, "guard": {"better": "lower", "max_drop": 0.2}}, evaluate=_loss)
    assert [r.metric for r in callback.pruner.rounds] == pytest.approx(
        [r.metric for r in own.rounds], abs=1e-6
    )
    assert same(callback.pruner.masks, own.masks)


def _loss(model: nn.Module) -> float:
    return float(model(INPUTS, CLASSES)["loss"])


def test_a_transformer_shrinks_inside_a_trainer_and_goes_on_from_its_checkpoint() -> None:
    helpers.transformers()
    from transformers import BertConfig, BertForSequenceClassification

    from prunus.integrations.hf import PruneCallback

    def bert() -> Any:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=8, num_labels=2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return BertForSequenceClassification(config).double()

    tokens = torch.randint(0, 32, (32, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": t, "labels": int(t.sum() % 2)} for t in tokens]
    recipe = {**SHRINKING, "target": {"max_params": 0.8}, "rounds": 2}

    def trained(folder: str, model: Any, start: str | None = None) -> Any:
        callback = PruneCallback(recipe, example={"input_ids": tokens[:2]})
        trainer = hf_trainer(
            callback, model, output_dir=folder, save_strategy="steps", save_steps=8
        )
        trainer.train_dataset = data
        if start is not None:
            callback.resume(model, start)
        trainer.train(resume_from_checkpoint=start)
        return callback.pruner

    first = trained("whole", bert())
    resumed = trained("again", bert(), "whole/checkpoint-8")
    assert isinstance(first.model, BertForSequenceClassification)
    assert sum(p.numel() for p in first.model.parameters()) < 0.81 * bert().num_parameters()
    assert close(first.model, resumed.model)


BREAKS = {
    "missing": "raise ModuleNotFoundError('no', name=name.partition('.')[0])",
    "broken": "raise RuntimeError('built for another torch')",
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_missing_or_broken_package_breaks_its_own_door_only(how: str, python: Pythons) -> None:
    code = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('transformers', 'accelerate', 'lightning',
                                      'pytorch_lightning'):
            {BREAKS[how]}
sys.meta_path.insert(0, Finder())
import torch, prunus
model = torch.nn.Linear(4, 4)
prunus.Pruner(model, {{'target': 0.5}}, torch.optim.SGD(model.parameters()), steps=4)
for door in "hf", "lightning":
    try:
        __import__("prunus." + door)
    except prunus.InputError as error:
        print(error)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    says = "not installed" if how == "missing" else "built for another torch"
    for packages in "transformers accelerate", "lightning":
        assert f"pip install {packages}" in done.stdout
    assert done.stdout.count(says) == 2


@pytest.mark.filterwarnings("ignore")  # of the older package
def test_lightning_under_its_older_name_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    import pytorch_lightning

    from prunus.integrations import lightning as usual

    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    spec = importlib.util.spec_from_file_location("older", usual.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "lightning.pytorch" not in sys.modules
    assert issubclass(module.PruneCallback, pytorch_lightning.Callback)
    assert not issubclass(usual.PruneCallback, pytorch_lightning.Callback)

    class Lit(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.a(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = module.PruneCallback({"target": 0.5})
    trainer = pytorch_lightning.Trainer(
        max_epochs=2, callbacks=[callback], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Lit(), torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=2))
    assert callback.pruner.sparsity == 0.5


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"rounds": 2, "guard": {"max_drop": 0.1}}, "pass evaluate"),
        ({"learning_rate": "hold_decay"}, "learning_rate: null"),
        ({"structure": "channel", "compact": "end"}, "after training"),
    ],
)
def test_what_a_foreign_loop_cannot_do_is_refused_at_once(recipe: Any, says: str) -> None:
    from prunus.integrations.hf import PruneCallback
    from prunus.integrations.lightning import PruneCallback as Callback

    model = net()
    for door in (PruneCallback, Callback):
        with pytest.raises(InputError, match=says):
            door({"target": 0.5, **recipe})
    with pytest.raises(InputError, match=says):
        prunus.Pruner(
            model, {"target": 0.5, **recipe}, optimizer_of(model), steps=4, example=INPUTS
        )


def test_a_loop_that_is_too_short_for_its_recipe_is_refused() -> None:
    from prunus.integrations.hf import PruneCallback
    from prunus.integrations.lightning import PruneCallback as Callback

    recipe = {"target": 0.5, "rounds": 3, "retrain": "2ep", "dense": "1ep"}
    says = "needs 28 optimizer steps, but the training takes 20"
    with pytest.raises(InputError, match=says):
        hf_trainer(PruneCallback(recipe), net()).train()
    with pytest.raises(InputError, match=says):
        lit_trainer(Callback(recipe)).fit(lit(), loader())
    model = net()
    with pytest.raises(InputError, match=r"needs 6 .* but the loop has 5"):
        prunus.Pruner(model, {"target": 0.5, "rounds": 3, "retrain": "2it"}, optimizer_of(model),
                      steps=5)  # fmt: skip
    with pytest.raises(InputError, match="5 are too few"):
        prunus.Pruner(model, {"target": 0.5, "rounds": 9}, optimizer_of(model), steps=5)
    with pytest.raises(InputError, match="length of each"):
        prunus.Pruner(model, {"target": "guard", "guard": {}}, optimizer_of(model), steps=5,
                      evaluate=accuracy)  # fmt: skip


def test_weights_from_before_the_last_cuts_are_not_brought_back() -> None:
    from prunus.integrations.hf import PruneCallback

    changes = {"save_strategy": "best", "load_best_model_at_end": True}
    changes |= {"metric_for_best_model": "loss", "eval_strategy": "epoch"}
    trainer = hf_trainer(PruneCallback(GRADUAL), net(), eval_dataset=DATA, **changes)
    with pytest.raises(InputError, match="load_best_model_at_end"):
        trainer.train()


def test_a_model_that_only_a_graph_can_make_smaller_is_refused_before_training() -> None:
    class Fixed(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            return self.b(torch.relu(self.a(x)).reshape(-1, 4, 4).flatten(1))

    model = Fixed().double()
    before = model.a.weight.clone()
    recipe = {**SHRINKING, "dense": 0}
    with pytest.raises(InputError, match="a different object from the one your loop trains"):
        prunus.Pruner(model, recipe, optimizer_of(model), steps=12, example=INPUTS[:2])
    assert torch.equal(model.a.weight, before)


def test_several_processes_and_smaller_models_do_not_go_together() -> None:
    model = net()
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        with pytest.raises(InputError, match="several processes"):
            prunus.Pruner(model, SHRINKING, optimizer_of(model), steps=20, example=INPUTS[:2])
    finally:
        torch.distributed.destroy_process_group()


def test_a_limit_of_the_recipe_ends_pruning_where_it_is() -> None:
    model = net()
    optimizer = optimizer_of(model)
    recipe = {"target": 0.8, "rounds": 4, "schedule": "linear", "limit": "6it", "retrain": "4it"}
    pruner = prunus.Pruner(model, recipe, optimizer)
    taken = 0
    while not pruner.done:
        model(INPUTS, CLASSES)["loss"].backward()
        optimizer.step()
        taken += 1
    says = "the limit of 6it is reached: sparsity 0.4 of 0.8 requested"
    assert (taken, pruner.sparsity, pruner.reason) == (6, 0.4, says)


def test_a_named_recipe_runs_in_a_trainer_once_its_learning_rate_is_left_out() -> None:
    from prunus.integrations.hf import PruneCallback
    from prunus.recipe.schema import Recipe

    callback = PruneCallback(
        Recipe.load("gradual", ["learning_rate=null", "dense=0", "retrain=5ep"])
    )
    hf_trainer(callback, net()).train()
    assert callback.pruner.sparsity == 0.95
    hf_trainer(callback, net()).train()  # a callback serves again
    assert (callback.pruner.sparsity, callback.pruner.step) == (0.95, STEPS)


ENDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gradual": ({"target": 0.8, "schedule": "linear"}, {}),
    "rounds": ({"target": 0.8, "schedule": "linear", "rounds": 5}, {"evaluate": accuracy}),
    "guard": ({"target": "guard", "retrain": "3it", "guard": {"max_drop": 0.9}},
              {"evaluate": accuracy}),
}  # fmt: skip


def _own_ended(recipe: Any, options: Any, how: str) -> prunus.Pruner:
    model = net()
    optimizer = optimizer_of(model)
    length = {} if "retrain" in recipe else {"steps": STEPS}
    pruner = prunus.Pruner(model, recipe, optimizer, **length, **options)
    for _ in range(4):
        optimizer.zero_grad()
        model(INPUTS, CLASSES)["loss"].backward()
        optimizer.step()
    pruner.finish()
    return pruner


def _hf_ended(recipe: Any, options: Any, how: str) -> prunus.Pruner:
    helpers.transformers()
    from transformers import EarlyStoppingCallback, TrainerCallback

    from prunus.integrations.hf import PruneCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= 4

    callback = PruneCallback(recipe, **options)
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2,
        "metric_for_best_model": "loss", "greater_is_better": True}  # fmt: skip
    if how == "patience":  # the loss falls, and the more the better: never
        trainer = hf_trainer(callback, net(), eval_dataset=DATA, **settings)
        trainer.add_callback(EarlyStoppingCallback(1))
    else:
        trainer = hf_trainer(callback, net())
        trainer.add_callback(Stop())
    trainer.train()
    assert trainer.state.global_step == 4
    return callback.pruner


def _lightning_ended(recipe: Any, options: Any, how: str) -> prunus.Pruner:
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import EarlyStopping

    from prunus.integrations.lightning import PruneCallback

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            trainer.should_stop = trainer.global_step >= 4

    module = lit()
    stop: Any = Stop()
    if how == "patience":
        module.on_train_epoch_end = lambda: module.log("same", 1.0)
        stop = EarlyStopping("same", patience=1, check_on_train_epoch_end=True)
    callback = PruneCallback(recipe, **options)
    trainer = lit_trainer(None, callbacks=[callback, stop])
    trainer.fit(module, loader())
    assert 0 < trainer.global_step < STEPS
    return callback.pruner


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize(
    ("ended", "how"),
    [(_own_ended, "asked"), (_hf_ended, "asked"), (_hf_ended, "patience"),
     (_lightning_ended, "asked"), (_lightning_ended, "patience")],
)  # fmt: skip
def test_a_training_that_somebody_ends_early_says_what_was_asked_and_achieved_once(
    ended: Any, how: str, kind: str
) -> None:
    recipe, options = ENDS[kind]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pruner = ended(recipe, options, how)
    assert "ended" in pruner.reason
    wanted = "requested as far as the guard allows" if kind == "guard" else "of 0.8 requested"
    assert wanted in pruner.reason
    part = pruner.rounds[-1].achieved if pruner.rounds else pruner.achieved
    assert f"sparsity {part:.4g}" in pruner.reason
    assert [str(w.message) for w in found].count(pruner.reason) == 1


def test_a_training_that_takes_no_step_says_so() -> None:
    from prunus.integrations.lightning import PruneCallback

    trainer = lit_trainer(PruneCallback({"target": 0.5}), max_time={"seconds": 0})
    with pytest.warns(UserWarning, match="no step, so nothing was pruned"):
        trainer.fit(lit(), loader())
