"""What the shell offers after a tab, asked as the shells ask."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import BashComplete, ZshComplete

from prunus.cli.main import cli


def offered(*words: str, shell: type = ZshComplete) -> list[str]:
    """Of the last word, which is at work, what can be written instead."""
    *before, text = words
    complete = shell(cli, {}, "prunus", "_PRUNUS_COMPLETE")
    return [item.value for item in complete.get_completions(before, text) if item.type == "plain"]


@pytest.fixture
def _runs() -> None:
    for name in ("runs/iterative-1a2b3c4d", "runs/gradual-5e6f7a8b", "sweeps/one/soft-00000000"):
        Path(name).mkdir(parents=True)
        Path(name, "run.json").touch()
    Path("runs/no run").mkdir()


def test_recipes_are_offered_by_name() -> None:
    assert offered("run", "it") == ["iterative"]
    assert {"gradual", "channels", "spoken_digits"} <= {*offered("plan", "")}
    assert offered("sweep", "two_f") == ["two_four"]


@pytest.mark.usefixtures("_runs")
def test_runs_are_offered_wherever_a_run_is_meant() -> None:
    for command in ("resume", "report", "compare", "measure", "deploy"):
        assert "runs/iterative-1a2b3c4d" in offered(command, "runs/it")
    assert [*offered("resume", "")] == [
        "runs/gradual-5e6f7a8b", "runs/iterative-1a2b3c4d", "sweeps/one/soft-00000000",
    ]  # fmt: skip
    assert offered("resume", "sweeps/one/") == ["sweeps/one/soft-00000000"]


def test_keys_and_the_methods_that_they_can_name_are_offered() -> None:
    assert offered("run", "iterative", "crit") == ["criterion="]
    assert offered("run", "iterative", "criterion=mag") == ["criterion=magnitude"]
    assert offered("plan", "iterative", "target=0.5", "task=diag") == ["task=diagnosis"]
    assert "dense.learning_rate=hold_decay" in offered("run", "iterative", "dense.learning_rate=h")
    assert offered("run", "iterative", "target=") == []


@pytest.mark.parametrize(("words", "first"), [
    (["criterion", "=", "mag"], "magnitude"), (["criterion", "="], "fisher"),
])  # fmt: skip
def test_bash_takes_the_sign_for_a_word(words: list[str], first: str) -> None:
    assert first in offered("run", "iterative", *words, shell=BashComplete)


def test_tasks_and_runtimes_are_offered() -> None:
    assert offered("units", "diag") == ["diagnosis"]
    assert offered("deploy", "runs/x", "--runtime", "open") == ["openvino", "openvino_int8"]
    assert "auto" in offered("deploy", "runs/x", "--runtime", "")
