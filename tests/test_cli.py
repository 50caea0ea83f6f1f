"""The commands, as a user types them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import prunus
from prunus.cli.main import cli
from prunus.errors import InputError
from prunus.progressive.finished import open_run
from prunus.progressive.judge import score
from prunus.recipe.load import LIBRARY
from prunus.recipe.schema import Recipe
from stand_ins import EXAMPLES

FAST = ["dense=2ep", "retrain=1ep", "rounds=2", "guard={max_drop: 0.5}"]


def command(*words: str) -> Result:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    return done


def test_run_ends_with_a_table_the_test_metric_and_the_report() -> None:
    done = command("run", "iterative", *FAST)
    assert re.search(r"^ +2 +0\.9500 +0\.9500 +0\.\d{4} .*accepted", done.output, re.MULTILINE)
    assert re.search(r"^test accuracy 0\.\d{4}$", done.output, re.MULTILINE)
    (path,) = re.findall(r"^report +(\S+)$", done.output, re.MULTILINE)
    assert Path(path).read_text().startswith("<!doctype html>")
    folder = Path(path).parent
    assert {p.name for p in folder.iterdir()} >= {
        "recipe.yaml", "run.json", "journal.jsonl", "result.json", "model.safetensors",
        "masks.safetensors", "metric.png", "density.png",
    }  # fmt: skip


def test_a_run_keeps_the_dense_model_of_round_0() -> None:
    command("run", "iterative", *FAST, "--folder", "run")
    done = open_run("run")
    metric = score(lambda m: done.task.metric(m, done.task.validation), done.dense, "metric")
    assert metric == done.result["rounds"][0]["metric"]
    assert all(bool((p != 0).all()) for p in done.dense.parameters() if p.dim() > 1)


def test_a_finished_run_opens_its_artifact_and_builds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("run", "iterative", *FAST, "deploy=onnxruntime", "--folder", "run")
    command(*words)
    before = Path("run/result.json").read_text()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr("prunus.progressive.deploy_step.deploy", never)
    again = command(*words)
    assert re.search(r"^runs in +onnxruntime", again.output, re.MULTILINE)
    assert Path("run/result.json").read_text() == before
    assert "prunus.load('run/deployed/onnxruntime')" in again.output
    with pytest.raises(
        InputError, match="contains several artifacts: name one, 'run/deployed/onnxruntime'"
    ):
        prunus.load("run/deployed")


def test_a_finished_run_is_not_repeated() -> None:
    first = command("run", "iterative", *FAST)
    again = command("run", "iterative", *FAST)
    assert again.output.startswith("this run is finished")
    table = first.output[first.output.index("round  requested") :]
    assert again.output.endswith(table)


def test_json_is_one_object_a_line() -> None:
    done = command("run", "gradual", "dense=1ep", "retrain=1ep", "--json")
    events = [json.loads(line) for line in done.output.splitlines()]
    assert events[-1]["event"] == "result"
    assert events[-1]["sparsity"] == pytest.approx(0.95, abs=1e-4)
    assert [e["index"] for e in events if e["event"] == "judged"] == [0, 1]


def test_plan_counts_without_training() -> None:
    done = command("plan", "two_four")
    assert re.search(r"0\.weight \(the structure does not fit its shape\)", done.output)
    assert re.search(r"requested +0\.25, 0\.5", done.output)
    assert re.search(r"time +about \d+", done.output)
    values = json.loads(command("plan", "iterative", "target=0.5", "--json").output)
    assert sum(k for k, _ in values["counts"].values()) == 38160 // 2
    words = ("rounds=3", "retrain=10it", "last_retrain=50it", "dense=20it", "target=0.5")
    steps = json.loads(command("plan", "iterative", *words, "--json").output)["steps"]
    assert steps == {"dense": 20, "each round": 10, "last round": 50, "whole": 90}
    assert not Path("runs").exists()


def test_plan_shows_the_first_rounds_of_a_run_until_the_guard() -> None:
    values = json.loads(command("plan", "iterative", "target=guard", "rounds=4", "--json").output)
    assert values["asked"] == pytest.approx([1 - 0.7**i for i in (1, 2, 3, 4)])
    assert values["steps"]["whole"] == values["steps"]["dense"] + 4 * values["steps"]["each round"]
    assert any("as many rounds as it accepts (at most 4)" in note for note in values["notes"])
    step = "target={step: 0.9}"
    least = json.loads(command("plan", "iterative", step, "structure=channel", "--json").output)
    assert least["asked"][-1] == pytest.approx(least["reachable"])


def test_compare_sets_runs_beside_each_other() -> None:
    for target in ("0.5", "0.6"):
        command("run", "iterative", *FAST, f"target={target}", "--folder", f"run-{target}")
    done = command("compare", "run-0.5", "run-0.6")
    assert "run-0.5" in done.output
    assert re.search(r"sparsity +0\.5 +0\.6", done.output)
    rows = [json.loads(x) for x in command("compare", "run-0.5", "run-0.6", "--json").output.split(
        "\n")[:-1]]  # fmt: skip
    assert [round(r["sparsity"], 2) for r in rows] == [0.5, 0.6]


def test_init_writes_a_task_and_a_recipe_that_run_as_they_are() -> None:
    command("init", "mine")
    done = command("run", "mine/recipe.yaml", "dense=1ep", "retrain=1ep", "rounds=1",
                   "guard=null")  # fmt: skip
    assert "test accuracy" in done.output
    assert "reachable" in command("plan", "mine").output
    refused = CliRunner().invoke(cli, ["init", "mine"])
    assert refused.exit_code == 2
    assert "exists" in refused.output


def test_list_names_every_idea_with_its_source() -> None:
    done = command("list")
    for word in ("magnitude", "erk", "cubic", "revive", "two_four", "diagnosis", "subset"):
        assert re.search(rf"^  {word}\b", done.output, re.MULTILINE)
    assert "arXiv:1710.01878" in done.output
    assert "cubic" not in command("list", "criteria").output


@pytest.mark.parametrize("name", sorted(p.stem for p in LIBRARY.glob("*.yaml")))
def test_every_recipe_runs_from_end_to_end(name: str) -> None:
    short = ["dense.length=2ep", "retrain=1ep"]
    done = command("run", name, *short, "guard=null")
    assert "test accuracy" in done.output


@pytest.mark.parametrize("task", ["digits", "mlp", "diagnosis"])
def test_every_embedded_task_learns(task: str) -> None:
    done = command("run", "one_shot", f"task={task}", "target=0.5", "--json")
    result = json.loads(done.output.splitlines()[-1])
    assert result["test"] > 0.88


@pytest.mark.skipif("PRUNUS_DATA" not in os.environ, reason="PRUNUS_DATA names no data folder")
def test_the_mnist_task_reads_the_files_and_prunes() -> None:
    words = ["task=mnist", "dense=20it", "retrain=10it", "snapshot=50it"]
    done = command("run", "gradual", *words, "--json")
    result = json.loads(done.output.splitlines()[-1])
    assert result["sparsity"] == pytest.approx(0.95, abs=1e-4)
    assert result["test"] > 0.3


def test_recipes_read_back_as_they_were_written() -> None:
    for path in (*LIBRARY.glob("*.yaml"), *EXAMPLES.glob("*/*.yaml")):
        recipe = Recipe.load(path.stem)
        Path("copy.yaml").write_text(recipe.to_yaml())
        assert Recipe.load("copy.yaml").digest() == recipe.digest()


def test_fingerprints_of_recipes_never_change_within_a_version() -> None:
    digests = {
        "default": Recipe().digest()[:12],
        "two_four": Recipe(structure="2:4", allocation="uniform").digest()[:12],  # type: ignore[arg-type]
        "guard": Recipe(target="guard", guard={"max_drop": 0.02}).digest()[:12],  # type: ignore[arg-type]
    }
    assert digests == FROZEN


FROZEN = {"default": "c3aa9744214c", "two_four": "6afa99d4aa3e", "guard": "5e284763a48e"}
