"""What commands print: the keys of ``--json`` never change, the tables only on purpose.

Numbers are masked, as are the words that hang on how busy the machine is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from prunus.cli.main import cli

pytestmark = pytest.mark.usefixtures("no_pictures")
GOLDEN = Path(__file__).parent / "golden"
MODEL = """
from torch import nn, ones
def make():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), ones(1, 8)
"""
SHORT = ["task=diagnosis", "dense=1ep", "retrain=1ep", "guard=null"]
QUICK = ["--seconds", "0.02", "--batch", "1"]
DEPLOY = ["--runtime", "eager", *QUICK]


def output(*words: str) -> str:
    done = CliRunner(env={"COLUMNS": "160"}).invoke(cli, words)
    assert done.exit_code == 0, done.output
    return done.stdout


def objects(*words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output(*words, "--json").splitlines()]


def keys(value: dict[str, Any]) -> str:
    return " ".join(value)


def masked(text: str) -> str:
    """Numbers as ``#``, runs of spaces as one, and no word that hangs on the clock."""
    text = re.sub(r" \((machine busy|estimated)\)", "", text)
    text = re.sub(r"^ +round \d+: step .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"[\d.,]+× (faster|slower)|the same", "~", text)
    text = re.sub(r"-[0-9a-f]{8}\b", "-HASH", text)
    text = re.sub(r"-?\d[\d.,]*(e[+-]\d+)?|–", "#", text)
    lines = [re.sub(r" +", " ", line).rstrip() for line in text.splitlines()]
    return "\n".join(x for x in lines if not x.startswith(("note", "measured on", "report", "…")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two rounds."""
    folder = tmp_path_factory.mktemp("frozen") / "run"
    output("run", "iterative", *SHORT, "rounds=2", "deploy=eager", "--folder", str(folder))
    return folder


COST = "params nonzero_params macs macs_if_zeros_skipped bytes l1"
ROUND = (
    "event index step progress asked achieved metric verdict train_metric l1 densities cost "
    "seconds sparsity target latency"
)
ROW = "runtime model refused error tolerance exact bytes metric build_s notes latency"
TIMING = "median_ms p95_ms spread calls busy"


def test_run_writes_these_keys(run: Path) -> None:
    found = {e["event"]: e for e in objects("run", "iterative", *SHORT, "rounds=2", "deploy=eager")}
    assert keys(found["judged"]) == f"{ROUND} evidence"
    assert keys(found["judged"]["cost"]) == COST
    assert keys(found["round"]) == "event round asked"
    assert keys(found["note"]) == "event text"
    assert keys(found["result"]) == (
        "event metric_name metric test tested sparsity why folder report"
    )
    assert keys(found["result"]["tested"]) == "metric interval dense change"
    (path,) = [json.loads(x) for x in output("report", str(run), "--json").splitlines()]
    assert path == {"event": "report", "path": str(run / "report.html")}


def test_measure_writes_these_keys(run: Path) -> None:
    (found,) = objects("measure", str(run), *QUICK)
    assert keys(found) == "model against ratios device threads environment warnings"
    for side in ("model", "against"):
        assert keys(found[side]) == (
            "params nonzero_params macs macs_if_zeros_skipped l1 bytes disk_bytes "
            "sparse_disk_bytes passes"
        )
        assert keys(found[side]["passes"][0]) == (
            "batch latency_ms latency_p95_ms latency_spread calls busy items_per_second "
            "peak_bytes energy_mj energy_measured energy_how"
        )
    assert keys(found["ratios"]) == (
        "params nonzero_params macs bytes disk_bytes sparse_disk_bytes latency_ms peak_bytes "
        "energy_mj"
    )
    assert keys(found["ratios"]["latency_ms"]) == "1"


def test_deploy_writes_these_keys(run: Path) -> None:
    *notes, first, second, last = objects("deploy", str(run), *DEPLOY)
    assert {keys(n) for n in notes} == {"event text"}
    assert [r["model"] for r in (first, second)] == ["pruned", "dense"]
    for row in (first, second):
        assert keys(row) == f"event {ROW}"
        assert keys(row["latency"]["1"]) == TIMING
    assert keys(last) == "event runtime path gains advice offers threads machine"


def test_sweep_writes_these_keys() -> None:
    found = {e["event"]: e for e in objects("sweep", "one_shot", *SHORT, "target=0.5,0.9")}
    trial = "number values state name metric left dense allowed cost rounds seconds course reason"
    assert keys(found["trial"]) == "event number values"
    assert keys(found["tried"]) == f"event {trial}"
    assert keys(found["sweep"]) == (
        "event folder name front command metric_name better counts best trials"
    )
    assert keys(found["sweep"]["trials"][0]) == trial


def test_units_plan_compare_and_list_write_these_keys(run: Path) -> None:
    Path("mine.py").write_text(MODEL)
    kind, *stays = objects("units", "mine.py:make")
    assert keys(kind) == "units head places"
    assert {keys(s) for s in stays} == {"stays"}
    assert keys(stays[0]["stays"]) == "place size why"
    (plan,) = objects("plan", "iterative", *SHORT)
    assert keys(plan) == (
        "recipe counts dense reachable asked steps seconds cost notes counted why_dense limits"
    )
    assert keys(objects("compare", str(run), str(run))[0]) == (
        "name state sparsity dense_metric metric metric_minus_dense test params "
        "nonzero_params (theoretical) macs bytes rounds rejected steps seconds"
    )
    assert keys(objects("list", "criteria")[0]) == "axis name line source settings"
    assert keys(objects("list", "runtimes")[0]) == "axis name line source settings pip"


@pytest.mark.parametrize("name", ["run", "measure", "deploy", "sweep", "units", "plan", "compare"])
def test_the_tables_look_like_this(name: str, run: Path) -> None:
    Path("mine.py").write_text(MODEL)
    words = {
        "run": ["iterative", *SHORT, "rounds=2", "deploy=eager", "--folder", "new"],
        "measure": [str(run), *QUICK],
        "deploy": [str(run), *DEPLOY],
        "sweep": ["one_shot", *SHORT, "target=0.5,0.9", "--folder", "out"],
        "units": ["mine.py:make"],
        "plan": ["iterative", *SHORT, "rounds=2"],
        "compare": [str(run), str(run)],
    }[name]
    found = masked(output(name, *words).replace(str(run), "RUN"))
    assert f"{found.strip()}\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
