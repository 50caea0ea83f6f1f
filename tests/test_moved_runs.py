"""A run is where its folder is: it opens from anywhere, moved or renamed, its code gone or not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import prunus
from prunus.cli.main import cli
from prunus.progressive.record import Record
from prunus.recipe.resolve import code_that_runs, folder_name
from prunus.recipe.schema import Recipe
from prunus.tasks.find import task_of

TASK = """
from pathlib import Path

import torch
from prunus import Task
from torch import nn

print("RAN", Path(__file__).parent.name)
BESIDE = Path(__file__).with_name("data.txt")
SIZE = int(BESIDE.read_text()) if BESIDE.is_file() else 16


def model():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def task():
    inputs = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(0))
    batches = [(inputs, (inputs.sum(1) > 0).long())]
    return Task(
        model=model,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        metric=lambda model, batches: torch.cat([model(x).argmax(1) == y for x, y in batches]),
        train=batches, validation=batches, test=batches, example=inputs[:1], calibration=batches,
    )
"""
CRITERION = "def mine(weight, *, sign=1.0):\n    return sign * weight.abs()\n"
RECIPE = """
version: 1
task: code/task.py
criterion: {name: "code/own.py:mine", sign: 2.0}
dense: 1ep
rounds: 2
retrain: 1ep
target: 0.5
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A recipe beside its code, called from a folder that has neither."""
    place = tmp_path / "project"
    (place / "code").mkdir(parents=True)
    (place / "code/task.py").write_text(TASK)
    (place / "code/own.py").write_text(CRITERION)
    (place / "try.yaml").write_text(RECIPE)
    return place


def command(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done


def run_of(project: Path) -> Path:
    folder = project / "runs/first"
    recipe = Recipe.load(project / "try.yaml")
    prunus.prune(task_of(recipe), recipe, folder=folder)
    return folder


def code_of(run: Path) -> list[str]:
    """Where the code lies that opening a run would run."""
    return [*code_that_runs(Record(run).recipe)]


def test_a_finished_run_does_everything_from_any_folder_its_project_gone(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(project)
    before = json.loads((run / "result.json").read_text())
    (tmp_path / "far/away").mkdir(parents=True)
    run.rename(tmp_path / "far/away/renamed")
    shutil.rmtree(project)
    monkeypatch.chdir(tmp_path / "far")
    run, brief = Path("away/renamed"), ("--seconds", "0.01", "--batch", "1")
    for words in (
        ["plan", run],
        ["compare", run, run],
        ["measure", run, *brief],
        ["deploy", run, "--runtime", "eager", *brief],
        ["report", run],
    ):
        command(*words)
    assert "eager" in (run / "report.html").read_text()
    monkeypatch.chdir(run)
    assert prunus.resume(".").sparsity == before["sparsity"]
    assert json.loads(Path("result.json").read_text()) == before


def test_a_project_that_was_moved_reads_what_lies_beside_its_code(
    project: Path, tmp_path: Path
) -> None:
    (project / "code/data.txt").write_text("12")
    run_of(project)
    moved = project.rename(tmp_path / "elsewhere")
    assert code_of(moved / "runs/first") == ["elsewhere/code/own.py", "elsewhere/code/task.py"]
    assert len(task_of(Record(moved / "runs/first").recipe).example) == 1


def test_a_folder_that_was_moved_alone_uses_the_code_where_it_still_is(
    project: Path, tmp_path: Path
) -> None:
    (project / "code/data.txt").write_text("12")
    moved = run_of(project).rename(tmp_path / "alone")
    assert "project/code/task.py" in code_of(moved)
    (project / "code/task.py").write_text(TASK + "# edited\n")
    assert [Path(file).parts[:2] for file in code_of(moved)] == [
        ("project", "code"),
        ("alone", "code"),
    ]


def test_a_run_that_stopped_goes_on_after_a_move_to_the_same_bits(
    project: Path, tmp_path: Path
) -> None:
    whole = run_of(project)
    half, seen = tmp_path / "half", []

    def stop() -> bool:
        seen.append(1)
        return len(seen) > 2

    recipe = Recipe.load(project / "try.yaml")
    with pytest.raises(prunus.Interrupted):
        prunus.prune(task_of(recipe), recipe, folder=half, should_stop=stop)
    moved = half.rename(tmp_path / "other")
    (project / "code/task.py").unlink()
    prunus.resume(moved)
    for name in ("model", "masks"):
        same = [(run / f"{name}.safetensors").read_bytes() for run in (whole, moved)]
        assert same[0] == same[1]


def test_edited_code_is_refused_where_the_run_began_and_asked_about(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(project)
    (project / "code/task.py").write_text(TASK + "# edited\n")
    assert "other code" in command("resume", run, code=2).output
    (project / "code/task.py").write_text(TASK + "# again\n")
    monkeypatch.delenv("PRUNUS_TRUST")
    assert "code that you have not run" in command("resume", run, code=2).output


def test_names_on_the_command_line_are_relative_to_where_one_is(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here.pyproject"  # a dot and py in a folder's name are no file
    here.mkdir()
    monkeypatch.chdir(here)
    Path("own.py").write_text(CRITERION)
    recipe = Recipe.load(project / "try.yaml", ["criterion=own.py:mine"])
    assert recipe.path_of("own.py") == here / "own.py"
    assert recipe.path_of("code/task.py") == project / "code/task.py"
    named = Recipe.load("one_shot", ["task=digits", f"criterion={here}/own.py:mine"])
    assert [*code_that_runs(named)] == ["own.py"]
    (here / "code").mkdir()
    (here / "code/own.py").write_text(CRITERION)
    with pytest.raises(prunus.InputError, match=r"own\.py' is .* write out the path"):
        Recipe.load(project / "try.yaml", ["restore=code/own.py:mine"])


def test_a_name_that_is_not_beside_the_recipe_is_looked_for_where_one_is(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "try.yaml").rename(project / "code/try.yaml")
    monkeypatch.chdir(project)
    recipe = Recipe.load("code/try.yaml")
    assert recipe.path_of("code/task.py") == project / "code/task.py"


def test_the_same_recipe_has_one_fingerprint_wherever_it_is_read(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for place in (project, tmp_path, Path("/")):
        monkeypatch.chdir(place)
        names.add(folder_name(Recipe.load(project / "try.yaml")))
    shutil.copytree(project, tmp_path / "copy")
    names.add(folder_name(Recipe.load(tmp_path / "copy/try.yaml")))
    assert len(names) == 1


def test_a_damaged_or_hostile_origin_leads_to_no_file_that_was_not_named(project: Path) -> None:
    run = run_of(project)
    about = json.loads((run / "run.json").read_text())
    for origin in (
        None,
        [],
        {"folder": 3, "code": {}},
        {"folder": "", "code": {"code/task.py": 1}},
    ):
        (run / "run.json").write_text(json.dumps({**about, "origin": origin}))
        with pytest.raises(prunus.InputError):
            prunus.resume(run)


def test_projects_name_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"my_project": "my_project", "2026": "2026", "a: b [c]": "a- b -c", ".git": "git"}
    for folder, name in names.items():
        command("init", folder)
        recipe = Recipe.load(tmp_path / folder / "recipe.yaml")
        assert recipe.name == name
        assert recipe.path_of("task.py") == tmp_path / folder / "task.py"
    Path("inside").mkdir()
    monkeypatch.chdir("inside")
    command("init")
    assert Recipe.load("recipe.yaml").name == "inside"


PATHS = TASK.replace(
    "def task():",
    """READ = []


def task(*, data: Path, more: "list[Path] | None" = None, kind: str = "plain"):
    READ.append((data, more, kind))
    assert data.is_absolute() and int((data / "size.txt").read_text()) == 12""",
)


@pytest.fixture
def with_data(project: Path) -> Path:
    (project / "sets/small").mkdir(parents=True)
    (project / "sets/small/size.txt").write_text("12")
    (project / "code/task.py").write_text(PATHS)
    given = "{name: code/task.py, data: sets/small, more: [sets, ../other], kind: sets}"
    (project / "try.yaml").write_text(RECIPE.replace("code/task.py", given))
    return project


def read_by(recipe: Recipe) -> tuple[str, list[str], str]:
    """What the task's function was given, seen from the folder of this test."""
    from prunus.methods.catalog import find

    assert recipe.task is not None
    made = task_of(recipe)
    assert len(made.example) == 1
    data, more, kind = find("tasks", recipe.located(recipe.task).name).__globals__["READ"][-1]
    below = recipe.path_of("code/task.py").parent
    return os.path.relpath(data, below), [os.path.relpath(p, below) for p in more], kind


def test_paths_among_the_settings_of_a_task_lie_beside_the_recipe(
    with_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for here in (tmp_path, with_data, with_data / "code"):
        monkeypatch.chdir(here)
        found = read_by(Recipe.load(os.path.relpath(with_data / "try.yaml")))
        assert found == ("../sets/small", ["../sets", "../../other"], "sets")
    shutil.copytree(with_data / "sets", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    changed = Recipe.load(with_data / "try.yaml", ["task.data=mine/small"])
    assert read_by(changed)[:2] == ("../../mine/small", ["../sets", "../../other"])
    again = Recipe.load(Recipe.load(with_data / "try.yaml"), ["task.data=mine/small"])
    assert read_by(again)[0] == "../../mine/small"


@pytest.mark.parametrize("how", ["alone", "with the project", "with the data elsewhere"])
def test_a_run_finds_the_data_of_its_task_again_wherever_it_was_moved(
    with_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run = run_of(with_data)
    before = json.loads((run / "result.json").read_text())
    written = json.loads((run / "run.json").read_text())["origin"]["paths"]
    assert written == {"sets/small": str(with_data / "sets/small"), "sets": str(with_data / "sets")}
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "far")
    if how == "alone":
        run = run.rename(tmp_path / "far/run")
    else:
        run = with_data.rename(tmp_path / "far/moved") / "runs/first"
        if how == "with the data elsewhere":
            (tmp_path / "far/moved/code").rename(tmp_path / "far/code")
    assert prunus.resume(run).sparsity == before["sparsity"]
    command("measure", run, "--seconds", "0.01", "--batch", "1")
    command("deploy", run, "--runtime", "eager", "--seconds", "0.01", "--batch", "1")


def test_paths_of_a_task_that_is_a_class_are_found_too(with_data: Path) -> None:
    text = (with_data / "code/task.py").read_text()
    (with_data / "code/task.py").write_text(
        text
        + """

from dataclasses import dataclass

function = task


@dataclass
class Held:
    data: Path

    def __new__(cls, data: Path):
        return function(data=data)
"""
    )
    given = "{name: 'code/task.py:Held', data: sets/small}"
    (with_data / "try.yaml").write_text(RECIPE.replace("code/task.py", given))
    assert len(task_of(Recipe.load(with_data / "try.yaml")).example) == 1


def test_a_path_in_python_is_written_as_text(with_data: Path, tmp_path: Path) -> None:
    task = {"name": str(with_data / "code/task.py"), "data": with_data / "sets/small"}
    recipe = Recipe.load({"task": task, "target": 0.5})
    assert len(task_of(recipe).example) == 1
    (tmp_path / "written.yaml").write_text(recipe.to_yaml())
    again = Recipe.load(tmp_path / "written.yaml")
    assert len(task_of(again).example) == 1
    assert again.digest() == recipe.digest()
