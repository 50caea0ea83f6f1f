"""Rounds as TensorBoard reads them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import prunus
from helpers import quick, tiny_task
from prunus._common import packages as distributions
from prunus.cli.main import cli
from prunus.integrations.tensorboard import scalars, writer
from prunus.progressive import prune as call
from prunus.progressive.record import Record

pytestmark = pytest.mark.usefixtures("no_pictures")
WORDS = ["run", "iterative", "dense=20it", "retrain=10it", "rounds=2", "guard={max_drop: 0.9}"]


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of a run as (step, value), and the steps of its texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()
    rows = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    return rows | {tag: [(e.step, 0.0) for e in found.Tensors(tag)] for tag in tags["tensors"]}


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from the journal."""
    rows: dict[str, list[tuple[int, float]]] = {}
    for row in Record(folder).rounds:
        for tag, value in scalars(row).items():
            rows.setdefault(tag, []).append((row.step, pytest.approx(value, rel=1e-6)))
    return rows | {"recipe/text_summary": [(0, 0.0)]}


def test_every_judged_round_is_written_at_its_step_and_reads_back_as_the_journal_has_it() -> None:
    for name, words in (("run", ["--tensorboard"]), ("without", [])):
        done = CliRunner().invoke(cli, [*WORDS, "--folder", name, *words])
        assert done.exit_code == 0, done.output
    found = read(Path("run"))
    assert found == expected(Path("run"))
    assert len(found["metric/validation"]) == 3
    assert {"metric/gap", "cost/macs", "cost/bytes", "pruning/l1", "density/0.weight"} <= set(found)
    assert not Path("without/tensorboard").exists()  # none unless asked, and the same fingerprint
    first, second = (json.loads(Path(f"{n}/run.json").read_text()) for n in ("run", "without"))
    assert first["identity"] == second["identity"]
    for _ in range(2):  # a run that was finished without events gets them when asked
        done = CliRunner().invoke(cli, ["resume", "without", "--tensorboard"])
        assert done.exit_code == 0, done.output
        assert read(Path("without")) == expected(Path("without"))


class Killed(BaseException):
    """Stands for the end of a process."""


def test_a_round_that_is_judged_again_after_a_crash_is_written_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dies_after(count: int) -> Any:
        board = writer("run")

        def watch(event: Any) -> None:
            board(event)
            if event["event"] == "judged" and event["row"].index == count:
                board.close()
                raise Killed  # the round is in the journal; no snapshot has it

        return watch

    for count in (1, 2):
        with pytest.raises(Killed):
            call.prune(tiny_task(), quick(rounds=3), folder="run", on_event=dies_after(count))
    with writer("run") as board:
        prunus.prune(tiny_task(), quick(rounds=3), folder="run", on_event=board)
    found = read(Path("run"))
    assert found == expected(Path("run"))
    assert [step for step, _ in found["pruning/requested"]] == [16, 24, 32, 40]


def test_rounds_at_the_same_step_are_all_kept_when_a_run_goes_on() -> None:
    recipe = quick(rounds=3, retrain=0)
    told: list[int] = []
    with writer("run") as board:

        def watch(event: Any) -> None:
            board(event)
            if event["event"] == "judged":
                told.append(event["row"].index)

        with pytest.raises(prunus.Interrupted):
            prunus.prune(
                tiny_task(), recipe, folder="run", on_event=watch, should_stop=lambda: 1 in told
            )
    with writer("run") as board:
        prunus.prune(tiny_task(), recipe, folder="run", on_event=board)
    assert len({step for step, _ in read(Path("run"))["pruning/requested"]}) == 1
    assert read(Path("run")) == expected(Path("run"))


def test_without_the_package_it_is_refused_before_work_with_the_pip_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributions, "missing", lambda names: list(names))
    done = CliRunner().invoke(cli, [*WORDS, "--folder", "run", "--tensorboard"])
    assert done.exit_code == 2
    assert "pip install tensorboard, or install prunus with its extra 'tensorboard'" in done.output
    assert not Path("run").exists()
