"""A project of several files: what lies beside a task or a method is imported, told and kept."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import prunus
from prunus._common.own_code import MOST, PREFIX, VARIABLE, module_at
from prunus._common.own_files import beside
from prunus._common.own_files import written as words_of
from prunus.cli.main import cli
from prunus.errors import InputError
from prunus.progressive.record import Record
from prunus.recipe.resolve import code_that_runs
from prunus.recipe.schema import Recipe
from prunus.tasks.find import task_of

TASK = """
import torch
from models.net import make
from prunus import Task
from torch import nn


def task():
    import data  # lazily, as many do

    batches = data.batches()
    return Task(
        model=make,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        metric=lambda model, batches: torch.cat([model(x).argmax(1) == y for x, y in batches]),
        train=batches, validation=batches, test=batches, example=batches[0][0][:1],
        calibration=batches,
    )
"""
FILES = {
    "code/task.py": TASK,
    "code/data.py": "import torch\nfrom tools import SEED\n\ndef batches():\n"
    "    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(SEED))\n"
    "    return [(x, (x.sum(1) > 0).long())]\n",
    "code/models/net.py": "from torch import nn\nfrom models.parts import layer\n\ndef make():\n"
    "    return nn.Sequential(layer(4, 6), nn.ReLU(), layer(6, 2))\n",
    "code/models/parts.py": "from torch import nn\n\nlayer = nn.Linear\n",
    "code/tools/__init__.py": "from .numbers import SEED\nfrom . import unused\n",
    "code/tools/numbers.py": "SEED = 0\n",
    "code/tools/unused.py": "",
    "code/not_mine.py": "raise SystemExit('nobody imports this')\n",
    "try.yaml": "version: 1\ntask: code/task.py\ndense: 1ep\nrounds: 1\nretrain: 1ep\n"
    "target: 0.5\n",
}
OTHERS = ["data.py", "models/net.py", "models/parts.py", "tools/__init__.py", "tools/numbers.py",
          "tools/unused.py"]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return written(tmp_path / "project", FILES)


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(VARIABLE, "{}")
    yield
    _forget_own_modules()


def _forget_own_modules() -> None:
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        del sys.modules[name]


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder


def run_of(project: Path) -> Path:
    recipe = Recipe.load(project / "try.yaml")
    prunus.prune(task_of(recipe), recipe, folder=project / "run")
    return project / "run"


def test_what_lies_beside_a_task_is_imported_and_nothing_else_runs(project: Path) -> None:
    assert sorted(beside(project / "code/task.py")) == OTHERS
    before = set(sys.modules), list(sys.path)
    task_of(Recipe.load(project / "try.yaml"))
    assert sys.path == before[1]
    assert all(name.startswith((PREFIX, "prunus.")) for name in set(sys.modules) - before[0])


def test_a_run_that_was_moved_has_all_of_its_code_with_it(project: Path, tmp_path: Path) -> None:
    run = run_of(project)
    sparsity = json.loads((run / "result.json").read_text())["sparsity"]
    run = run.rename(tmp_path / "alone")
    shutil.rmtree(project)
    assert prunus.resume(run).sparsity == sparsity
    brief = ("--seconds", "0.01", "--batch", "1")
    done = CliRunner().invoke(cli, ["measure", str(run), *brief])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", OTHERS[::2])
def test_other_code_beside_a_task_is_another_run(project: Path, name: str) -> None:
    run = run_of(project)
    place = project / "code" / name
    place.write_text(place.read_text() + "\n# edited\n")
    with pytest.raises(InputError, match="other code"):
        prunus.resume(run)
    shutil.move(run, project / "run2")  # away from its place the copies of that code run
    assert prunus.resume(project / "run2").sparsity == 0.5


def test_code_beside_is_told_and_asked_about(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "known"))
    monkeypatch.setenv("HOME", str(tmp_path / "known"))
    monkeypatch.delenv("PRUNUS_TRUST", raising=False)
    run = run_of(project)
    code = (project / "code").resolve()
    told = [Path(p).resolve().relative_to(code).as_posix()
            for p in code_that_runs(Record(run).recipe)]  # fmt: skip
    assert sorted(told) == sorted(["task.py", *OTHERS])
    words = ["measure", str(run), "--seconds", "0.01", "--batch", "1"]
    assert CliRunner().invoke(cli, [*words, "--trust"]).exit_code == 0
    assert CliRunner().invoke(cli, words).exit_code == 0  # known by now
    moved = shutil.copytree(run, tmp_path / "strangers")
    shutil.rmtree(project)
    [swapped] = moved.glob("code/*/data.py")
    swapped.write_text(swapped.read_text() + "raise SystemExit('ran')\n")
    done = CliRunner().invoke(cli, ["measure", str(moved), *words[2:]])
    assert done.exit_code == 2
    assert "data.py" in done.output
    assert "have not run" in done.output


def test_two_projects_keep_files_of_one_name_apart(tmp_path: Path) -> None:
    main = "import net\n\ndef size():\n    import net as again\n    return net.SIZE, again.SIZE\n"
    one, two = (
        module_at(written(tmp_path / name, {"main.py": main, "net.py": f"SIZE = {size}\n"})
                  / "main.py")
        for name, size in (("one", 1), ("two", 2))
    )  # fmt: skip
    assert (one.size(), two.size()) == ((1, 1), (2, 2))
    assert "net" not in sys.modules


@pytest.mark.parametrize("package", [False, True])
def test_two_projects_keep_packages_of_one_name_apart_and_an_edit_inside_runs(
    tmp_path: Path, package: bool
) -> None:
    def project(name: str, size: int) -> Path:
        more = {"models/__init__.py": ""} if package else {}
        files = {"main.py": "from models.net import SIZE\n", "models/net.py": f"SIZE = {size}\n"}
        return written(tmp_path / name, files | more) / "main.py"

    assert [module_at(project(n, size)).SIZE for n, size in (("a", 1), ("b", 22))] == [1, 22]
    assert module_at(project("a", 333)).SIZE == 333


def test_an_edit_changes_nothing_in_files_that_run_already(tmp_path: Path) -> None:
    main = "import net\n\ndef size():\n    from net import SIZE\n    return SIZE\n"
    made = module_at(written(tmp_path, {"main.py": main, "net.py": "SIZE = 1\n"}) / "main.py")
    (tmp_path / "net.py").write_text("SIZE = 22\n")
    assert made.size() == 1


def test_another_process_unpickles_what_own_files_define_unless_they_were_edited(
    tmp_path: Path,
) -> None:
    folder = written(tmp_path, {
        "main.py": "from models.data import Set\n", "tools.py": "SIZE = 7\n",
        "models/data.py": "class Set:\n    def __len__(self):\n        from tools import SIZE\n"
                          "        return SIZE\n",
    })  # fmt: skip
    sent = pickle.dumps(module_at(folder / "main.py").Set())
    _forget_own_modules()  # as in a worker that was spawned
    assert len(pickle.loads(sent)) == 7
    _forget_own_modules()
    (folder / "tools.py").write_text("SIZE = 8\n")
    with pytest.raises(ImportError, match="edited while it was at work"):
        pickle.loads(sent)


def test_a_file_that_changed_runs_again_with_what_imports_it(tmp_path: Path) -> None:
    folder = written(tmp_path, {"main.py": "from net import SIZE\n", "net.py": "SIZE = 1\n"})
    first = module_at(folder / "main.py")
    assert module_at(folder / "main.py") is first
    (folder / "net.py").write_text("SIZE = 22\n")
    assert module_at(folder / "main.py").SIZE == 22
    assert first.SIZE == 1


def test_a_module_that_python_has_is_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path, {
        "state_of_mine.py": "SEEN = []\n", "spaces/inner.py": "SEEN = []\n",
        "main.py": "import state_of_mine, spaces.inner\n",
    })  # fmt: skip
    monkeypatch.syspath_prepend(str(folder))
    names = ("state_of_mine", "spaces", "spaces.inner")
    own: list[ModuleType] = []
    try:
        own = [importlib.import_module(name) for name in names[::2]]
        made = module_at(folder / "main.py")
        assert [made.state_of_mine, made.spaces.inner] == own
    finally:
        for name in names:
            sys.modules.pop(name, None)


def test_every_form_of_import_is_pythons(tmp_path: Path) -> None:
    folder = written(tmp_path, {
        "main.py": "import pkg.sub.deep as deep\nimport pkg.sub\nfrom pkg import other, VALUE\n"
                   "from pkg.sub import *\nimport ring\nimport math, sys, json.decoder\n"
                   "from pkg.sub.deep import BELOW as below\nNAME = 'main'\n",
        "ring.py": "import main\n\ndef name():\n    return main.NAME\n",
        "pkg/__init__.py": "VALUE = 3\n__all__ = ['other']\n",
        "pkg/other.py": "from . import VALUE\nfrom .sub import deep\n",
        "pkg/sub/__init__.py": "from .. import VALUE as above\n__all__ = ['above', 'deep']\n",
        "pkg/sub/deep.py": "from ..other import VALUE\n"
                           "import shared_tools\nBELOW = shared_tools.NUMBER\n",
        "shared_tools.py": "NUMBER = 5\n",
    })  # fmt: skip
    made = module_at(folder / "main.py")
    assert made.deep is made.pkg.sub.deep
    assert (made.VALUE, made.above, made.below, made.ring.name()) == (3, 3, 5, "main")
    assert made.other.VALUE == 3
    assert made.json.decoder is json.decoder


def test_what_is_missing_or_fails_beside_says_where(tmp_path: Path) -> None:
    folder = written(tmp_path, {
        "lacks.py": "import nothing_like_this\n", "fails.py": "import broken\n",
        "broken.py": "\nx = 1 / 0\n", "deeper.py": "import pkg.nothing\n", "pkg/__init__.py": "",
    })  # fmt: skip
    with pytest.raises(InputError, match=r"nothing_like_this.*what lies beside 'lacks.py'"):
        module_at(folder / "lacks.py")
    with pytest.raises(InputError, match=r"ZeroDivisionError.*broken.py', line 2"):
        module_at(folder / "fails.py")
    with pytest.raises(InputError, match="No module named"):
        module_at(folder / "deeper.py")
    (folder / "broken.py").write_text("x = 1\n")
    assert module_at(folder / "fails.py").broken.x == 1


def test_importlib_looks_where_python_does_and_the_error_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = project / "code/task.py"
    late = TASK.replace("import data ", "import importlib; data = importlib.import_module('data') ")
    for text in (late, "import importlib\nimportlib.import_module('data')\n"):
        task.write_text(text)
        with pytest.raises(InputError, match=r"add .* to PYTHONPATH"):
            task_of(Recipe.load(project / "try.yaml"))
    task.write_text(late)
    monkeypatch.syspath_prepend(str(project / "code"))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert task_of(Recipe.load(project / "try.yaml")).metric_name == "accuracy"


def test_an_error_in_training_names_the_line_of_the_users_own_file(project: Path) -> None:
    task = project / "code/task.py"
    task.write_text(TASK.replace("model(batch[0])", "model(batch[0].T)"))
    done = CliRunner().invoke(cli, ["run", str(project / "try.yaml"), "--folder", f"{project}/run"])
    assert "(task.py, line 15); --debug shows the traceback" in done.output


def test_what_init_wrote_is_not_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "known"))
    monkeypatch.setenv("HOME", str(tmp_path / "known"))
    monkeypatch.delenv("PRUNUS_TRUST", raising=False)
    for words in (["init", str(tmp_path)], ["units", f"{tmp_path}/task.py:task"]):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("text", [
    "A = Path(__file__).with_name('other.py')",
    "B = (Path(__file__).parent / 'sub' / 'other.py').resolve()",
    "HERE = pathlib.Path(__file__).resolve().parents[1]\nC = HERE / 'up/other.py'",
    "H: Path = Path(__file__).absolute().parent\ndef f():\n  return H.joinpath('sub', 'other.py')",
])  # fmt: skip
def test_a_path_written_from_the_file_names_another(tmp_path: Path, text: str) -> None:
    names = ("in/other.py", "in/sub/other.py", "up/other.py")
    folder = written(tmp_path, {"in/main.py": text, **dict.fromkeys(names, "")})
    assert len(beside(folder / "in/main.py")) == 1


def test_texts_that_are_no_python_or_name_nothing_are_passed_over(tmp_path: Path) -> None:
    odd = ["x = Path(__file__).parents[99] / 'a.py'", "x = Path(a, __file__)", "x = y / 'a.py'",
           "x = Path(__file__).with_name('b/a.py')", "def (", "import .x", "\x00"]  # fmt: skip
    for text in odd:
        folder = written(tmp_path, {"main.py": text, "a.py": ""})
        assert beside(folder / "main.py") == {}


FORMS = ("import m{0}", "from m{0} import *", "from p.q{0} import X", "import p.q{0} as z",
         "from p import q{0}", "def f():\n    import m{0}")  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(FORMS)), max_size=8)
)
@settings(max_examples=25, deadline=None)
def test_every_file_that_runs_was_told(
    tmp_path_factory: pytest.TempPathFactory, edges: list
) -> None:
    folder = tmp_path_factory.mktemp("project")
    mark = "import builtins\nbuiltins.prunus_ran.append(__file__)\nX = 1\n"
    names = [f"m{i}.py" for i in range(4)] + [f"p/q{i}.py" for i in range(4)]
    texts = dict.fromkeys(names, mark)
    for i, j, form in edges:
        for name in (names[i], names[4 + i]):
            texts[name] += form.format(j) + "\n"
    written(folder, {**texts, "main.py": mark + "import m0\n"})
    ran: list[str] = []
    import builtins

    builtins.prunus_ran = ran  # type: ignore[attr-defined]
    try:
        module_at(folder / "main.py")
    except InputError as error:  # a circle may lack a name, as in Python
        assert "ImportError" in str(error) or "AttributeError" in str(error)  # noqa: PT017
    finally:
        del builtins.prunus_ran  # type: ignore[attr-defined]
        _forget_own_modules()
    told = {str(p) for p in beside(folder / "main.py").values()} | {str(folder / "main.py")}
    assert set(ran) <= told
    assert len(ran) == len(set(ran))


def test_a_relative_import_beyond_its_package_is_an_error_as_in_python(tmp_path: Path) -> None:
    folder = written(tmp_path, {
        "main.py": "import pkg\n", "net.py": "", "pkg/__init__.py": "from .. import net\n",
    })  # fmt: skip
    with pytest.raises(InputError, match="beyond top-level package"):
        module_at(folder / "main.py")


def test_what_processes_inherit_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "not ours")
    for number in range(MOST + 20):
        file = tmp_path / f"own_{number}.py"
        file.write_text("")
        module_at(file)
    told = json.loads(os.environ[VARIABLE])
    assert len(told) == MOST
    assert [str(file), str(tmp_path)] in told.values()


def test_words_for_a_path_are_those_in_the_text(tmp_path: Path) -> None:
    text = "HERE = Path(__file__).parent\nA = f(HERE / 'a.py', 1)\nB = HERE / 'none.py'\n"
    folder = written(tmp_path, {"main.py": text, "a.py": ""})
    assert words_of(folder / "main.py") == {"HERE / 'a.py'": folder / "a.py"}
