"""What README and docs show runs as it is given: Python page by page, commands one by one."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import helpers
from prunus._common import examples
from prunus.cli.main import cli
from prunus.methods.catalog import names
from prunus.recipe.schema import Recipe
from prunus.runtimes import missing
from readers import reader, small
from test_docs import TEXTS, blocks, free, lacking

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the packages that blocks use, about themselves
]
SESSIONS = ("docs/tutorial.md", "docs/migrating/", "docs/llm.md")
"""Pages whose blocks follow from each other; elsewhere each begins with what a reader has. The
translation has the README's code: ``test_docs_site.py``."""
OWN = {name: [code for kind, code in blocks(text) if kind == "ours"]
       for name, text in TEXTS.items() if name != "README.zh-CN.md"}  # fmt: skip


@pytest.mark.parametrize("page", [name for name, found in OWN.items() if found])
def test_every_block_of_python_runs_as_it_is_given(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    before: dict[str, Any] = {"__name__": "page"}
    for code in OWN[page]:
        tree = ast.parse(code)
        if (name := lacking(tree)) is not None:
            pytest.skip(f"{name} is not installed")
        torch.manual_seed(0)
        has = reader()
        known = before.keys() if page.startswith(SESSIONS) else set()
        before |= {name: has[name]() for name in (free(code) & has.keys()) - known}
        exec(compile(tree, page, "exec"), before)


def commands(text: str) -> list[str]:
    """The commands of prunus in a page's blocks of shell."""
    text = text.replace("\\\n", " ")
    return re.findall(r"^    (?:\$ )?(prunus [a-z].*)$", text, re.MULTILINE)


COMMANDS = sorted({c.partition(" #")[0].strip() for text in TEXTS.values()
                   for c in commands(text)})  # fmt: skip


BRIEFLY = {"run": ["dense.length=8it", "retrain=8it", "limit=80it"],
           "sweep": ["dense.length=8it", "retrain=8it", "--trials", "1"],
           "llm": ["text.windows=4", "text.length=16", "text.held=2"]}  # fmt: skip
"""What is added to a command: less training or text, an end to what a guard allows, one trial."""


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_runs_as_it_is_given(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    small(monkeypatch)
    _, name, *words = shlex.split(line.replace("~", str(tmp_path)), comments=True)
    example = bool(words) and (words[0].startswith("examples/") or words[0] in examples.recipes())
    if example and "/" in words[0]:  # from the root of a checkout
        words[0] = str(Path(__file__).parents[1] / words[0])
    _skip_without_engines(words)
    if example or "--storage" in words:
        with cli.commands[name].make_context(name, [*words]):
            changes = [w for w in words[1:] if "=" in w and ".." not in w and "/" not in w]
            Recipe.load(words[0], changes)  # make test-zoo runs the examples on their data
        return
    if words and words[0].startswith("my_project/"):
        _run("init", "my_project")
    if name == "llm":
        helpers.language_model(tmp_path, words[0])
        given = dict(itertools.pairwise(words))
        text = Path(given.get("--text", "text.txt"))
        rows = " ".join(f"w{n % 60 + 2}" for n in range(900))
        if not text.suffix:
            text.mkdir()
            text /= "text.txt"
        text.write_text(rows if text.suffix == ".txt" else json.dumps(rows), encoding="utf-8")
        Path("my.yaml").write_text("target: 0.4\n", encoding="utf-8")
    for word in words:
        if word.startswith("runs/"):
            _run("run", "one_shot", "--folder", word, *BRIEFLY["run"])
    keys = {re.split("[.=]", word)[0] for word in words}
    brief = [w for w in BRIEFLY.get(name, ()) if re.split("[.=]", w)[0] not in keys]
    _run(name, *words, *brief)


def _skip_without_engines(words: list[str]) -> None:
    """Commands that name a runtime need what it needs."""
    for word, value in itertools.pairwise(words):
        if word == "--runtime" and value in names("runtimes") and (gone := missing(value)):
            pytest.skip(f"{value} needs {gone}, which is not installed")


def _run(*words: str) -> None:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
