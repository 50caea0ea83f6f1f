"""The commands, as a user types them."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import prunus
from prunus.cli.main import cli
from prunus.errors import InputError
from prunus.progressive.finished import open_run
from prunus.progressive.latency_target import _Clock
from prunus.progressive.scoring import score
from prunus.recipe.load import LIBRARY
from prunus.recipe.schema import Recipe
from prunus.tasks import mnist
from prunus.types import Masks
from stand_ins import EXAMPLES
from test_method_recipes import RECIPES

FAST = ["dense=2ep", "retrain=1ep", "rounds=2", "guard={max_drop: 0.5}"]


def command(*words: str) -> Result:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Here are the runs of ``prunus run iterative`` with FAST; what the command wrote."""
    told = place / "output"
    if not told.exists():
        with monkeypatch.context() as there:
            there.chdir(place)
            told.write_text(command("run", "iterative", *FAST).output)
    shutil.copytree(place / "runs", "runs")
    return told.read_text()


def test_run_ends_with_a_table_the_test_metric_and_the_report(finished: str) -> None:
    assert re.search(r"^ +2 +0\.9500 +0\.9500 +0\.\d{4} .*accepted", finished, re.MULTILINE)
    assert re.search(r"^test accuracy 0\.\d{4} \(0\.\d{4} to ", finished, re.MULTILINE)
    (path,) = re.findall(r"^report +(\S+)$", finished, re.MULTILINE)
    assert Path(path).read_text().startswith("<!doctype html>")
    folder = Path(path).parent
    assert {p.name for p in folder.iterdir()} >= {
        "recipe.yaml", "run.json", "journal.jsonl", "result.json", "model.safetensors",
        "masks.safetensors", "metric.png", "density.png",
    }  # fmt: skip


def test_a_run_keeps_the_dense_model_of_round_0(finished: str) -> None:
    (folder,) = Path("runs").iterdir()
    done = open_run(folder)
    metric = score(lambda m: done.task.metric(m, done.task.validation), done.dense, "metric")
    assert metric == done.result["rounds"][0]["metric"]
    assert all(bool((p != 0).all()) for p in done.dense.parameters() if p.dim() > 1)


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_opens_its_artifact_and_builds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = ("dense=10it", "retrain=10it", "rounds=1", "guard=null")  # each round is deployed
    words = ("run", "iterative", *brief, "deploy=onnxruntime", "--folder", "run")
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


def test_a_finished_run_is_not_repeated(finished: str) -> None:
    again = command("run", "iterative", *FAST)
    assert again.output.startswith("this run is finished")
    assert again.output.endswith(finished[finished.index("round  requested") :])


@pytest.mark.usefixtures("no_pictures")
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


def test_compare_sets_runs_beside_each_other(finished: str) -> None:
    (folder,) = Path("runs").iterdir()
    folder.rename("run-0.95")
    words = ("dense=10it", "retrain=10it", "rounds=1", "guard=null", "target=0.5")
    command("run", "iterative", *words, "--folder", "run-0.5")
    done = command("compare", "run-0.5", "run-0.95")
    assert "run-0.5" in done.output
    assert re.search(r"sparsity +0\.5 +0\.95", done.output)
    lines = command("compare", "run-0.5", "run-0.95", "--json").output.splitlines()
    assert [round(json.loads(line)["sparsity"], 2) for line in lines] == [0.5, 0.95]


@pytest.mark.usefixtures("no_pictures")
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


@pytest.mark.parametrize("name", sorted({p.stem for p in LIBRARY.glob("*.yaml")} - {*RECIPES}))
@pytest.mark.usefixtures("no_pictures")
def test_every_recipe_runs_from_end_to_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = _Clock._timed

    def by_size(self: _Clock, masks: Masks | None) -> tuple[float, float]:
        """All is built and timed; what it takes on a busy machine is no test's affair."""
        timed(self, masks)
        if masks is None:
            return 1.0, 1.0
        return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values()), 1

    monkeypatch.setattr(_Clock, "_timed", by_size)
    short = ["dense.length=20it", "retrain=10it"]
    if Recipe.load(name).deploy is not None:  # each round is built for its runtime
        short.append("rounds=2")
    done = command("run", name, *short, "guard=null")
    assert "test accuracy" in done.output


@pytest.mark.parametrize(("task", "epochs"), [("digits", 6), ("mlp", 6), ("diagnosis", 10)])
@pytest.mark.usefixtures("no_pictures")
def test_every_embedded_task_learns(task: str, epochs: int) -> None:
    lengths = [f"dense.length={epochs}ep", "retrain=5ep"]
    done = command("run", "one_shot", f"task={task}", "target=0.5", *lengths, "--json")
    result = json.loads(done.output.splitlines()[-1])
    assert result["test"] > 0.88


@pytest.mark.skipif("PRUNUS_DATA" not in os.environ, reason="PRUNUS_DATA names no data folder")
@pytest.mark.usefixtures("no_pictures")
def test_the_mnist_task_reads_the_files_and_prunes() -> None:
    Path("some").mkdir()
    for names, count in zip(mnist.FILES.values(), (6000, 500), strict=True):
        for name in names:  # a ninth of the first items' pixels: more would take half a minute
            with gzip.open(Path(os.environ["PRUNUS_DATA"], f"mnist/{name}.gz")) as file:
                head = np.frombuffer(file.read(4), np.uint8)
                sizes = np.frombuffer(file.read(4 * int(head[3])), ">u4").copy()
                sizes[0] = count
                items = np.frombuffer(file.read(int(sizes.prod())), np.uint8).reshape(sizes)
            few = items[:, ::3, ::3] if items.ndim == 3 else items
            raw = head.tobytes() + np.array(few.shape, ">u4").tobytes() + few.tobytes()
            Path("some", f"{name}.gz").write_bytes(gzip.compress(raw, 1))
    words = ["task=mnist", "task.folder=some", "dense=20it", "retrain=10it", "snapshot=50it"]
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
