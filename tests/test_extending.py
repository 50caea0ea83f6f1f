"""A new idea is one new file; a user's own needs no change of the package at all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import prunus
from fresh import Pythons
from helpers import quick, tiny_task
from prunus.cli.main import cli
from prunus.errors import InputError
from prunus.methods.catalog import from_file
from prunus.recipe.schema import Recipe

CRITERION = '''"""Late inputs matter least."""

from torch import Tensor, arange


def first(weight: Tensor, *, slope: float = 1.0) -> Tensor:
    """First: the further to the right an input, the lower.

    Source: this test.
    """
    return (-slope * arange(weight.shape[-1])).expand(weight.shape).clone()
'''
SCHEDULE = '''"""All of it half way."""


def halfway(progress: float, start: float, target: float) -> float:
    """Halfway: start, and from the middle on the target.

    Source: this test.
    """
    return target if progress >= 0.5 else start
'''


def test_a_new_criterion_and_a_new_schedule_are_one_file_each(
    tmp_path: Path, python: Pythons
) -> None:
    package = Path(prunus.__file__).parent
    shutil.copytree(package, tmp_path / "copy" / "prunus")
    (tmp_path / "copy/prunus/methods/criteria/first.py").write_text(CRITERION)
    (tmp_path / "copy/prunus/methods/schedules/halfway.py").write_text(SCHEDULE)

    def told(code: str) -> str:
        done = python(code, env={"PYTHONPATH": str(tmp_path / "copy")}, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = told(
        "from prunus.cli.entry import main; import sys; sys.argv = ['prunus', 'list']; main()"
    )
    assert "first (slope=1.0): First: the further to the right" in listed
    assert "halfway: Halfway: start, and from the middle on" in listed
    used = told(
        "import prunus, torch; from torch import nn; m = nn.Linear(4, 2);"
        "recipe = {'criterion': {'name': 'first', 'slope': 2}, 'schedule': 'halfway',"
        " 'target': 0.5}; prunus.prune(m, recipe);"
        "print(prunus.__file__); print((m.weight != 0).long().tolist())"
    )
    assert str(tmp_path) in used
    assert "[[1, 1, 0, 0], [1, 1, 0, 0]]" in used


def test_a_users_own_criterion_is_named_in_a_recipe() -> None:
    Path("my").mkdir()
    Path("my/own.py").write_text(CRITERION)
    recipe = quick(criterion={"name": "my/own.py:first", "slope": 3.0}, allocation="uniform")
    result = prunus.prune(tiny_task(), recipe)
    assert result.masks["0.weight"].all(dim=0).tolist() == [True] * 4 + [False] * 4


def test_the_file_of_the_page_on_own_methods_prunes_with_each_of_them() -> None:
    page = (Path(__file__).parents[1] / "docs/own_methods.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    Path("mine.py").write_text(text)
    names = {"criterion": "saliency", "schedule": "staircase", "restore": "halfway_back"}
    for more in ({"allocation": "mine.py:by_root"}, {"structure": "mine.py:columns"}):
        recipe = quick(**{key: f"mine.py:{name}" for key, name in names.items()}, **more)
        assert prunus.prune(tiny_task(), recipe).sparsity > 0
    signals = Path(prunus.__file__).parent / "methods/signals"
    named = {p.stem for p in signals.glob("[a-z]*.py")}
    assert named == set(re.findall(r"`(\w+)`", page)) & named


def test_a_restore_that_reads_a_state_without_declaring_it_is_told_how() -> None:
    Path("own.py").write_text("def back(state, masks, memory):\n    return memory.start()\n")
    with pytest.raises(InputError, match="write RECALLS = 'start' beside the function"):
        prunus.prune(tiny_task(), quick(restore="own.py:back"))


@pytest.mark.parametrize(("key", "code", "says"), [
    ("schedule", "f(p):\n return p", "called with progress, start, target"),
    ("schedule", "f(p, start, target):\n return None", "the sparsity that is due"),
    ("allocation", "f(u, cost, t, limits):\n return None", "the units that each group keeps"),
    ("allocation", "f(u, cost, t, limits):\n return {}", "nothing for 0.weight"),
    ("allocation", "f(u, cost, t, limits):\n return {g: g.units / 3 for g in u}", "whole number"),
    ("restore", "f(state, masks, memory):\n return None", "prunus.types.State"),
])  # fmt: skip
def test_what_a_method_of_ones_own_takes_and_gives_is_looked_at(
    key: str, code: str, says: str
) -> None:
    Path("own.py").write_text(f"def {code}\n")
    with pytest.raises(InputError, match=f"own.py:f.*{says}"):
        prunus.prune(tiny_task(), quick(dense="1it", retrain="1it", **{key: "own.py:f"}))


def test_types_that_only_a_type_checker_imports_are_no_hindrance() -> None:
    Path("own.py").write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from torch import Tensor\n"
        "def f(weight: Tensor, *, p: float = 2.0) -> Tensor:\n    return weight.abs() ** p\n"
    )
    assert prunus.prune(torch.nn.Linear(4, 4), {"criterion": "own.py:f", "target": 0.5}).masks
    with pytest.raises(InputError, match=r"p: .*number"):
        prunus.prune(torch.nn.Linear(4, 4), {"criterion": {"name": "own.py:f", "p": "x"}})


def test_a_file_without_the_name_of_its_function_is_refused_as_that() -> None:
    with pytest.raises(InputError, match=r"name the function as well: own\.py:function"):
        Recipe.load({"criterion": "own.py"})


def test_a_copy_of_a_users_file_reads_what_lies_beside_the_copy() -> None:
    text = """
from pathlib import Path

NAME = Path(__file__).with_name("name").read_text()


def name():
    return NAME
"""
    for name in ("first", "second"):
        Path(name).mkdir()
        Path(name, "own.py").write_text(text)
        Path(name, "name").write_text(name)
    first, again, second = (
        from_file(Path(folder, "own.py"), "name") for folder in ("first", "first", "second")
    )
    assert first is again
    assert (first(), second()) == ("first", "second")


@pytest.mark.usefixtures("no_pictures")
def test_a_users_own_code_is_announced_and_part_of_the_fingerprint() -> None:
    Path("own.py").write_text(CRITERION)
    Path("task.py").write_text(
        "from prunus.tasks.mlp import mlp\n\n\ndef task():\n    return mlp()\n"
    )
    words = ["run", "iterative", "task=task.py", "criterion=own.py:first", "dense=1ep",
             "retrain=1ep", "rounds=1", "guard=null", "target=0.5"]  # fmt: skip
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "runs code from own.py" in done.output
    assert "runs code from task.py" in done.output
    (folder,) = Path("runs").iterdir()
    about = json.loads((folder / "run.json").read_text())
    assert set(about["identity"]["code"]) == {"own.py", "task.py"}
    Path("own.py").write_text(CRITERION.replace("-slope", "slope"))
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_a_criterion_that_returns_another_shape_is_refused() -> None:
    Path("own.py").write_text("def sums(weight):\n    return weight.abs().sum(dim=1)\n")
    with pytest.raises(InputError, match="returned"):
        prunus.prune(tiny_task(), quick(criterion="own.py:sums"))


def test_a_criterion_that_asks_for_an_unknown_signal_is_refused() -> None:
    Path("own.py").write_text("def odd(weight, curvature):\n    return weight\n")
    with pytest.raises(InputError, match="curvature"):
        prunus.prune(tiny_task(), quick(criterion="own.py:odd"))


def test_a_structure_of_ones_own_that_asks_for_the_analysis_can_be_taken_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(
        "from prunus.methods.structures.channel import channel\n"
        "def first(layers, shapes, analysis):\n"
        "    return channel(layers, shapes, analysis)[:1]\n"
        "def rows(layers, shapes):\n"
        "    from prunus.methods.structures.neuron import neuron\n"
        "    return neuron(layers, shapes)\n"
    )
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    recipe = {"target": {"max_params": 0.6}, "compact": "end"}
    example = torch.ones(1, 4)
    with pytest.raises(prunus.InputError, match="takes no analysis"):
        prunus.prune(model, {**recipe, "structure": f"{tmp_path}/mine.py:rows"}, example=example)
    small = prunus.prune(
        model, {**recipe, "structure": f"{tmp_path}/mine.py:first"}, example=example
    ).model
    assert sum(p.numel() for p in small.parameters()) <= 0.6 * 58


# --- whose code it is

THEIRS = "from prunus.tasks.mlp import mlp\n\n\ndef task():\n    print('RAN')\n    return mlp()\n"
BRIEF = ["dense=3it", "retrain=3it", "rounds=1", "guard=null", "target=0.5"]
ASKING = (
    ["resume", "run"],
    ["deploy", "run", "--runtime", "eager"],
    ["measure", "run", "--seconds", "0.01"],
    ["measure", "run", "--seconds", "0.01", "--json"],
    ["plan", "run/recipe.yaml"],
    ["plan", "run/recipe.yaml", "--json"],
    ["units", "task.py:task"],
)


@pytest.fixture
def run_of_theirs(monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    """A finished run whose recipe names code."""
    monkeypatch.delenv("PRUNUS_TRUST")
    Path("task.py").write_text(THEIRS)
    done = CliRunner().invoke(cli, ["run", "iterative", "task=task.py", *BRIEF, "--folder", "run"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("words", ASKING)
def test_code_of_others_is_asked_for_by_every_command_that_would_run_it(
    run_of_theirs: None, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "RAN" in CliRunner().invoke(cli, words).output  # this user has run it before
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path("another user").absolute()))
    refused = CliRunner().invoke(cli, words)
    assert refused.exit_code == 2
    assert "RAN" not in refused.output
    assert "task.py (sha256 " in refused.output
    assert "add --trust, or set PRUNUS_TRUST=1" in refused.output
    said = CliRunner().invoke(cli, [*words, "--trust"])
    assert said.exit_code == 0, said.output
    assert "RAN" in said.output
    assert "runs code from task.py (sha256 " in said.stderr
    assert CliRunner().invoke(cli, words).exit_code == 0  # remembered
    Path("task.py").write_text(THEIRS + "# changed\n")
    changed = CliRunner().invoke(cli, words)
    assert changed.exit_code == 2
    assert "RAN" not in changed.output


def test_the_variable_and_an_answer_at_the_terminal_say_yes_or_no(
    run_of_theirs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path("another user").absolute()))
    monkeypatch.setattr("prunus.cli.trust._at_a_terminal", lambda: True)
    words = ["units", "task.py:task"]
    assert CliRunner().invoke(cli, words, input="n\n").exit_code == 2
    assert CliRunner().invoke(cli, words, input="y\n").exit_code == 0
    assert CliRunner().invoke(cli, words, input="").exit_code == 0
    Path("task.py").write_text(THEIRS + "# changed\n")
    monkeypatch.setenv("PRUNUS_TRUST", "1")
    assert CliRunner().invoke(cli, words).exit_code == 0


def test_a_list_that_cannot_be_written_stops_nothing(
    run_of_theirs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path("a file").absolute()))
    assert CliRunner().invoke(cli, ["units", "task.py:task", "--trust"]).exit_code == 0
