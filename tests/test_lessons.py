"""Who teaches, what is learned, and in which loops: hidden states, other teachers, own loops."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import helpers
import prunus
from prunus import InputError, RunError
from prunus.progressive.hidden import hidden_modules
from prunus.recipe.resolve import folder_name

DATA = [
    (torch.randn(8, 6, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 3)
    for i in range(4)
]
ROUNDS = {"target": 0.5, "rounds": 2, "retrain": "3it", "dense": "3it", "teacher": "dense"}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


# --- hidden states


def test_a_hidden_state_by_hand() -> None:
    model, teacher = network(0), network(1)
    x = DATA[0][0]
    h, t = model[0](x), teacher[0](x)
    wanted = ((h - t).square().sum() / t.square().sum()).item()
    how = {"weight": 1.0, "objective": "mse"}
    answers = prunus.distill(model, teacher, x, **how)
    found = prunus.distill(model, teacher, x, hidden=["0"], hidden_weight=3.0, **how)
    assert found.item() == pytest.approx(answers.item() + 3 * wanted, rel=1e-5)
    own = prunus.distill(model, teacher, DATA[0], loss=entropy, hidden=["0"], weight=0.25)
    apart = prunus.distill(model, teacher, DATA[0], loss=entropy, weight=0.25)
    assert own.item() == pytest.approx(apart.item() + 0.25 * wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["0", "1", "2"])
def test_of_a_width_that_was_cut_the_kept_indices_are_compared(name: str) -> None:
    dense = network()
    result = prunus.prune(copy.deepcopy(dense), {"target": 0.4, "structure": "channel",
                                                 "compact": "end"}, example=DATA[0][0])  # fmt: skip
    small, kept = result.model, result.kept
    x = DATA[0][0]
    inner = dense[: int(name) + 1](x)
    rows = kept[f"{name}.weight"][0] if name != "1" else kept["0.weight"][0]
    goal = inner if rows is None else inner[:, rows]
    state = small[: int(name) + 1](x)  # type: ignore[index]
    wanted = ((state - goal).square().sum() / goal.square().sum()).item()
    how: dict[str, Any] = {"weight": 1.0, "objective": "mse", "kept": kept}
    found = prunus.distill(small, dense, x, hidden=[name], **how) if name != "1" else None
    if found is None:  # a ReLU has no weight that says which of its channels are left
        with pytest.raises(InputError, match="not known which of its channels"):
            prunus.distill(small, dense, x, hidden=[name], **how)
        return
    part = prunus.distill(small, dense, x, **how)
    assert found.item() == pytest.approx(part.item() + wanted, rel=1e-4, abs=1e-7)


def test_names_and_blocks() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))

    model = Stack()
    assert hidden_modules(model, ["all"]) == ["layers.0", "layers.1", "layers.2"]
    assert hidden_modules(model, ["layers.*", "embed"]) == [
        "layers.0", "layers.1", "layers.2", "embed",
    ]  # fmt: skip
    assert hidden_modules(nn.DataParallel(model), ["layers.1.0"]) == ["layers.1.0"]
    with pytest.raises(InputError, match="no module is called 'blocks"):
        hidden_modules(model, ["blocks.*"])
    other = nn.Linear(6, 3)
    with pytest.raises(InputError, match="the teacher has no module '0'"):
        prunus.distill(network(), other, DATA[0][0], weight=1.0, hidden=["0"])


@pytest.mark.parametrize("compact", ["none", "every_round"])
def test_a_recipe_learns_hidden_states_and_goes_on_after_a_stop(
    compact: str, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        **ROUNDS, "teacher": {"hidden": ["0", "2"], "weight": 0.5}, "compact": compact,
        "structure": "channel", "snapshot": "1it",
    }  # fmt: skip

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        run.attach(optimizer)
        for batch in run.batches(DATA):
            optimizer.zero_grad()
            run.distill(batch).backward()
            optimizer.step()

    def made(stop: int = 999, **more: Any) -> dict[str, Tensor]:
        asked = iter([False] * stop)
        return prunus.prune(
            network(), recipe, train=train, loss=entropy, example=DATA[0][0],
            should_stop=lambda: next(asked, True), **more,
        ).model.state_dict()  # fmt: skip

    whole = made()
    with pytest.raises(prunus.Interrupted):
        made(9, folder=tmp_path / "run")
    found = made(folder=tmp_path / "run")
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    recipe["teacher"] = {"weight": 0.5}
    assert any(not torch.equal(whole[n], t) for n, t in made().items())


# --- another teacher


@pytest.mark.parametrize("as_file", ["", "weights", "saved"])
def test_any_model_or_file_can_teach(as_file: str, tmp_path: Path) -> None:
    teacher = network(7)
    given: Any = teacher
    if as_file == "weights":
        given = tmp_path / "dense.safetensors"
        save_file(teacher.state_dict(), given)
    if as_file == "saved":
        given = prunus.save(teacher, tmp_path / "teacher.safetensors")
    losses: list[float] = []

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        run.attach(optimizer)
        for batch in run.batches(DATA):
            optimizer.zero_grad()
            loss = run.distill(batch)
            if run.round:
                losses.append(loss.item())
                wanted = prunus.distill(model, teacher, batch, loss=entropy).item()
                assert losses[-1] == pytest.approx(wanted)
            loss.backward()
            optimizer.step()

    recipe = {key: value for key, value in ROUNDS.items() if key != "teacher"}
    prunus.prune(network(), recipe, train=train, loss=entropy, teacher=given)
    assert len(losses) == 6


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    recipe = {**ROUNDS, "dense": 0}
    other, damaged = tmp_path / "other.safetensors", tmp_path / "damaged.safetensors"
    save_file(nn.Linear(2, 2).state_dict(), other)
    damaged.write_bytes(b"\x00" * 20)
    for wrong in (3, nn.Linear, tmp_path / "none.safetensors", other, damaged):
        with pytest.raises(InputError):
            prunus.prune(network(), recipe, train=lambda m, r: None, loss=entropy,
                         teacher=wrong)  # type: ignore[arg-type]  # fmt: skip


def taught_by_file(folder: Path, seed: int = 7) -> Path:
    prunus.save(network(seed), folder / "big.safetensors")
    settings = ["version: 1", *(f"{k}: {v}" for k, v in ROUNDS.items() if k != "teacher")]
    recipe = folder / "taught.yaml"
    recipe.write_text("\n".join([*settings, "teacher: {model: big.safetensors, weight: 1}"]))
    return recipe


def learning(seen: list[float]) -> Any:
    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        run.attach(optimizer)
        for batch in run.batches(DATA):
            optimizer.zero_grad()
            loss = run.distill(batch)
            wanted = prunus.distill(model, network(7), batch, loss=entropy, weight=1.0)
            if run.round:
                seen.append(loss.item() - wanted.item())
            loss.backward()
            optimizer.step()

    return train


def test_a_recipe_names_the_file_of_a_teacher_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    recipe = taught_by_file(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "elsewhere")
    apart: list[float] = []
    folder = tmp_path / "elsewhere" / "run"
    prunus.prune(network(), prunus.Recipe.load(recipe), train=learning(apart), loss=entropy,
                 folder=folder)  # fmt: skip
    assert apart == pytest.approx([0.0] * 6, abs=1e-6)
    (tmp_path / "moved").mkdir()
    for name in ("project", "elsewhere"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    monkeypatch.chdir(tmp_path)
    again = prunus.Recipe.load(tmp_path / "moved" / "elsewhere" / "run" / "recipe.yaml")
    assert again.teacher is not None
    assert again.place_of("big.safetensors").samefile(tmp_path / "moved/project/big.safetensors")


def test_a_run_goes_on_with_the_teacher_that_it_began_with(tmp_path: Path) -> None:
    recipe = prunus.Recipe.load(taught_by_file(tmp_path))
    folder = tmp_path / "run"
    steps = iter(range(100))
    with pytest.raises(prunus.Interrupted):
        prunus.prune(network(), recipe, train=learning([]), loss=entropy, folder=folder,
                     should_stop=lambda: next(steps) > 4)  # fmt: skip
    before = folder_name(recipe)
    taught_by_file(tmp_path, seed=8)
    with pytest.raises(InputError, match="another teacher"):
        prunus.prune(network(), recipe, train=learning([]), loss=entropy, folder=folder)
    assert folder_name(recipe) != before
    taught_by_file(tmp_path)
    prunus.prune(network(), recipe, train=learning([]), loss=entropy, folder=folder)


def test_a_file_of_a_teacher_is_looked_for_before_work_starts(tmp_path: Path) -> None:
    recipe = prunus.Recipe.load(taught_by_file(tmp_path))
    with pytest.raises(InputError, match="leave out one"):
        prunus.prune(network(), recipe, train=learning([]), loss=entropy, teacher=network(7))
    (tmp_path / "big.safetensors").unlink()
    with pytest.raises(InputError, match=r"big\.safetensors. is no file"):
        prunus.prune(network(), recipe, train=learning([]), loss=entropy)
    with pytest.raises(InputError, match=r"big\.safetensors. is no file"):
        prunus.Pruner(network(), recipe)


def test_a_pruner_learns_from_the_file_that_its_recipe_names(tmp_path: Path) -> None:
    model = network()
    pruner = prunus.Pruner(model, prunus.Recipe.load(taught_by_file(tmp_path)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner.join(optimizer, steps=9)
    apart = []
    for step in range(9):
        optimizer.zero_grad()
        loss = prunus.distill(model, pruner, DATA[step % 4], loss=entropy)
        wanted = prunus.distill(model, network(7), DATA[step % 4], loss=entropy, weight=1.0)
        apart.append(abs(loss.item() - wanted.item()))
        loss.backward()
        optimizer.step()
    assert max(apart[4:]) < 1e-6 < max(apart)


# --- loops of one's own


def loop(
    model: nn.Module, pruner: prunus.Pruner, optimizer: Any, steps: range, seen: list[float]
) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = prunus.distill(model, pruner, DATA[step % 4], loss=entropy)
        seen.append(loss.item())
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("recipe", [
    ROUNDS,
    {**ROUNDS, "structure": "channel", "compact": "every_round"},
    {"target": 0.5, "teacher": "dense"},
], ids=["rounds", "smaller", "gradual"])  # fmt: skip
def test_a_pruner_teaches_from_its_first_cut_on(recipe: dict[str, Any]) -> None:
    before = 3 if "dense" in recipe else 0
    dense, seen = network(), list[float]()
    own = torch.optim.SGD(dense.parameters(), 0.1)
    for step in range(before):  # what the loop makes of it before the first cut
        own.zero_grad()
        entropy(dense, DATA[step % 4]).backward()
        own.step()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = prunus.Pruner(model, recipe, optimizer, steps=9, example=DATA[0][0])
    loop(model, pruner, optimizer, range(before), seen)
    for step in range(before, 9):
        wanted = prunus.distill(model, dense, DATA[step % 4], loss=entropy).item()
        loop(model, pruner, optimizer, range(step, step + 1), seen)
        assert seen[-1] == pytest.approx(wanted, rel=1e-5)
    pruner.finish()
    assert pruner.achieved > 0.3


def test_a_loop_goes_on_with_the_same_teacher() -> None:
    def begun() -> tuple[nn.Module, Any]:
        model = network()
        return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    model, optimizer = begun()
    pruner = prunus.Pruner(model, ROUNDS, optimizer)
    seen: list[float] = []
    loop(model, pruner, optimizer, range(5), seen)
    saved = copy.deepcopy((pruner.state_dict(), model.state_dict(), optimizer.state_dict()))
    loop(model, pruner, optimizer, range(5, 9), seen)
    other, its = begun()
    again = prunus.Pruner(other, ROUNDS, its)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    its.load_state_dict(saved[2])
    found: list[float] = []
    loop(other, again, its, range(5, 9), found)
    assert found == seen[5:]


def test_a_loop_that_never_learns_is_told() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = prunus.Pruner(model, {**ROUNDS, "dense": 0}, optimizer)
    entropy(model, DATA[0]).backward()
    with pytest.raises(RunError, match="an optimizer step was taken without it"):
        optimizer.step()
    assert not pruner.done
    plain = network()
    bare = prunus.Pruner(plain, {"target": 0.5}, torch.optim.SGD(plain.parameters(), 0.1), steps=4)
    with pytest.raises(InputError, match="names no teacher"):
        prunus.distill(plain, bare, DATA[0], loss=entropy)
    begun = prunus.Pruner(network(), ROUNDS)
    begun.join(torch.optim.SGD(begun.model.parameters(), 0.1))
    with pytest.raises(InputError, match="before the first cut nobody teaches"):
        prunus.distill(begun.model, begun, DATA[0][0])


# --- the Trainer of transformers


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("hidden", [[], ["all"]])
def test_a_trainer_learns_from_the_dense_model(accumulate: int, hidden: list[str]) -> None:
    transformers = helpers.transformers()
    pytest.importorskip("accelerate")
    from prunus.hf import PruneCallback

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, hidden_dropout_prob=0, attention_probs_dropout_prob=0, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    dense = copy.deepcopy(model)
    ids = torch.randint(0, 20, (8, 5))
    rows = [{"input_ids": i, "labels": i[0] % 2} for i in ids]
    recipe = {"target": 0.5, "rounds": 1, "retrain": "2it",
              "teacher": {"weight": 0.5, "hidden": hidden}}  # fmt: skip

    def logged(model: nn.Module, recipe: dict[str, Any]) -> float:
        return float(trainer(model, PruneCallback(recipe)).state.log_history[0]["loss"])

    def trainer(model: nn.Module, callback: Any) -> Any:
        args = transformers.TrainingArguments(
            output_dir="out", max_steps=2, per_device_train_batch_size=4 // accumulate,
            gradient_accumulation_steps=accumulate, use_cpu=True, report_to="none",
            disable_tqdm=True, save_strategy="no", logging_steps=1, dataloader_pin_memory=False,
            learning_rate=0.0, train_sampling_strategy="sequential",
        )  # fmt: skip
        made = transformers.Trainer(
            model=model, train_dataset=rows, callbacks=[callback], args=args
        )
        made.train()
        return made

    plain = {key: value for key, value in recipe.items() if key != "teacher"}
    labels = logged(copy.deepcopy(dense), plain)  # as the Trainer adds it up
    found = logged(model, recipe)
    whole = {"input_ids": ids[:4]}
    part = prunus.distill(model, dense, whole, weight=1.0, hidden=hidden).item()
    close = 1e-3 if not hidden or accumulate == 1 else 5e-2  # ‖h − t‖²/‖t‖² of halves, averaged
    assert part > 1e-3
    assert found == pytest.approx(0.5 * labels + 0.5 * part, rel=close, abs=2e-4)
    assert not model._forward_hooks


def test_a_trainer_cannot_mix_inputs() -> None:
    helpers.transformers()
    pytest.importorskip("accelerate")
    from prunus.hf import PruneCallback

    PruneCallback({"target": 0.5, "teacher": {"hidden": "all"}})
    recipe = {"target": 0.5, "teacher": {"mix": True, "weight": 1.0}}
    callback = PruneCallback(recipe)
    model = network()
    state: Any = type("State", (), {"global_step": 0, "max_steps": 4})()
    args: Any = type("Args", (), {"load_best_model_at_end": False, "output_dir": "x",
                                  "gradient_accumulation_steps": 1})()  # fmt: skip
    with pytest.raises(InputError, match=r"teacher\.mix"):
        callback.on_train_begin(args, state, None, model=model, train_dataloader=DATA,
                                optimizer=torch.optim.SGD(model.parameters(), 0.1))  # fmt: skip


# --- Lightning


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*is deprecated")  # its own
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_lightning_module_learns_in_its_training_step() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from prunus.lightning import PruneCallback

    seen: list[tuple[float, float]] = []
    callback = PruneCallback({"target": 0.5, "rounds": 2, "retrain": "3it", "teacher": "dense"})
    dense = network()

    class Lit(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = prunus.distill(self, callback.pruner, batch, loss=entropy)
            wanted = prunus.distill(self.net, dense, batch, loss=entropy)
            seen.append((loss.item(), wanted.item()))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        max_steps=6, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
    )  # fmt: skip
    loader: Any = torch.utils.data.DataLoader(DATA, batch_size=None, num_workers=0)
    trainer.fit(Lit(), loader)
    assert len(seen) == 6
    assert all(found == pytest.approx(wanted, rel=1e-5) for found, wanted in seen)
