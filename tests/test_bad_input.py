"""Bad input: one clear message with what to do, the right exit code, nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from fresh import Pythons
from helpers import quick, tiny_task
from prunus._common import files
from prunus.cli.main import cli
from prunus.errors import InputError, Interrupted, PrunusError, RunError
from prunus.progressive.phase import Run
from prunus.recipe.schema import Recipe

FAST = ["task=digits", "dense=1ep", "retrain=1ep", "rounds=2"]


def command(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["targt=0.9"], "target"),
        (["schedule.evry=3it"], "evry"),
        (["criterion=magnitud"], "magnitude"),
        (["criterion={name: magnitude, q: 2}"], "q"),
        (["criterion={name: magnitude, p: -1}"], "greater than 0"),
        (["task=digit"], "digits"),
        (["task=missing.py"], "missing.py"),
        (["task={name: digits, size: 3}"], "size"),
        (["target=1.5"], "target"),
        (["target=-0.1"], "target"),
        (["target=1.0"], "target"),
        (["target=.nan"], "target"),
        (["target=0.9999999"], "at most"),
        (["structure=4:2", "allocation=uniform", "target=null"], "0 < n < m"),
        (["structure=4:4", "allocation=uniform", "target=null"], "0 < n < m"),
        (["structure=2:4"], "target"),
        (["structure=7:9", "allocation=uniform", "target=null"], "input width"),
        (["scope.include=[nothing]"], "nothing"),
        (["scope.exclude=['*']"], "no prunable weights"),
        (["dense=forever"], "forever"),
        (["retrain=20min"], "not a length of training"),
        (["schedule.every=3it"], "cannot be combined"),
        (["guard=null", "target=guard"], "needs a guard"),
        (["allocation=threshold"], "theta"),
        (["allocation={name: threshold, theta: -1}"], "theta"),
        (["restore={name: revive, values: cut}"], "undo the cut"),
        (["seed=-1"], "seed"),
        (["rounds=0"], "rounds"),
        (["version=3"], "version"),
        (["=3"], "key=value"),
        (["target"], "key=value"),
        (["guard={max_dorp: 1}"], "max_drop"),
        (["structure={name: subset, neurons: {'0': [99]}}"], "0 to 15"),
        (["structure={name: layer, modules: [nothing]}"], "nothing"),
        (["criterion=missing.py:mine"], "missing.py"),
        (["structure=[channel, head]"], "one name, or a mapping: a name and its settings"),
        (["guard=0.5"], "a mapping with keys of better, max_drop"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_written(
    changes: list[str], says: str
) -> None:
    done = command("run", "iterative", *changes, "--folder", "run")
    assert done.exit_code == 2, done.output
    assert done.output.startswith("Error:")
    assert says in done.output
    assert "Traceback" not in done.output
    assert not Path("run").exists() or list(Path("run").iterdir()) == []


def test_every_error_of_a_recipe_is_told_at_once() -> None:
    done = command("run", "iterative", "seed=-1", "target=2", "critrion=x", "schedule=cubik")
    assert done.exit_code == 2
    assert all(word in done.output for word in ("seed", "target", "criterion"))


@pytest.mark.parametrize("words", [("run", "nowhere"), ("run", "iterativ"), ("resume", "nowhere"),
                                   ("report", "nowhere"), ("compare", "a", "b"),
                                   ("compare", "a"), ("list", "criterion"),
                                   ("plan", "iterative", "task=mnist")])  # fmt: skip
def test_a_command_on_nothing_says_so(words: tuple[str, ...], monkeypatch: Any) -> None:
    monkeypatch.delenv("PRUNUS_DATA", raising=False)
    done = command(*words)
    assert done.exit_code == 2
    assert done.output.startswith("Error:")
    assert "Traceback" not in done.output


def test_a_recipe_that_is_no_yaml_is_refused() -> None:
    Path("bad.yaml").write_text("target: [0.9\n")
    Path("list.yaml").write_text("- target\n")
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.yaml", "list.yaml", "bytes.yaml"):
        assert command("run", name).exit_code == 2


def test_a_model_without_prunable_weights_is_refused() -> None:
    with pytest.raises(InputError, match="no prunable weights"):
        prunus.prune(nn.ReLU(), {"target": 0.5})
    with pytest.raises(InputError, match="no prunable weights"):
        prunus.prune(nn.Embedding(3, 3), {"target": 0.5})


def test_a_folder_of_another_recipe_is_refused_and_left_alone() -> None:
    prunus.prune(tiny_task(), quick(), folder="run")
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="another recipe"):
        prunus.prune(tiny_task(), quick(target=0.6), folder="run")
    with pytest.raises(InputError, match="another model"):
        prunus.prune(tiny_task(width=20), quick(), folder="run")
    assert before == {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}


def test_a_folder_of_other_files_is_refused() -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="other files"):
        prunus.prune(tiny_task(), quick(), folder="mine")
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_written_is_refused_before_training() -> None:
    Path("file").write_text("no folder")
    steps: list[Any] = []
    with pytest.raises(InputError, match="cannot be written"):
        prunus.prune(tiny_task(), quick(), folder="file/run", on_event=steps.append)
    assert steps == []


def test_two_runs_in_one_folder_are_kept_apart() -> None:
    def evaluate(model: nn.Module) -> float:
        with pytest.raises(InputError, match="another run"):
            prunus.prune(tiny_task(), quick(rounds=1), folder="run")
        return 1.0

    prunus.prune(tiny_task(), quick(rounds=1), folder="run", evaluate=evaluate)


def test_a_full_disk_costs_no_result_and_the_run_goes_on_once_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = prunus.prune(tiny_task(), quick(), folder="whole")
    real, left = os.fsync, [12]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match="the disk is full") as error:
        prunus.prune(tiny_task(), quick(), folder="run")
    assert "prunus resume" in str(error.value)
    assert list(Path("run").rglob("*.tmp")) == []
    left[0] = 10**9
    result = prunus.prune(tiny_task(), quick(), folder="run")
    assert torch.equal(result.model[0].weight, expected.model[0].weight)  # type: ignore[index]


def stopped(folder: str, after: int) -> None:
    """A run that was asked to stop after so many steps."""
    steps: list[int] = []

    def watch(event: Any) -> None:
        if event["event"] == "step":
            steps.append(1)

    with pytest.raises(Interrupted):
        prunus.prune(
            tiny_task(), quick(snapshot="3it"), folder=folder, on_event=watch,
            should_stop=lambda: len(steps) >= after,
        )  # fmt: skip


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "empty"])
def test_a_damaged_snapshot_gives_way_to_the_last_good_one_and_it_says_so(harm: str) -> None:
    expected = prunus.prune(tiny_task(), quick(snapshot="3it"), folder="whole")
    stopped("run", after=22)
    lines = [json.loads(x) for x in Path("run/journal.jsonl").read_text().splitlines()]
    newest = [x for x in lines if x["event"] == "snapshot"][-1]["name"]
    path = Path("run/snapshots") / newest
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "remove":
        path.unlink()
    else:
        path.write_bytes(data[: 0 if harm == "empty" else 99])
    notes: list[str] = []

    def watch(event: Any) -> None:
        if event["event"] == "note":
            notes.append(event["text"])

    result = prunus.prune(tiny_task(), quick(snapshot="3it"), folder="run", on_event=watch)
    assert any(newest in note and "last good one" in note for note in notes)
    assert torch.equal(result.model[0].weight, expected.model[0].weight)  # type: ignore[index]


def test_infinite_weights_are_refused_before_work() -> None:
    model = tiny_task().model()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf  # type: ignore[index]
    with pytest.raises(RunError, match=r"0\.weight"):
        prunus.prune(model, {"target": 0.5})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_step(value: float) -> None:
    task = tiny_task(loss=lambda model, batch: model(batch[0]).sum() * value)
    with pytest.raises(RunError, match="step 1 of round 0"):
        prunus.prune(task, quick())


def test_a_metric_that_is_not_finite_ends_the_run_and_keeps_the_last_good_round() -> None:
    values = iter([0.9, 0.9, 0.9, math.nan])
    with pytest.raises(RunError, match="evaluate returned nan"):
        prunus.prune(tiny_task(), quick(), evaluate=lambda m: next(values), folder="run")
    expected = prunus.prune(tiny_task(), quick(), evaluate=lambda m: 0.9, folder="whole")
    result = prunus.prune(tiny_task(), quick(), evaluate=lambda m: 0.9, folder="run")
    assert torch.equal(result.model[0].weight, expected.model[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("value", [None, "0.9", True, [0.9], torch.ones(2, 2), torch.ones(0)])
def test_an_evaluate_that_returns_no_number_is_refused_before_training(value: Any) -> None:
    steps: list[Any] = []
    with pytest.raises(InputError, match="evaluate"):
        prunus.prune(tiny_task(), quick(), evaluate=lambda m: value, on_event=steps.append)
    assert steps == []


def test_a_train_that_attaches_nothing_or_takes_no_step_is_an_error() -> None:
    task = tiny_task()
    with pytest.raises(InputError, match=r"run\.attach"):
        prunus.prune(task.model(), quick(), train=lambda model, run: None)

    def idle(model: nn.Module, run: Run) -> None:
        run.attach(task.optimizer(model.parameters()))
        for _ in run.batches(task.train):
            pass

    with pytest.raises(RunError, match="no optimizer step"):
        prunus.prune(task.model(), quick(), train=idle)


def test_an_empty_loader_is_refused() -> None:
    task = tiny_task(train=[])
    with pytest.raises(PrunusError):
        prunus.prune(task, quick())


def test_a_theta_that_empties_a_layer_ends_the_run_after_round_0_with_the_numbers() -> None:
    recipe = quick(allocation={"name": "threshold", "theta": 0.5}, schedule="one_shot")
    rows: list[Any] = []

    def watch(event: Any) -> None:
        if event["event"] == "judged":
            rows.append(event["row"])

    with pytest.raises(InputError, match="128 of 128"):
        prunus.prune(tiny_task(), recipe, on_event=watch)
    assert [r.index for r in rows] == [0]


def test_gradients_asked_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="calibration"):
        prunus.prune(tiny_task().model(), {"target": 0.5, "criterion": "sensitivity"})
    with pytest.raises(InputError, match="before a cut"):
        prunus.prune(tiny_task().model(), {"target": 0.5, "criterion": "fisher_running"})


@pytest.mark.parametrize("structure", ["weight", "channel"])
def test_running_gradients_of_a_frozen_weight_are_refused_before_work_starts(
    structure: str,
) -> None:
    task = tiny_task()
    model = task.model()
    model.get_submodule("3").requires_grad_(False)
    steps: list[object] = []
    recipe = {"target": 0.5, "criterion": "fisher_running", "structure": structure, "rounds": 1,
              "dense": "1ep"}  # fmt: skip

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = task.optimizer(model.parameters())
        run.attach(optimizer)
        for batch in run.batches(task.train):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
            steps.append(batch)

    with pytest.raises(InputError, match=r"'3\.weight' is frozen"):
        prunus.prune(model, recipe, train=train, example=task.example)
    assert steps == []
    if structure == "weight":
        scope = {"exclude": ["3"]}
        result = prunus.prune(model, {**recipe, "scope": scope}, train=train, example=task.example)
        assert result.masks.keys() == {"0.weight"}


def test_a_weight_that_training_never_reached_is_named_at_the_cut() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Idle()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = {"target": 0.5, "criterion": "fisher_running", "schedule": "linear"}
    prunus.Pruner(model, recipe, optimizer, steps=2)
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(InputError, match=r"'idle\.weight' had no gradient"):
        optimizer.step()


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="int"):
        prunus.prune(3, {"target": 0.5})  # type: ignore[arg-type]


def test_a_failure_in_the_users_task_is_one_line_and_exit_code_1() -> None:
    Path("task.py").write_text(
        "from prunus.tasks.digits import digits\n"
        "import dataclasses\n"
        "def broken(model, batch):\n    raise KeyError('my label')\n"
        "def task():\n    return dataclasses.replace(digits(), loss=broken)\n"
    )
    done = command("run", "iterative", *FAST, "task=task.py", "--folder", "run")
    assert done.exit_code == 1
    assert "KeyError" in done.output
    assert "task.py, line 4" in done.output
    assert "Traceback" not in done.output


def test_a_task_file_that_fails_is_refused_with_its_error() -> None:
    Path("task.py").write_text("import nothing_of_the_kind\n")
    done = command("run", "iterative", "task=task.py")
    assert done.exit_code == 2
    assert "nothing_of_the_kind" in done.output


def test_ctrl_c_saves_and_prints_the_command_that_goes_on(tmp_path: Path, python: Pythons) -> None:
    code = "from prunus.cli.entry import main; main()"
    words = ["run", "iterative", "dense=1000ep", "snapshot=20it", "--folder", str(tmp_path / "run")]
    process = python.start(code, *words)
    journal = tmp_path / "run" / "journal.jsonl"
    while not journal.exists() or '"snapshot"' not in journal.read_text():
        os.kill(process.pid, 0)  # it is still there
        signal.sigtimedwait([], 0.1)
    os.kill(process.pid, signal.SIGINT)
    done = process.wait()
    output = done.stdout + done.stderr
    assert done.returncode == 130, output
    assert f"prunus resume {tmp_path / 'run'}" in output
    assert "Traceback" not in output


# --- fuzz

WORDS = st.sampled_from([
    *Recipe.model_fields, "name", "sparsity", "weight", "2:4", "magnitude", "guard", "global",
    "3ep", "0.5", "uniform", "keep", "p", "", "¿", "fisher", "length",
])  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.text(max_size=5)
)
TREES = st.recursive(
    SCALARS, lambda t: st.one_of(st.lists(t, max_size=3), st.dictionaries(WORDS, t, max_size=3)),
    max_leaves=8,
)  # fmt: skip


@given(values=st.dictionaries(WORDS, TREES, max_size=4))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_mapping_is_a_recipe_or_one_of_our_own_errors(values: dict[str, Any]) -> None:
    with contextlib.suppress(PrunusError):
        assert prunus.Pruner(nn.Linear(8, 4), Recipe.load(values)).sparsity == 0


@given(
    name=st.sampled_from(["gradual", "iterative", "two_four", "soft", "source_text"]),
    changes=st.lists(
        st.tuples(WORDS, st.one_of(WORDS, st.text(max_size=12))).map(lambda x: f"{x[0]}={x[1]}"),
        max_size=3,
    ),
)
@settings(max_examples=100, deadline=None)
def test_any_change_on_the_command_line_is_understood_or_one_of_our_own_errors(
    name: str, changes: list[str]
) -> None:
    with contextlib.suppress(PrunusError):
        assert Recipe.load(name, changes).version == 1


@pytest.mark.parametrize(
    "value", [len, torch.ones(2), torch.ones(()), {1, 2}, b"x", object(), 1j, np.ones(2), [len]]
)
def test_a_setting_that_no_file_can_hold_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"criterion: .* cannot be written into a file"):
        prunus.Recipe.load({"criterion": {"name": "magnitude", "p": value}})


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.float32(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (Path("x"), "x"),
     ({"a": [np.int64(1)]}, {"a": [1]})],
)  # fmt: skip
def test_a_setting_is_what_a_file_would_hold(value: object, plain: object) -> None:
    recipe = prunus.Recipe.load({"criterion": {"name": "magnitude", "p": value}})
    assert recipe.criterion.settings == {"p": plain}
    assert type(recipe.criterion.settings["p"]) is type(plain)
    assert prunus.Recipe.load({"criterion": {"name": "magnitude", "p": plain}}) == recipe


@pytest.mark.parametrize("change", [
    {"guard": {"max_drop": True}}, {"rounds": True}, {"seed": False},
    {"limits": {"*": {"most": True}}},
    {"target": {"sparsity": 0.5, "layers": {"0": True}}}, {"target": {"sparsity": True}},
])  # fmt: skip
@pytest.mark.parametrize("way", [prunus.Recipe.load, lambda values: prunus.Recipe(**values)])
def test_yes_and_no_are_no_numbers(change: dict[str, Any], way: Any) -> None:
    """``max_drop: yes`` would be a drop of 1: whatever happens is accepted."""
    with pytest.raises(InputError, match=r"(true|false) is no number: write the number itself"):
        way({"rounds": 2, "guard": {"max_drop": 0.1}, **change})
