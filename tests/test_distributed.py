"""Several processes end with the masks of one; a rank that dies leaves a run that resumes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from fresh import Pythons

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="torch was built without gloo, through which the processes of these tests speak",
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, python: Pythons) -> dict[str, Any]:
    """What every rank of every world saw (``distributed_runs.py``)."""
    place = tmp_path_factory.mktemp("distributed")
    done = python.script(str(HERE / "distributed_runs.py"), str(place))
    assert done.returncode == 0, done.stderr
    # torch 2.9 says to stdout, before, which ranks Gloo has connected
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def same(ranks: list[Any]) -> Any:
    """What every rank saw alike."""
    assert all(rank == ranks[0] for rank in ranks), ranks
    return ranks[0]


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_choose_the_masks_of_one(seen: dict[str, Any], ranks: int) -> None:
    alone = same(seen["chosen"][0])
    assert len(set(alone.values())) == len(alone)
    chosen = same(seen["chosen"][ranks - 1])
    assert chosen == {name: alone[name] for name in chosen}
    assert {"sensitivity", "fisher_running"} < set(chosen)


def test_what_criteria_read_of_calibration_is_that_of_all_ranks(seen: dict[str, Any]) -> None:
    alone, together = (same(ranks) for ranks in seen["by_calibration"])
    assert len(alone) > 8
    assert together == alone


def test_a_figure_of_counts_is_that_of_the_items_of_all_ranks(seen: dict[str, Any]) -> None:
    assert [same(ranks) for ranks in seen["by_figure"]] == [pytest.approx(1 / 3)] * 2


def test_dicts_tuples_and_a_loss_inside_the_model_are_pruned_as_in_one_process(
    seen: dict[str, Any],
) -> None:
    alone, together = (same(ranks) for ranks in seen["tagged"])
    for key in ("masks", "verdicts", "params"):
        assert together[key] == alone[key], key
    assert together["metrics"] == pytest.approx(alone["metrics"], abs=1e-9)
    assert together["metrics"][-1] < 0.5


def test_all_ranks_grow_the_same_weights_from_gradients_of_all(seen: dict[str, Any]) -> None:
    for regrown in seen["regrows"]:
        assert same(regrown)["verdicts"] == ["dense", "accepted"]


def test_clipping_sees_masked_gradients_in_a_loop_that_accumulates(seen: dict[str, Any]) -> None:
    plain, in_buckets = (same(ranks) for ranks in seen["own_loop"])
    assert plain == in_buckets
    assert plain["leaks"] == 0
    assert plain["zeros"]
    assert plain["sparsities"][-1] == pytest.approx(0.8, abs=1e-3)
    assert len(set(plain["sparsities"])) == 5


def test_a_pruned_model_learns_from_the_dense_one_in_several_processes(
    seen: dict[str, Any],
) -> None:
    alone, together = (same(ranks) for ranks in seen["taught"])
    assert together["zeros"]
    assert together["losses"][-1] < 0.8 * together["losses"][0]
    for key in ("losses", "values", "last"):
        assert together[key] == pytest.approx(alone[key], rel=1e-3, abs=1e-6)


def test_a_model_that_shrinks_and_grows_back_is_wrapped_anew(seen: dict[str, Any]) -> None:
    run = same(seen["shrinks_and_grows"])
    assert run["verdicts"][:4] == ["dense", "accepted", "rejected", "accepted"]
    sizes = run["trained"]
    assert sizes[0] > sizes[1] > sizes[3] > sizes[2]
    assert run["params"] == sizes[-1]


def test_a_limit_ends_all_ranks_in_the_same_round_and_all_judge_one_model(
    seen: dict[str, Any],
) -> None:
    judged, metrics = same(seen["limited"])
    assert len(metrics) == 1
    assert len(set(judged)) == 2  # as it was given, and after round 0; buffers among the rest


def test_a_latency_is_measured_by_one_rank_and_believed_by_all(seen: dict[str, Any]) -> None:
    first, second = seen["deployed"]
    assert (first.pop("deployed"), second.pop("deployed")) == ("eager", None)
    assert first == second
    assert first["known"] == [False, True]  # by the clock of rank 0
    assert "max_latency_ms is" in first["why"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("weights", "RunError: weights given: 'second.weight' differs between rank 0 and rank 1"),
        ("masks", "RunError: masks: '"),
        ("not wrapped", "RunError: weights of round 0: 'first.weight' differs between"),
        ("evaluate", "InputError: evaluate gave no number on rank 1"),
        ("calibration", "RunError: the loss on a calibration batch is nan"),
        ("wrapped", "InputError: compact, deploy: DistributedDataParallel keeps copies"),
        ("int8", "InputError: quantize: int8 is judged by evaluate"),
        ("FSDP2", "InputError: 'first.weight' is a DTensor"),
        ("FSDP1", "InputError: the model is inside FullyShardedDataParallel"),
        ("ZeRO", "InputError: ZeroRedundancyOptimizer cannot be used"),
    ],
)
def test_what_ranks_cannot_do_together_is_said_by_all(
    seen: dict[str, Any], case: str, said: str
) -> None:
    assert same(seen["refused"])[case].startswith(said)


@pytest.mark.parametrize("recipe", ["rounds", "shrinking"])
def test_a_run_that_was_stopped_and_lost_a_rank_ends_with_the_same_bits(
    seen: dict[str, Any], recipe: str
) -> None:
    first, again = same(seen[recipe])
    assert first == again
    assert first["verdicts"] == ["dense"] + ["accepted"] * {"rounds": 3, "shrinking": 2}[recipe]
    broken = seen[f"{recipe} broken"]
    assert broken["stops"] == len(seen[recipe])  # asked of the last rank only
    assert broken["died"].count("signal 9") == 1
    assert all(x.startswith(("signal 9", "RuntimeError")) for x in broken["died"])
    assert same(broken["again"]) == first


LAUNCH = """
import runpy, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
import prunus
prunus.prune  # what each rank would import

config = LaunchConfig(
    min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="docs", rdzv_backend="c10d",
    rdzv_endpoint="localhost:0", max_restarts=1, monitor_interval=0.1, start_method="fork",
)
elastic_launch(config, lambda: bool(runpy.run_path("train.py")))()
"""
"""torchrun's agent, whose ranks are forks and need not import torch."""


def test_the_example_of_the_docs_survives_a_killed_rank_under_torchruns_agent(
    tmp_path: Path, python: Pythons
) -> None:
    page = (HERE.parent / "docs" / "distributed.md").read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert match is not None
    step = "        optimizer.step()\n"
    assert match[1].count(step) == 1
    deadly = (
        f"{step}        if run.round == 2 and run.done == 3 and dist.get_rank() == 1:\n"
        "            if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "                os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    text = match[1].replace(step, deadly)
    (tmp_path / "train.py").write_text(f"import os\nimport signal\n{text}")
    setting = re.search(r"export (\w+)=(\w+)", page)
    assert setting is not None
    done = python(LAUNCH, env={setting[1]: setting[2]})
    assert done.returncode == 0, done.stderr
    assert "in_features=8" in done.stdout
    lines = (tmp_path / "runs" / "ddp" / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["n"] for e in events] == list(range(len(events)))  # one writer
    names = [e["event"] for e in events]
    assert names.count("resumed") == 1
    assert names.count("round") == 4
    assert names[-1] == "end"
