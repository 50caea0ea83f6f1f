"""Examples as folders: run from a checkout, or copied as a project of one's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunus._common import examples
from prunus.cli.main import cli
from prunus.errors import InputError
from prunus.recipe.load import recipe_path
from prunus.recipe.schema import Recipe
from prunus.tasks.find import task_of
from stand_ins import EXAMPLES, MAKERS, ROWS, each_of, make_all


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside any checkout, with prunus installed elsewhere."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no checkout is at hand."""
    monkeypatch.setattr(examples, "INSTALLED", Path("/nowhere"))


def invoke(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(words))
    return done.exit_code, done.output


def test_a_folder_stands_for_the_recipe_that_it_holds(outside: Path) -> None:
    def put(*names: str) -> Path:
        shutil.rmtree("mine", ignore_errors=True)
        Path("mine").mkdir()
        for name in names:
            Path("mine", name).write_text("target: 0.5\n")
        return Path("mine")

    assert recipe_path(put("one.yaml")).name == "one.yaml"
    assert recipe_path(put("mine.yaml", "other.yaml")).name == "mine.yaml"
    assert recipe_path(put("net.yaml", "net_small.yaml", "net.py")).name == "net.yaml"
    assert recipe_path(put("mine.yaml", "recipe.yaml")).name == "recipe.yaml"
    for several in (("one.yaml", "two.yaml"), ("mine.yaml", "net.yaml", "net.py")):
        with pytest.raises(InputError, match=r"several recipes.*mine/"):
            recipe_path(put(*several))
    with pytest.raises(InputError, match="there is no recipe or file 'mine'"):
        recipe_path(put())


@pytest.mark.usefixtures("no_pictures")
def test_an_example_runs_by_its_folder_from_a_checkout(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(make_all(outside / "data")))
    Path("examples").symlink_to(EXAMPLES)
    words = ("task.length=16", "task.layers=1", "task.width=16", "task.heads=2", "task.batch=4",
             "task.steps=3", "dense.length=2it", "retrain=1it", "rounds=1", "target.step=0.3",
             "guard.max_drop=9", "deploy=null", "--folder", "run")  # fmt: skip
    code, said = invoke("run", "examples/shakespeare", *words)
    assert code == 0, said
    assert (outside / "run/result.json").is_file()
    code, said = invoke("run", "examples/cifar10")
    assert code == 2
    assert "several recipes, name one of them: examples/cifar10/cifar10_channels.yaml" in said


@pytest.mark.parametrize("name", each_of(MAKERS))
def test_every_example_can_be_copied_and_its_copy_needs_no_checkout(
    name: str, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = invoke("init", "--from", name, "mine")
    assert code == 0, said
    assert f"then: prunus run mine/{min(r for r in ROWS if ROWS[r] == name)}.yaml" in said
    monkeypatch.setenv("PRUNUS_DATA", str(make_all(outside / "data")))
    leave(monkeypatch)
    for row in (r for r in ROWS if ROWS[r] == name):
        recipe = Recipe.load(f"mine/{row}.yaml")
        assert recipe.task is not None
        assert recipe.task.name == f"{name}.py:{name}"
        task = task_of(recipe)
        assert len(list(task.validation)) > 0
        if name != "cifar10":  # whose weights are not in the data that is made up
            assert task.model() is not None
    code, said = invoke("init", "--from", name, "mine")
    assert code != 0  # no checkout is left to copy from
    assert "run inside a checkout" in said


def test_a_copy_never_writes_over_a_file_of_the_users(outside: Path) -> None:
    invoke("init", "--from", "shakespeare", "mine")
    assert invoke("init", "--from", "shakespeare", "mine")[0] == 0  # the same bytes
    Path("mine/shakespeare.yaml").write_text("target: 0.1\n")
    code, said = invoke("init", "--from", "examples/shakespeare", "mine")
    assert code == 2
    assert "'mine/shakespeare.yaml' exists; name another folder" in said
    assert Path("mine/shakespeare.yaml").read_text() == "target: 0.1\n"
    code, said = invoke("init", "--from", "shakespear", "other")
    assert code == 2
    assert "there is no example 'shakespear'; did you mean 'shakespeare'?" in said
    assert not Path("other").exists()


def test_what_can_go_is_said_of_an_examples_folder(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(make_all(outside / "data")))
    Path("examples").symlink_to(EXAMPLES)
    code, said = invoke("units", "examples/spoken_digits")
    assert code == 0, said
    assert "units that can be removed" in said


def test_help_shows_how_to_run_an_example_and_how_to_copy_one() -> None:
    assert "prunus run examples/translation" in invoke("run", "--help")[1]
    assert "prunus init --from movie_reviews my_project" in invoke("init", "--help")[1]
